"""Questions from files, rows and datasets, and back into files.

`layouts.py` finds the stem, the choices and the answer of each row; all checks of their content live in `Question`, so
that a question built by hand passes the same ones. Every error names its file and line, or its row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path
from typing import Any

from ..common.checks import integer
from ..common.errors import InputError
from ..common.warning import warn
from .labels import dataset_names, distinct, label_names
from .layouts import LABELLED, check_columns, layout_of, read_parts
from .questions import Question, Wording
from .sources import Row, is_csv, is_path, pick_split, read_rows, row_id


def load_questions(
    source: Any,
    *,
    columns: Mapping[str, Any] | None = None,
    split: str | None = None,
    limit: int | None = None,
    labels: Sequence[str] | Mapping[Any, str] | None = None,
    skip_bad: bool = False,
) -> list[Question]:
    """The questions of a JSON Lines or CSV file, of an iterable of dicts, or of a Hugging Face dataset.

    A row is {question (or stem), choices, answer}, where the answer is the index of a choice or its text, or, for an
    open question, {question, answer} with a text as its answer and if wished `answers`, further ones that are right;
    all may have an id and a subject. Yes and no, true and false are chosen between. {prompt, chosen, rejected} is a
    question with two choices, {statement, label} one about its truth, and {text, label} one about the label, whose
    choices are the names of all labels; `labels` names them where they are numbers. The layouts of well-known datasets
    are recognised (LAYOUTS in data/layouts.py); any other is described by `columns`, which maps question and answer
    (and choices, answers, subject, id) to field names, where choices may be a list of fields. `split` picks from a
    dictionary of datasets, `limit` takes the first questions only. A row that is no valid question is an error that
    names it; with `skip_bad` such rows are left out and one warning counts them (public datasets hold a few with two
    equal choices).

    >>> rows = [{"prompt": "2 + 2?", "right": "B", "a": "3", "b": "4"}]
    >>> columns = {"question": "prompt", "choices": ["a", "b"], "answer": "right"}
    >>> load_questions(rows, columns=columns)[0].answer
    1
    >>> load_questions([{"question": "What is the capital of France?", "answer": "Paris"}])[0].open
    True
    >>> load_questions([{"text": "Dull.", "label": 0}], labels=["negative", "positive"])[0].choices
    ('negative', 'positive')
    """
    if limit is not None and (integer(limit) is None or limit < 1):
        raise InputError(f"limit must be a whole number of at least 1, got {limit!r}")
    if columns is not None:
        check_columns(columns)
    rows, names = _with_label_names(source, split, columns, labels)
    questions: list[Question] = []
    places: dict[str, str] = {}
    bad: list[str] = []
    for row in rows:
        if limit is not None and len(questions) >= limit:
            break
        try:
            question = _question(row, columns, names)
        except InputError as error:
            if not skip_bad:
                raise InputError(f"{row.where}: {error}") from None
            bad.append(f"{row.where}: {error}")
            continue
        if question.id in places:
            raise InputError(f"{row.where}: id {question.id!r} was already used at {places[question.id]}")
        places[question.id] = row.where
        questions.append(question)
    if bad:
        warn(f"left out {len(bad)} rows that are no valid questions, the first: {bad[0]}")
    if not questions:
        raise InputError(f"{_name(source)}: 0 questions: it needs at least one row")
    return questions


def _with_label_names(
    source: Any, split: str | None, columns: Mapping[str, Any] | None, labels: Any
) -> tuple[Iterator[Row], dict[Any, str] | None]:
    """The rows, and the names of their labels if they are labelled texts, which takes all rows to know."""
    rows = read_rows(source, split=split)
    first = next(rows, None)
    if first is None:
        return rows, None
    rows = chain([first], rows)
    layout = layout_of(first.fields) if columns is None else None
    if layout is None and columns is None and is_csv(source):
        raise InputError(
            f"{source}:1: no layout has the fields {', '.join(first.fields)}: a CSV file begins with a header such as "
            "question,answer or text,label; for names of your own use columns=, or nl.transform.from_labels"
        )
    if layout is not LABELLED:
        if labels is not None:
            raise InputError(f"{_name(source)}: labels= (--labels) is for rows of text and label, which these are not")
        return rows, None
    found = list(rows)
    if labels is None:
        labels = dataset_names(pick_split(source, split)[1] if isinstance(source, Mapping) else source, "label")
    try:
        values = (row.fields.get("label") for row in found)
        names = label_names(values, labels, label="label", argument="labels")
    except InputError as error:
        raise InputError(f"{_name(source)}: {error} (--labels NAME NAME ...)") from None
    if len(distinct(names)) < 2:
        raise InputError(f"{_name(source)}: the only label is {distinct(names)}, which leaves nothing to choose from")
    return iter(found), names


def _name(source: Any) -> str:
    return os.fspath(source) if is_path(source) else "source"


def _question(row: Row, columns: Mapping[str, Any] | None, names: Mapping[Any, str] | None) -> Question:
    parts = read_parts(row.fields, columns, names)
    name = row_id(row, "id" if columns is None else columns.get("id", "id"))
    own = _wording(row.fields.get("wording")) if columns is None else None
    in_words = parts.in_words or row.fields.get("in_words") is True
    found = (parts.stem, parts.choices, parts.answer, parts.subject or None, name, tuple(parts.answers))
    return Question(*found, wording=own, in_words=in_words)


def _wording(value: Any) -> Wording | None:
    """The words of its own that `save_questions` wrote of a question; a field of other rows may have that name too."""
    names = {part.name for part in fields(Wording)}
    if not isinstance(value, Mapping) or value.keys() != names:
        return None
    if not isinstance(value["answers"], Sequence) or isinstance(value["answers"], str):
        raise InputError("wording: answers must be a list of texts")
    return Wording(**value)


def save_questions(path: str | os.PathLike[str], questions: Iterable[Question]) -> None:
    """Writes the questions as JSON Lines; the file appears whole or not at all.

    >>> save_questions("task.jsonl", [Question("Warm?", ("yes", "no"), 0)])  # doctest: +SKIP
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for question in questions:
                file.write(json.dumps(_row(question), ensure_ascii=False) + "\n")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def _row(question: Question) -> dict[str, Any]:
    # Without choices written down, "yes" would be read as a choice between yes and no.
    choices, answer = ((), question.choices[0]) if question.open else (question.choices, question.answer)
    row: dict[str, Any] = {"id": question.id, "question": question.stem, "choices": choices, "answer": answer}
    row |= {"answers": question.answers or None, "subject": question.subject}
    row["wording"] = None if question.wording is None else asdict(question.wording)
    row["in_words"] = question.in_words or None
    return {name: value for name, value in row.items() if value not in ("", None)}
