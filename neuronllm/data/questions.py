"""Questions: what the model is asked. Read from JSON Lines files or datasets, checked, fingerprinted, saved.

`rows` finds the stem, the choices and the answer of each row; all checks of their content live in `Question`, so that a
question built by hand passes the same ones. Every error names its file and line, or its row.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.checks import integer, short
from ..common.errors import InputError
from .sources import LETTERS, Row, check_columns, read_parts, read_rows, row_id

MAX_CHOICES = len(LETTERS)


@dataclass(frozen=True)
class Question:
    """A stem, its choices, and the index of the right choice. Texts are stripped; bad content raises InputError.

    An open question has a right answer and no choices: `answer` is then its text, and becomes the only choice.
    `answers` are further texts that count as right where the model writes its answer.

    >>> Question("Which is a colour?", ("red", "seven"), answer=0).choices[0]
    'red'
    >>> Question("What is the capital of France?", answer="Paris").open
    True
    """

    stem: str
    choices: tuple[str, ...] = ()
    answer: int = 0
    subject: str | None = None
    id: str = ""
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.choices, str) or not isinstance(self.choices, Sequence):
            raise InputError(f"choices must be a list of texts, got {type(self.choices).__name__}")
        given: Any = self.answer
        if not self.choices and isinstance(given, str):
            object.__setattr__(self, "choices", (_text(given, "the answer"),))
            object.__setattr__(self, "answer", 0)
        choices = tuple(_text(choice, f"choice {number}") for number, choice in enumerate(self.choices))
        if not choices:
            raise InputError("a question needs choices, or the text of its answer")
        for number, choice in enumerate(choices):
            if choice in choices[:number]:
                first = choices.index(choice)
                raise InputError(f"choices {first} and {number} are both {short(choice)}: choices must differ")
        answer = integer(self.answer)
        if answer is None:
            raise InputError(f"answer must be a whole number (0 = the first choice), got {short(self.answer)}")
        if not 0 <= answer < len(choices):
            raise InputError(f"answer {answer} is out of range: {len(choices)} choices go from 0 to {len(choices) - 1}")
        if not isinstance(self.id, str):
            raise InputError(f"id must be a text, got {type(self.id).__name__}")
        object.__setattr__(self, "stem", _text(self.stem, "the question"))
        object.__setattr__(self, "choices", choices)
        object.__setattr__(self, "answer", answer)
        object.__setattr__(self, "id", self.id.strip())
        if self.subject is not None:
            object.__setattr__(self, "subject", _text(self.subject, "the subject"))
        accepted = tuple(dict.fromkeys(_text(text, "an accepted answer") for text in self.answers))
        if wrong := next((choice for n, choice in enumerate(choices) if n != answer and choice in accepted), None):
            raise InputError(f"answers holds {short(wrong)}, which is a wrong choice")
        object.__setattr__(self, "answers", accepted)

    @property
    def open(self) -> bool:
        """Whether there is nothing to choose from."""
        return len(self.choices) == 1


def _text(value: Any, what: str) -> str:
    """`value` stripped, or InputError: an empty text or half a surrogate pair would only fail much later."""
    if not isinstance(value, str):
        raise InputError(f"{what} must be a text, got {short(value)}")
    if not value.strip():
        raise InputError(f"{what} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{what} holds a character that is not valid Unicode (half of a surrogate pair)") from None
    return value.strip()


# ------------------------------------------------------------------------------------------------------- load and save


def load_questions(
    source: Any,
    *,
    columns: Mapping[str, Any] | None = None,
    split: str | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
) -> list[Question]:
    """The questions of a JSON Lines file, of an iterable of dicts, or of a Hugging Face dataset.

    The file's rows are {id?, question (or stem), choices, answer, subject?}. The layouts of well-known datasets are
    recognised (see LAYOUTS); any other is described by `columns`, which maps question, choices, answer (and subject,
    id) to field names, where choices may be a list of fields. `split` picks from a dictionary of datasets, `limit`
    takes the first questions only. A row that is no valid question is an error that names it; with `skip_bad` such
    rows are left out and one warning counts them (public datasets hold a few with two equal choices).

    >>> rows = [{"prompt": "2 + 2?", "right": "B", "a": "3", "b": "4"}]
    >>> columns = {"question": "prompt", "choices": ["a", "b"], "answer": "right"}
    >>> load_questions(rows, columns=columns)[0].answer
    1
    """
    if limit is not None and (integer(limit) is None or limit < 1):
        raise InputError(f"limit must be a whole number of at least 1, got {limit!r}")
    if columns is not None:
        check_columns(columns)
    questions: list[Question] = []
    places: dict[str, str] = {}
    bad: list[str] = []
    for row in read_rows(source, split=split):
        if limit is not None and len(questions) >= limit:
            break
        try:
            question = _question(row, columns)
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
        warnings.warn(f"left out {len(bad)} rows that are no valid questions, the first: {bad[0]}", stacklevel=2)
    if not questions:
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "source"
        raise InputError(f"{name}: 0 questions: it needs at least one row")
    return questions


def _question(row: Row, columns: Mapping[str, Any] | None) -> Question:
    parts = read_parts(row.fields, columns)
    name = row_id(row, "id" if columns is None else columns.get("id", "id"))
    return Question(parts.stem, parts.choices, parts.answer, parts.subject or None, name)


def fingerprint(questions: Iterable[Question]) -> str:
    """SHA-256 (hex) of what the questions ask, in their order: stems, choices, answers, subjects. Ids do not count.

    >>> fingerprint([Question("Warm?", ("yes", "no"), 0, id="a")]) == fingerprint([Question("Warm?", ("yes", "no"), 0)])
    True
    """
    content = [
        # Accepted answers only where there are some: fingerprints of other questions stay what they always were.
        [question.stem, question.choices, question.answer, question.subject, *([q] if (q := question.answers) else [])]
        for question in questions
    ]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def save_questions(path: str | os.PathLike[str], questions: Iterable[Question]) -> None:
    """Writes the questions as JSON Lines; the file appears whole or not at all.

    >>> save_questions("task.jsonl", [Question("Warm?", ("yes", "no"), 0)])  # doctest: +SKIP
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for question in questions:
                row: dict[str, Any] = {"id": question.id, "question": question.stem, "choices": question.choices}
                row |= {"answer": question.answer, "subject": question.subject}
                kept = {name: value for name, value in row.items() if value not in ("", None)}
                file.write(json.dumps(kept, ensure_ascii=False) + "\n")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
