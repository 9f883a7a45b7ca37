"""Which fields of a row are the stem, the choices and the answer of a question.

`LAYOUTS` is the table of known row shapes (our own and those of the well-known datasets), and a `columns` map describes
any other. Nothing is checked here that `Question` checks itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..common.checks import short
from ..common.errors import InputError
from . import text_layouts as texts
from .labels import answer_in, answer_index, answer_placed, labelled
from .text_layouts import Fields, Parts, accepted_answers, listed, stem_of


def _own(row: Fields) -> Parts:
    """Our own rows: an answer is an index or the text of a choice; without choices it is a text, as it stands there."""
    choices, answer = listed(row["choices"]), row["answer"]
    if choices is None or (isinstance(choices, Sequence) and not choices):
        choices = ()
    elif isinstance(answer, str) and not isinstance(choices, str):
        answer = _named_choice(answer, choices)
    else:
        answer = labelled(answer)
    return Parts(stem_of(row), choices, answer, row.get("subject"), accepted_answers(row))


def _named_choice(answer: str, choices: Any) -> int:
    texts = [choice.strip() if isinstance(choice, str) else choice for choice in choices]
    if answer.strip() in texts:
        return texts.index(answer.strip())
    raise InputError(
        f"answer and choices contradict: {short(labelled(answer))} is none of the choices; "
        "give the text of one, or its index as a whole number (0 = the first)"
    )


def _mmlu_pro(row: Fields) -> Parts:
    return Parts(row["question"], row["options"], labelled(row["answer_index"]), row.get("category"))


def _labelled_choices(row: Fields) -> Parts:
    stem = row["question_stem"] if "question_stem" in row else row["question"]
    choices = row["choices"]
    if not isinstance(choices, Mapping) or not {"text", "label"} <= set(choices):
        raise InputError("choices must hold text and label, since the row has an answerKey")
    return Parts(stem, choices["text"], answer_in(row["answerKey"], choices["label"]))


def _hellaswag(row: Fields) -> Parts:
    second = str(row["ctx_b"]).strip()
    context = _without_brackets(f"{row['ctx_a']} {second[:1].upper()}{second[1:]}")
    endings = [_without_brackets(ending) for ending in row["endings"]]
    label = row["activity_label"]
    return Parts(f"{label}: {context}", endings, answer_index(row["label"], ()), label)


def _without_brackets(text: Any) -> str:
    """HellaSwag's WikiHow rows carry "[title]", "[step]" and the like: a title ends a sentence, the rest go."""
    text = re.sub(r"\s*\[title\]", ".", str(text).strip())
    return re.sub(r"\s+", " ", re.sub(r"\[.*?\]", "", text)).removeprefix(".").strip()


def _piqa(row: Fields) -> Parts:
    return Parts(row["goal"], [row["sol1"], row["sol2"]], answer_index(row["label"], ()))


def _winogrande(row: Fields) -> Parts:
    return Parts(row["sentence"], [row["option1"], row["option2"]], answer_in(row["answer"], ["1", "2"]))


def _sciq(row: Fields) -> Parts:
    support = str(row.get("support") or "").strip()
    stem = f"{support}\n{row['question']}" if support else row["question"]
    return Parts(stem, *answer_placed(row["correct_answer"], [row[f"distractor{number}"] for number in (1, 2, 3)]))


def _truthfulqa(row: Fields) -> Parts:
    choices, labels = list(row["mc1_targets"]["choices"]), list(row["mc1_targets"]["labels"])
    if labels.count(1) != 1 or len(labels) != len(choices):
        raise InputError("mc1_targets must label exactly one choice with 1")
    right = choices.pop(labels.index(1))
    return Parts(row["question"], *answer_placed(right, choices))


class Layout(NamedTuple):
    """A known shape of rows: the fields by which it is recognised, what must hold of them, and what reads them."""

    name: str
    fields: frozenset[str]
    read: Callable[[Fields], Parts]
    fits: Callable[[Fields], bool]


def _layout(
    name: str, fields: str, read: Callable[[Fields], Parts], fits: Callable[[Fields], bool] = lambda row: True
) -> Layout:
    return Layout(name, frozenset(fields.split()), read, fits)


def _has(field: str, *kinds: type) -> Callable[[Fields], bool]:
    return lambda row: isinstance(listed(row[field]), kinds)


