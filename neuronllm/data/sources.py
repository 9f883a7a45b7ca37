"""Rows: each row of a file, of a list of dicts or of a dataset, with the place to name in errors and a default id.

Datasets are taken by what they offer (iteration, dictionaries of splits), so nothing here imports `datasets`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..common.checks import integer, short
from ..common.errors import InputError

LETTERS = string.ascii_uppercase
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """One row of a source: `where` names it in errors, `id` is its default id."""

    where: str
    id: str
    fields: Mapping[str, Any]


def read_rows(source: Any, *, split: str | None = None) -> Iterator[Row]:
    """The rows of a JSON Lines or CSV file, of an iterable of dicts, of a dataset, or of one split of several.

    Rows of a file are known by their line (from 1, as editors count), other rows by their index (from 0, as `rows[i]`).
    """
    if is_path(source):
        if split is not None:
            raise InputError(f"split={split!r} is for a dictionary of datasets; {os.fspath(source)} is a path")
        return _csv_rows(Path(source)) if is_csv(source) else _json_rows(Path(source))
    prefix = ""
    if isinstance(source, Mapping):
        name, source = pick_split(source, split)
        prefix = f"{name}:"
    elif split is not None:
        raise InputError(f"split={split!r} is for a dictionary of datasets; give the split itself, or leave split out")
    if not isinstance(source, Iterable):
        raise InputError(f"questions come from a path, rows or a dataset, got {type(source).__name__}")
    return _memory_rows(source, prefix)


def is_path(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def is_csv(source: Any) -> bool:
    return is_path(source) and Path(source).suffix.lower() == ".csv"


def pick_split(splits: Mapping[str, Any], split: str | None) -> tuple[str, Any]:
    names = ", ".join(str(name) for name in splits)
    if any(isinstance(rows, str) or not isinstance(rows, Iterable) for rows in splits.values()):
        raise InputError("a single dict is not a source of questions: give a list of dicts")
    if split is None:
        if len(splits) != 1:
            raise InputError(f"the dataset has several splits, choose one with split=: {names}")
        split = next(iter(splits))
    if split not in splits:
        raise InputError(f"split {split!r} is not in the dataset; it has: {names}")
    return split, splits[split]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (a Hugging Face dataset is given as the loaded dataset)") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_content(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except UnicodeDecodeError:
            raise InputError(f"{where}: not UTF-8 text") from None
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not valid JSON: {error.msg} (column {error.colno})") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not usable JSON: {error}") from None
        if not isinstance(fields, dict):
            raise InputError(f"{where}: each line must be one JSON object, this one is a {type(fields).__name__}")
        yield Row(where, f"{path.stem}:{number}", fields)


def _csv_rows(path: Path) -> Iterator[Row]:
    """Line 1 is the header; a row is known by the line on which it begins."""
    content = _content(path)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        raise InputError(f"{path}:{line}: not UTF-8 text") from None
    names: list[str] = []
    for number, cells in _csv_records(path, text):
        where = f"{path}:{number}"
        if not names:
            names = [name.strip() for name in cells]
            if "" in names or len(set(names)) < len(names):
                raise InputError(f"{where}: a CSV file begins with a header, a name of its own for each column")
            continue
        if len(cells) != len(names):
            raise InputError(
                f"{where}: the row has {len(cells)} cells, the header {len(names)}: quote cells with commas"
            )
        yield Row(where, f"{path.stem}:{number}", dict(zip(names, cells, strict=True)))


def _csv_records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line that is not blank, or of several where a quoted cell has line breaks."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}:{number}: not valid CSV: {error}") from None
        if any(cell.strip() for cell in cells):
            yield number, cells


def _memory_rows(source: Iterable[Any], prefix: str) -> Iterator[Row]:
    for number, fields in enumerate(source):
        if not isinstance(fields, Mapping):
            raise InputError(f"row {prefix}{number}: must be a dict, got {type(fields).__name__}")
        yield Row(f"row {prefix}{number}", f"{prefix}{number}", fields)


def row_id(row: Row, field: str = "id") -> str:
    """The row's own id (text or number) where it has one, else the id of its place in the source."""
    value = row.fields.get(field)
    if value is None or value == "":
        return row.id
    if not isinstance(value, str) and integer(value) is None:
        raise InputError(f"{field} must be a text or a number, got {short(value)}")
    return str(value)
