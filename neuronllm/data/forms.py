"""In what form questions are answered, and how the length of an answer counts: decided here for every verb.

Letters: the options are shown, and a letter is asked for. Texts: what is scored is the answer in words. Each has a
wording of its own; rendering (rendering.py) puts a question into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..common.checks import short
from ..common.errors import InputError
from .prompts import Prompt, Questions
from .questions import Question
from .sources import LETTERS

ANSWERS = ("letters", "texts")
LENGTHS = ("sum", "tokens", "characters", "bytes", "unconditional")
TEXT_TEMPLATE = "cloze"  # of texts, where nobody asks for another


class Form(NamedTuple):
    """How questions are answered, and how the length of an answer counts; "own": as given prompts say themselves."""

    answers: str
    length: str

    @property
    def rendered(self) -> dict[str, str]:
        """What rendering is told of it."""
        return {"answers": self.answers, "length": "sum" if self.length == "own" else self.length}


def form_of(
    questions: Questions, answers: str | None = None, length: str | None = None, found: Mapping[str, Any] | None = None
) -> Form:
    """The form that is asked for; None is that of given prompts, else of `found`, a neuron set's provenance.

    Where that says nothing either, questions without choices are answered in texts, and so are those that say so
    (preference pairs), others in letters. Questions with words of their own say themselves which it is.

    >>> form_of([Question("Capital of France?", answer="Paris")])
    Form(answers='texts', length='sum')
    """
    check_known("answers", answers, ANSWERS)
    check_known("length", length, LENGTHS)
    listed = _listed(questions)
    if prompts := [question for question in listed if isinstance(question, Prompt)]:
        return _form_of_prompts(prompts, answers, length)
    free = next((question for question in listed if isinstance(question, Question) and question.open), None)
    if answers == "letters" and free is not None:
        raise InputError(
            f'answers="letters": {_called(listed, free)} has no choices to put letters before; '
            'ask for texts (answers="texts"), or draw wrong answers with nl.distractors (neuronllm distractors)'
        )
    before = _said(found or {}, "answers")
    own = worded_form(listed, answers)
    in_words = any(isinstance(question, Question) and question.in_words for question in listed)
    form = answers or own or ("texts" if free is not None else before) or ("texts" if in_words else "letters")
    if form == "letters":
        if length not in (None, "sum"):
            raise InputError(f'length="{length}": a letter has no length; it counts for answers="texts"')
        if many := next((question for question in listed if n_options(question) > len(LETTERS)), None):
            raise InputError(
                f"{_called(listed, many)} has {n_options(many)} choices, more than there are letters: "
                'ask for texts (answers="texts", --answers texts)'
            )
        return Form(form, "sum")
    return Form(form, length or (_said(found or {}, "length") if before == form else None) or "sum")


def worded_form(questions: Sequence[Question | Prompt], answers: str | None = None) -> str | None:
    """The form of questions that come in words of their own, None of others; they are not asked together.

    >>> worded_form([Question("Which is warm?", ("ice", "fire"), 1)]) is None
    True
    """
    wordings = [question.wording for question in questions if isinstance(question, Question)]
    worded = [wording for wording in wordings if wording is not None]
    if worded and len(worded) < len(wordings):
        raise InputError(
            "questions: some come in words of their own (nl.load_task) and some do not: ask one kind at a time"
        )
    form = "letters" if all(wording.letters for wording in worded) else "texts"
    if worded and answers == "letters" and form == "texts":
        raise InputError(
            'answers="letters": the questions come in words of their own, which ask for texts; leave it out'
        )
    return form if worded else None


def _form_of_prompts(prompts: Sequence[Prompt], answers: str | None, length: str | None) -> Form:
    """The form of prompts that were rendered already, which carry their lengths themselves."""
    forms = {prompt.form for prompt in prompts}
    if len(forms) > 1:
        raise InputError(
            "questions: some of the prompts are answered in letters and some in texts: give one kind at a time, "
            "or say texts= of every prompt"
        )
    form = forms.pop()
    if answers not in (None, form):
        raise InputError(f'answers="{answers}": the given prompts are answered in {form}; leave it out')
    if length is not None:
        raise InputError(f'length="{length}": given prompts have lengths and offsets of their own; leave it out')
    return Form(form, "own" if any(prompt.lengths or prompt.offsets for prompt in prompts) else "sum")


def check_known(name: str, value: Any, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise InputError(f"{name}={value!r}: known values are {', '.join(known)}")


def _said(provenance: Mapping[str, Any], name: str) -> Any:
    """What a provenance says, the latest word first; of a union what all of its parts say."""
    if (value := _latest(provenance, name)) is not None:
        return None if value == "own" else value
    united = {_said(part, name) for part in provenance.get("union", ())}
    return united.pop() if len(united) == 1 else None


def found_template(provenance: Mapping[str, Any], form: str) -> Any:
    """The template that neurons were found with, where that was for this form; before there were texts it was letters.

    >>> found_template({"template": "plain"}, "texts") is None
    True
    """
    return _latest(provenance, "template") if (_said(provenance, "answers") or "letters") == form else None


def _latest(provenance: Mapping[str, Any], name: str) -> Any:
    """What tuning or learning says, and else the search."""
    said = [made.get(name) for made in (provenance.get("tuned"), provenance.get("learned")) if made]
    return next((value for value in [*said, provenance.get(name)] if value is not None), None)


def is_worded(question: Any) -> bool:
    """Whether it is settled how it is shown: a prompt, or a question in words of its own."""
    return isinstance(question, Prompt) or (isinstance(question, Question) and question.wording is not None)


def check_unworded(questions: Questions, template: Any, orders: str | None = None) -> None:
    """Refuse a template, or orders, which would do nothing beside questions that are worded already.

    >>> check_unworded([Question("Which is warm?", ("ice", "fire"), 1)], "plain", "rotate")
    """
    for question in filter(is_worded, _listed(questions)):
        whose = "given prompts" if isinstance(question, Prompt) else "questions in words of their own (nl.load_task)"
        for name, value in (("template", template), ("orders", None if orders == "none" else orders)):
            if value is not None:
                raise InputError(
                    f"{name}={short(value)}: {whose} are worded already, each in its order; leave it out (--{name})"
                )


def wording_of(form: str, template: Any, default: Any = None) -> Any:
    """The template to ask in: what was asked for, else `default`, which is by the form where nothing else is known.

    >>> wording_of("texts", "chat")
    'chat:cloze'
    """
    if template is None:
        template = default
    if form == "letters":
        return template
    if template is None or template == "chat":
        return f"chat:{TEXT_TEMPLATE}" if template else TEXT_TEMPLATE
    return template


def _listed(questions: Any) -> list[Question | Prompt]:
    """The questions and prompts of what was given; rendering refuses anything else."""
    given = questions if isinstance(questions, Sequence) else ()
    return [question for question in given if isinstance(question, (Question, Prompt))]


def n_options(question: Question | Prompt) -> int:
    return len(question.option_ids) if isinstance(question, Prompt) else len(question.choices)


def one_option_each(questions: Questions) -> bool:
    """Whether every question has its right answer and no other."""
    listed = _listed(questions)
    return bool(listed) and all(n_options(question) == 1 for question in listed)


def check_choice(questions: Questions, what: str, instead: str = "") -> None:
    """Refuse questions with a single option where `what` compares options; `instead` says what does without."""
    for question in _listed(questions):
        if n_options(question) < 2:
            raise InputError(
                f"{what}: {_called(questions, question)} has only one option, and there must be two to compare: "
                f"draw wrong answers with nl.distractors (neuronllm distractors){instead}"
            )


def _called(questions: Sequence[Any], question: Question | Prompt) -> str:
    """A question in an error: by its id, else by its place."""
    name = question.id if isinstance(question, Question) else question.question_id
    return f"question {name!r}" if name else f"question {next(n for n, q in enumerate(questions) if q is question)}"


def option_name(form: str, number: int) -> str:
    """What to call a displayed option: by its letter, or by its place, counted from 1.

    >>> option_name("letters", 2), option_name("texts", 2)
    ('C', '3')
    """
    return LETTERS[number] if form == "letters" and number < len(LETTERS) else str(number + 1)
