"""Rows: where questions come from, and which fields of a row are the stem, the choices and the answer.

`read_rows` yields each row of a file, of a list of dicts or of a dataset, with the place to name in errors and a
default id. `read_parts` then finds the parts of a question: `LAYOUTS` is the table of known row shapes (our own and
those of the well-known datasets), and a `columns` map describes any other. Nothing is checked here that `Question`
checks itself.

Datasets are taken by what they offer (iteration, dictionaries of splits), so nothing here imports `datasets`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..common.checks import integer, short
from ..common.errors import InputError

LETTERS = string.ascii_uppercase


class Row(NamedTuple):
    """One row of a source: `where` names it in errors, `id` is its default id."""

    where: str
    id: str
    fields: Mapping[str, Any]


def read_rows(source: Any, *, split: str | None = None) -> Iterator[Row]:
    """The rows of a JSON Lines file, of an iterable of dicts, of a dataset, or of one split of a dictionary of them.

    Rows of a file are known by their line (from 1, as editors count), other rows by their index (from 0, as `rows[i]`).
    """
    if isinstance(source, (str, os.PathLike)):
        if split is not None:
            raise InputError(f"split={split!r} is for a dictionary of datasets; {os.fspath(source)} is a path")
        return _file_rows(Path(source))
    prefix = ""
    if isinstance(source, Mapping):
        name, source = _pick_split(source, split)
        prefix = f"{name}:"
    elif split is not None:
        raise InputError(f"split={split!r} is for a dictionary of datasets; give the split itself, or leave split out")
    if not isinstance(source, Iterable):
        raise InputError(f"questions come from a path, rows or a dataset, got {type(source).__name__}")
    return _memory_rows(source, prefix)


def _pick_split(splits: Mapping[str, Any], split: str | None) -> tuple[str, Any]:
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


def _file_rows(path: Path) -> Iterator[Row]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (a Hugging Face dataset is given as the loaded dataset)") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
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


# ------------------------------------------------------------------------------------------------------------- answers


def answer_index(value: Any, choices: Sequence[str]) -> int:
    """The index that `value` means: a number from 0, the same as digits, a letter from A, or the text of a choice.

    >>> answer_index("B", ["red", "blue"])
    1
    """
    text = _labelled(value)
    if (number := integer(text)) is not None:
        return number
    if not isinstance(text, str):
        raise InputError(f"answer must be a number, a letter or the text of a choice, got {short(value)}")
    readings = {number for number, choice in enumerate(choices) if isinstance(choice, str) and choice.strip() == text}
    if text.isascii() and text.isdigit():
        readings.add(int(text))
    if len(text) == 1 and text.upper() in LETTERS:
        readings.add(LETTERS.index(text.upper()))
    possible = {number for number in readings if number < len(choices)} or readings
    if not possible:
        raise InputError(f"answer {short(value)} is no number, no letter and none of the choices")
    if len(possible) > 1:
        found = " or ".join(str(number) for number in sorted(possible))
        raise InputError(f"answer {short(value)} is ambiguous: it can mean choice {found}; give the index as a number")
    return possible.pop()


def is_unlabelled(value: Any) -> bool:
    """Whether `value` is one of the marks by which datasets hide the answers of a test split."""
    return value is None or integer(value) == -1 or (isinstance(value, str) and value.strip() in ("", "-1"))


def _labelled(value: Any) -> Any:
    if is_unlabelled(value):
        raise InputError(f"the row is unlabelled (answer {value!r}): use a split whose answers are public")
    return value.strip() if isinstance(value, str) else value


def _answer_in(value: Any, labels: Sequence[Any]) -> int:
    """The position of `value` among a row's own labels ("A".. or "1"..), both stripped."""
    known = [str(label).strip() for label in labels]
    wanted = str(_labelled(value)).strip()
    if known.count(wanted) != 1:
        raise InputError(f"answer {short(value)} is not one of the labels {', '.join(known)}")
    return known.index(wanted)


def _place(right: Any, wrong: Sequence[Any]) -> tuple[list[Any], int]:
    """The choices of a set that always gives the right one first, with the right one at a place drawn from its text.

    Without this every right answer would carry the same letter wherever choices are not permuted.
    """
    digest = hashlib.sha256(json.dumps([right, *wrong]).encode()).digest()
    place = int.from_bytes(digest[:8], "big") % (len(wrong) + 1)
    return [*wrong[:place], right, *wrong[place:]], place


# ------------------------------------------------------------------------------------------------------------- layouts


class Parts(NamedTuple):
    """What a layout found in a row; Question checks it."""

    stem: Any
    choices: Any
    answer: int
    subject: Any = None


def _own(row: Mapping[str, Any]) -> Parts:
    stem = row["stem"] if "stem" in row else row["question"]
    answer = row["answer"]
    # Strict here: this is the project's own format, in which an answer is an index and nothing else.
    return Parts(stem, row["choices"], _labelled(answer), row.get("subject"))


def _mmlu_pro(row: Mapping[str, Any]) -> Parts:
    return Parts(row["question"], row["options"], _labelled(row["answer_index"]), row.get("category"))


def _labelled_choices(row: Mapping[str, Any]) -> Parts:
    stem = row["question_stem"] if "question_stem" in row else row["question"]
    choices = row["choices"]
    if not isinstance(choices, Mapping) or not {"text", "label"} <= set(choices):
        raise InputError("choices must hold text and label, since the row has an answerKey")
    return Parts(stem, choices["text"], _answer_in(row["answerKey"], choices["label"]))


