"""Other tasks as questions: labelled texts, answers without distractors, and statements that are true or false.

A benchmark need not be multiple-choice to be asked that way (the paper's question-answering task transformation): the
labels of a classification become choices, an answer gets distractors from the answers of other items, a statement is
judged true or false. Rows come from the same sources as questions: JSON Lines files, lists of dicts, datasets.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..common.checks import integer, short
from ..common.errors import InputError
from .matching import normalise
from .questions import MAX_CHOICES, Question
from .sources import Row, is_unlabelled, read_rows, row_id
from .templates import Pieces, parse_wording

ONE_TEXT = "Text: {text}\nWhich label fits the text?"
TWO_TEXTS = "First text: {text}\nSecond text: {second_text}\nWhich label fits the two texts?"
TRUE_OR_FALSE = "Statement: {text}\nIs the statement true or false?"
_WORDS = {"true": 0, "yes": 0, "1": 0, "false": 1, "no": 1, "0": 1}


def from_labels(
    rows: Any,
    *,
    text: str,
    label: str,
    second_text: str | None = None,
    names: Sequence[str] | Mapping[Any, str] | None = None,
    question: str | None = None,
    subject: str | None = None,
) -> list[Question]:
    """Labelled classification as questions: every label name is a choice, always in the same order.

    `text`, `second_text` (the hypothesis of an entailment task, say), `label` and `subject` are field names. `names` is
    a list that integer labels index, or a mapping from labels to names; without it the names are the dataset's own
    (ClassLabel) or, for labels that are texts, the sorted labels. `question` is the wording, with {text} and
    {second_text}.

    >>> rows = [{"review": "Lovely.", "label": 1}]
    >>> from_labels(rows, text="review", label="label", names=["negative", "positive"])[0].choices[1]
    'positive'
    """
    fields = {"text": text} if second_text is None else {"text": text, "second_text": second_text}
    default = ONE_TEXT if second_text is None else TWO_TEXTS
    pieces = parse_wording(question or default, known=tuple(fields), needed=tuple(fields), what="question")
    found = _rows(rows)
    choices = _label_names(rows, found, label, names)
    order = list(dict.fromkeys(choices.values()))  # a mapping may give two labels one name
    questions = []
    for row in found:
        with _at(row):
            value = _labelled(row, label)
            if value not in choices:
                raise InputError(f"label {short(value)} has no name; names are known for {short(list(choices))}")
            questions.append(_question(row, _worded(pieces, row, fields), order, order.index(choices[value]), subject))
    return _unique(questions)


def from_answers(
    rows: Any, *, question: str, answer: str, subject: str | None = None, n_choices: int = 4, seed: int = 0
) -> list[Question]:
    """Answer-only items as questions, with the answers of other items of the same subject as distractors.

    `question`, `answer` and `subject` are field names; without a subject all items are one. An answer may be a list of
    equally right answers, of which the first is shown. Distractors are drawn per item (the same for a seed, an id and a
    set of answers) and are never equal to a right answer of that item, of another item with the same question, or to
    one another once case, white space, punctuation and articles are set aside.

    >>> rows = [{"q": f"Capital {i}?", "a": city} for i, city in enumerate(["Rome", "Oslo", "Lima", "Cairo"])]
    >>> sorted(from_answers(rows, question="q", answer="a")[0].choices)
    ['Cairo', 'Lima', 'Oslo', 'Rome']
    """
    if integer(n_choices) is None or not 2 <= n_choices <= MAX_CHOICES:
        raise InputError(f"n_choices must be a whole number from 2 to {MAX_CHOICES}, got {short(n_choices)}")
    found = _rows(rows)
    items = []
    pools: dict[str | None, dict[str, str]] = defaultdict(dict)
    right: dict[tuple[str | None, str], set[str]] = defaultdict(set)
    for row in found:
        with _at(row):
            name = _subject(row, subject)
            stem, given = _text(row, question), _answers(row, answer)
        items.append((name, stem, given))
        right[name, normalise(stem)] |= {normalise(text) for text in given}
        # Of the spellings of an answer the first in order of the alphabet is shown, whatever the order of the rows.
        key = normalise(given[0])
        pools[name][key] = min(given[0], pools[name].get(key, given[0]))
    questions = []
    for row, (name, stem, given) in zip(found, items, strict=True):
        with _at(row):
            banned = right[name, normalise(stem)]
            others = sorted(text for key, text in pools[name].items() if key not in banned)
            if len(others) < n_choices - 1:
                where = "the rows hold" if name is None else f"subject {name!r} holds"
                raise InputError(
                    f"{where} only {len(others)} other distinct answers, and n_choices={n_choices} needs "
                    f"{n_choices - 1}: add items, ask with fewer choices, or join subjects"
                )
            generator = _generator(seed, row_id(row), stem)
            choices = [given[0], *generator.sample(others, n_choices - 1)]
            generator.shuffle(choices)
            questions.append(_question(row, stem, choices, choices.index(given[0]), subject))
    return _unique(questions)


def from_true_false(
    rows: Any,
    *,
    statement: str,
    label: str,
    names: tuple[str, str] = ("True", "False"),
    question: str | None = None,
    subject: str | None = None,
) -> list[Question]:
    """Statements as questions with two choices, the true one of `names` first.

    `statement`, `label` and `subject` are field names; a label is a boolean, 1 or 0, or true, false, yes or no.
    `question` is the wording, with {text} for the statement.

    >>> from_true_false([{"claim": "Ice is cold.", "ok": True}], statement="claim", label="ok")[0].answer
    0
    """
    if isinstance(names, str) or len(names) != 2:
        raise InputError(f"names must be two texts, for true and for false, got {short(names)}")
    pieces = parse_wording(question or TRUE_OR_FALSE, known=("text",), needed=("text",), what="question")
    questions = []
    for row in _rows(rows):
        with _at(row):
            value = _labelled(row, label)
            word = str(value).strip().lower() if isinstance(value, (str, bool)) else str(integer(value))
            if word not in _WORDS:
                raise InputError(f"label must be true or false, 1 or 0, yes or no, got {short(value)}")
            stem = _worded(pieces, row, {"text": statement})
            questions.append(_question(row, stem, names, _WORDS[word], subject))
    return _unique(questions)


def _rows(source: Any) -> list[Row]:
    found = list(read_rows(source))
    if not found:
        raise InputError("0 rows: there is nothing to turn into questions")
    return found


@contextmanager
def _at(row: Row) -> Iterator[None]:
    """Errors inside name the row."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{row.where}: {error}") from None


