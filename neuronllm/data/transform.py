"""Other tasks as questions: labelled texts, answers with or without distractors, pairs, true and false statements.

A benchmark need not be multiple-choice to be asked that way (the paper's question-answering task transformation): the
labels of a classification become choices, an answer gets distractors from the answers of other items or is asked for in
words, a statement is judged true or false. Rows come from the same sources as questions: JSON Lines and CSV files,
lists of dicts, datasets.
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
from .labels import dataset_names, distinct, label_index, label_names, read_truth
from .matching import normalise
from .questions import Question
from .sources import Row, read_rows, row_id
from .templates import Pieces, parse_wording
from .text_layouts import ONE_TEXT, TRUE_OR_FALSE, preferred

TWO_TEXTS = "First text: {text}\nSecond text: {second_text}\nWhich label fits the two texts?"


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
    known = dataset_names(rows, label) if names is None else names
    of_labels = label_names((row.fields.get(label) for row in found), known, label=label, argument="names")
    choices = distinct(of_labels)
    if len(choices) < 2:
        raise InputError(f"the only label is {short(choices)}, which leaves nothing to choose from")
    questions = []
    for row in found:
        with _at(row):
            answer = label_index(_field(row, label), of_labels, label)
            questions.append(_question(row, _worded(pieces, row, fields), choices, answer, subject))
    return _unique(questions)


def from_answers(
    rows: Any, *, question: str, answer: str, subject: str | None = None, n_choices: int = 4, seed: int = 0
) -> list[Question]:
    """Answer-only items as questions, with the answers of other items of the same subject as distractors.

    `question`, `answer` and `subject` are field names; without a subject all items are one. An answer may be a list of
    equally right answers, of which the first is shown. Distractors are drawn per item (the same for a seed, an id and a
    set of answers) and are never equal to a right answer of that item, of another item with the same question, or to
    one another once case, white space, punctuation and articles are set aside. With n_choices=1 there are none: the
    questions are open, and every right answer counts where a model writes its own.

    >>> rows = [{"q": f"Capital {i}?", "a": city} for i, city in enumerate(["Rome", "Oslo", "Lima", "Cairo"])]
    >>> sorted(from_answers(rows, question="q", answer="a")[0].choices)
    ['Cairo', 'Lima', 'Oslo', 'Rome']
    """
    if integer(n_choices) is None or n_choices < 1:
        raise InputError(f"n_choices must be a whole number of at least 1, got {short(n_choices)}")
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
            if n_choices == 1:
                questions.append(Question(stem, (given[0],), 0, name, row_id(row), tuple(given[1:])))
                continue
            generator = _generator(seed, row_id(row), stem)
            choices = [given[0], *generator.sample(others, n_choices - 1)]
            generator.shuffle(choices)
            questions.append(_question(row, stem, choices, choices.index(given[0]), subject))
    return _unique(questions)


def from_pairs(
    rows: Any, *, prompt: str | None = None, chosen: str, rejected: str, subject: str | None = None
) -> list[Question]:
    """Prompts with a better and a worse answer as questions with two choices, in an order drawn from their texts.

    All arguments are field names. Each field holds a text or a chat, a list of messages with role and content; the last
    messages of `chosen` and `rejected` are the choices, and what was said before them is part of the question. Where
    that says it all, no `prompt` is needed.

    >>> rows = [{"ask": "Is ice warm?", "good": "No, it is cold.", "poor": "Yes."}]
    >>> question = from_pairs(rows, prompt="ask", chosen="good", rejected="poor")[0]
    >>> question.choices[question.answer]
    'No, it is cold.'
    """
    questions = []
    for row in _rows(rows):
        with _at(row):
            asked = None if prompt is None else _field(row, prompt)
            parts = preferred(asked, _field(row, chosen), _field(row, rejected))
            questions.append(_question(row, parts.stem, parts.choices, parts.answer, subject))
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
            answer = 0 if read_truth(_field(row, label), label) else 1
            stem = _worded(pieces, row, {"text": statement})
            questions.append(_question(row, stem, names, answer, subject))
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