def _hellaswag(row: Mapping[str, Any]) -> Parts:
    second = str(row["ctx_b"]).strip()
    context = _without_brackets(f"{row['ctx_a']} {second[:1].upper()}{second[1:]}")
    endings = [_without_brackets(ending) for ending in row["endings"]]
    label = row["activity_label"]
    return Parts(f"{label}: {context}", endings, answer_index(row["label"], ()), label)


def _without_brackets(text: Any) -> str:
    """HellaSwag's WikiHow rows carry "[title]", "[step]" and the like: a title ends a sentence, the rest go."""
    text = re.sub(r"\s*\[title\]", ".", str(text).strip())
    return re.sub(r"\s+", " ", re.sub(r"\[.*?\]", "", text)).removeprefix(".").strip()


def _piqa(row: Mapping[str, Any]) -> Parts:
    return Parts(row["goal"], [row["sol1"], row["sol2"]], answer_index(row["label"], ()))


def _winogrande(row: Mapping[str, Any]) -> Parts:
    return Parts(row["sentence"], [row["option1"], row["option2"]], _answer_in(row["answer"], ["1", "2"]))


def _sciq(row: Mapping[str, Any]) -> Parts:
    support = str(row.get("support") or "").strip()
    stem = f"{support}\n{row['question']}" if support else row["question"]
    return Parts(stem, *_place(row["correct_answer"], [row[f"distractor{number}"] for number in (1, 2, 3)]))


def _truthfulqa(row: Mapping[str, Any]) -> Parts:
    choices, labels = list(row["mc1_targets"]["choices"]), list(row["mc1_targets"]["labels"])
    if labels.count(1) != 1 or len(labels) != len(choices):
        raise InputError("mc1_targets must label exactly one choice with 1")
    right = choices.pop(labels.index(1))
    return Parts(row["question"], *_place(right, choices))


class Layout(NamedTuple):
    """A known shape of rows: the fields by which it is recognised and the function that reads it."""

    name: str
    fields: frozenset[str]
    read: Callable[[Mapping[str, Any]], Parts]


def _layout(name: str, fields: str, read: Callable[[Mapping[str, Any]], Parts]) -> Layout:
    return Layout(name, frozenset(fields.split()), read)


# The first layout whose fields are all in the row reads it, so a layout stands before those with fewer fields.
LAYOUTS: tuple[Layout, ...] = (
    _layout("MMLU-Pro", "question options answer_index", _mmlu_pro),
    _layout("ARC, CommonsenseQA", "question choices answerKey", _labelled_choices),
    _layout("OpenBookQA", "question_stem choices answerKey", _labelled_choices),
    _layout("HellaSwag", "activity_label ctx_a ctx_b endings label", _hellaswag),
    _layout("PIQA", "goal sol1 sol2 label", _piqa),
    _layout("WinoGrande", "sentence option1 option2 answer", _winogrande),
    _layout("SciQ", "question correct_answer distractor1 distractor2 distractor3", _sciq),
    _layout("TruthfulQA", "question mc1_targets", _truthfulqa),
    _layout("own, MMLU", "question choices answer", _own),
    _layout("own", "stem choices answer", _own),
)


def read_parts(fields: Mapping[str, Any], columns: Mapping[str, Any] | None = None) -> Parts:
    """Stem, choices, answer and subject of a row, by its layout or as `columns` says.

    >>> read_parts({"goal": "Open it", "sol1": "pull", "sol2": "sing", "label": 0}).choices
    ['pull', 'sing']
    """
    parts = _by_layout(fields) if columns is None else _by_columns(fields, columns)
    # Rows of a Parquet file hold arrays where those of a dataset hold lists.
    return parts._replace(choices=parts.choices.tolist()) if hasattr(parts.choices, "tolist") else parts


def _by_layout(row: Mapping[str, Any]) -> Parts:
    for layout in LAYOUTS:
        if layout.fields <= row.keys():
            try:
                return layout.read(row)
            except (TypeError, KeyError) as error:
                raise InputError(f"looks like {layout.name}, but its fields cannot be read: {error}") from None
    present = row.keys() | ({"question"} if "stem" in row else set())
    missing = [name for name in ("question", "choices", "answer") if name not in present]
    raise InputError(
        f"no field {' and no field '.join(missing)}, and no known dataset layout has the fields "
        f"{', '.join(map(str, row)) or '(none)'}: rename them, or say which is which with columns="
    )


def _by_columns(row: Mapping[str, Any], columns: Mapping[str, Any]) -> Parts:
    names = columns["choices"]
    choices: Any = _field(row, names) if isinstance(names, str) else [_field(row, name) for name in names]
    if isinstance(choices, Mapping) and "text" in choices:
        choices = choices["text"]
    subject = _field(row, columns["subject"]) if "subject" in columns else None
    answer = answer_index(_field(row, columns["answer"]), choices)
    return Parts(_field(row, columns["question"]), choices, answer, subject)


def _field(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise InputError(f"no field {name!r} (named in columns=); the row has: {', '.join(map(str, row))}")
    return row[name]


def check_columns(columns: Mapping[str, Any]) -> None:
    """InputError unless `columns` maps what it must and nothing that is not known."""
    known, needed = ("question", "choices", "answer", "subject", "id"), ("question", "choices", "answer")
    wrong = [name for name in columns if name not in known] if isinstance(columns, Mapping) else [columns]
    wrong += [name for name in needed if not wrong and name not in columns]
    if wrong:
        raise InputError(
            f"columns= must map question, choices and answer (and may map subject and id) to field names; "
            f"{short(wrong[0])} is unknown or missing"
        )