LABELLED = _layout("labelled texts", "text label", texts.labelled_text)

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
    _layout("BoolQ", "question passage answer", texts.boolq, lambda row: texts.is_truth(row["answer"])),
    _layout("BoolQ of SuperGLUE", "question passage label", texts.boolq),
    _layout("SQuAD", "question answers", texts.squad, _has("answers", Mapping)),
    _layout("TriviaQA", "question answer", texts.triviaqa, _has("answer", Mapping)),
    _layout("NQ-open", "question answer", texts.several_answers, _has("answer", list, tuple)),
    _layout("GSM8K", "question answer", texts.gsm8k, lambda row: "####" in str(row["answer"])),
    _layout("own, open", "question answer", texts.own_open),
    _layout("own, open", "stem answer", texts.own_open),
    _layout("WebQuestions", "question answers", texts.several_answers, _has("answers", list, tuple)),
    _layout("WMT", "translation", texts.translation),
    _layout("chosen and rejected", "chosen rejected", texts.pair),
    _layout("statements", "statement label", texts.statement),
    LABELLED,
    _layout("LAMBADA", "text", texts.lambada, lambda row: row.keys() <= {"text", "domain", "id"}),
)


def layout_of(row: Fields) -> Layout | None:
    """The layout that reads a row; None if no known one does."""
    return next((layout for layout in LAYOUTS if layout.fields <= row.keys() and layout.fits(row)), None)


def read_parts(
    fields: Fields, columns: Mapping[str, Any] | None = None, names: Mapping[Any, str] | None = None
) -> Parts:
    """The parts of a question in a row, by its layout or as `columns` says; `names` are those of all labels.

    >>> read_parts({"goal": "Open it", "sol1": "pull", "sol2": "sing", "label": 0}).choices
    ['pull', 'sing']
    >>> read_parts({"question": "Capital of France?", "answer": "Paris"}).answer
    'Paris'
    """
    parts = _by_layout(fields, names) if columns is None else _by_columns(fields, columns)
    parts = parts._replace(choices=listed(parts.choices))
    if isinstance(parts.choices, Sequence) and not isinstance(parts.choices, str) and len(parts.choices) == 1:
        raise InputError("a single choice is nothing to choose from: leave choices out, and give the answer as a text")
    if parts.choices == () and not isinstance(parts.answer, str):
        raise InputError(f"without choices the answer must be a text, got {short(parts.answer)}")
    return parts


def _by_layout(row: Fields, names: Mapping[Any, str] | None = None) -> Parts:
    layout = layout_of(row)
    if layout is None and len(half := row.keys() & {"chosen", "rejected"}) == 1:
        raise InputError(f"no field {({'chosen', 'rejected'} - half).pop()}: a pair has a better and a worse answer")
    if layout is None:
        present = row.keys() | ({"question"} if "stem" in row else set())
        missing = [name for name in ("question", "choices", "answer") if name not in present]
        raise InputError(
            f"no field {' and no field '.join(missing)}, and no known dataset layout has the fields "
            f"{', '.join(map(str, row)) or '(none)'}: rename them, or say which is which with columns="
        )
    if names is not None and layout is not LABELLED:
        raise InputError("no text and label, which the first row has: put other rows into a source of their own")
    read = partial(texts.labelled_text, names=names) if layout is LABELLED else layout.read
    try:
        return read(row)
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"looks like {layout.name}, but its fields cannot be read: {error}") from None


def _by_columns(row: Fields, columns: Mapping[str, Any]) -> Parts:
    if "choices" not in columns:
        return _by_layout({name: _field(row, field) for name, field in columns.items() if name != "id"})
    names = columns["choices"]
    choices: Any = _field(row, names) if isinstance(names, str) else [_field(row, name) for name in names]
    if isinstance(choices, Mapping) and "text" in choices:
        choices = choices["text"]
    subject = _field(row, columns["subject"]) if "subject" in columns else None
    more = accepted_answers({"answers": _field(row, columns["answers"])}) if "answers" in columns else ()
    answer = answer_index(_field(row, columns["answer"]), choices)
    return Parts(_field(row, columns["question"]), choices, answer, subject, more)


def _field(row: Fields, name: str) -> Any:
    if name not in row:
        raise InputError(f"no field {name!r} (named in columns=); the row has: {', '.join(map(str, row))}")
    return row[name]


def check_columns(columns: Mapping[str, Any]) -> None:
    """InputError unless `columns` maps what it must and nothing that is not known."""
    known, needed = ("question", "choices", "answer", "answers", "subject", "id"), ("question", "answer")
    wrong = [name for name in columns if name not in known] if isinstance(columns, Mapping) else [columns]
    wrong += [name for name in needed if not wrong and name not in columns]
    if wrong:
        raise InputError(
            f"columns= must map question and answer (and may map choices, answers, subject and id) to field names; "
            f"{short(wrong[0])} is unknown or missing"
        )