def _field(row: Row, name: str) -> Any:
    if name not in row.fields:
        raise InputError(f"no field {name!r}; the row has: {', '.join(map(str, row.fields))}")
    return row.fields[name]


def _text(row: Row, name: str) -> str:
    value = _field(row, name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name} must be a text that is not empty, got {short(value)}")
    return value.strip()


def _answers(row: Row, name: str) -> list[str]:
    """The right answers of an item: a text, or a list of them."""
    value = _field(row, name)
    given = [value] if isinstance(value, str) else value
    if (
        not isinstance(given, Sequence)
        or not given
        or not all(isinstance(text, str) and text.strip() for text in given)
    ):
        raise InputError(f"{name} must be a text or a list of texts, none empty, got {short(value)}")
    return [text.strip() for text in given]


def _labelled(row: Row, name: str) -> Any:
    value = _field(row, name)
    if is_unlabelled(value):
        raise InputError(f"the row is unlabelled ({name} is {value!r}): leave such rows out")
    if isinstance(value, (str, bool)):
        return value if isinstance(value, bool) else value.strip()
    number = integer(value)
    if number is None:
        raise InputError(f"{name} must be a text, a whole number or a boolean, got {short(value)}")
    return number


def _label_names(rows: Any, found: list[Row], label: str, names: Any) -> dict[Any, str]:
    """From each label to its name, in the order in which the names are displayed."""
    if names is None:
        names = getattr((getattr(rows, "features", None) or {}).get(label), "names", None)
    if isinstance(names, Mapping):
        return dict(names)
    if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
        raise InputError(f"names must be a list or a mapping of label names, got {short(names)}")
    values = [row.fields.get(label) for row in found]
    texts = sorted({value.strip() for value in values if isinstance(value, str) and not is_unlabelled(value)})
    if texts:  # labels that are texts name themselves, and a list of names only fixes their order
        return {name: name for name in names or texts}
    if names is None:
        raise InputError(f"the labels in {label!r} are not texts: say what they mean with names=[...]")
    return dict(enumerate(names))


def _worded(pieces: Pieces, row: Row, fields: Mapping[str, str]) -> str:
    return "".join(literal + ("" if name is None else _text(row, fields[name])) for literal, name in pieces)


def _question(row: Row, stem: str, choices: Sequence[str], answer: int, subject: str | None) -> Question:
    return Question(stem, tuple(choices), answer, _subject(row, subject), row_id(row))


def _subject(row: Row, field: str | None) -> str | None:
    value = None if field is None else _field(row, field)
    return None if value is None else str(value)


def _unique(questions: list[Question]) -> list[Question]:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise InputError(f"id {question.id!r} appears twice: give every row an id of its own, or none")
        seen.add(question.id)
    return questions


def _generator(seed: int, name: str, stem: str) -> random.Random:
    """A generator of an item's own: what it draws depends on no other item and on no process."""
    digest = hashlib.sha256(json.dumps([seed, name, stem]).encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))
