"""What was asked of editing facts, but for the model: every argument and its check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..attribution.request import Request
from ..common.checks import short
from ..common.errors import InputError
from ..data.forms import check_choice
from ..data.prompts import Questions
from ..data.questions import Question
from ..data.rendering import ORDERS
from ..engine.objectives import AnyObjective
from ..methods import Method
from ..select.results import checked_count
from .queries import check_single

HOW = ("boost", "suppress", "both", "learn")


@dataclass(frozen=True)
class FactRequest:
    """The arguments of `nl.edit_facts`, which says what each means."""

    to: Sequence[str | None] | None
    how: str | None
    paraphrases: Sequence[Sequence[str | Question]] | None
    unrelated: Questions | None
    background: Questions | None
    method: str | Method
    k: int
    factors: tuple[float, float]
    steps: int
    objective: AnyObjective | None
    positions: str | None
    orders: str
    template: str | list[str] | None
    answers: str | None
    length: str | None
    controls: int
    seed: int
    batch_size: int | str
    backend: str
    progress: bool
    options: Mapping[str, Any] = field(default_factory=dict)

    def checked(self, questions: Sequence[Question]) -> FactRequest:
        """Itself with one goal and one list of paraphrases a question, after refusing what cannot be done."""
        check_questions("questions", questions)
        check_choice(questions, "questions")
        if self.how is not None and self.how not in HOW:
            raise InputError(f"how={self.how!r}: known values are {', '.join(HOW)}")
        if self.orders not in ORDERS:
            raise InputError(f"orders={self.orders!r}: known values are {', '.join(ORDERS)}")
        for name in ("k", "steps"):
            if checked_count(name, getattr(self, name)) < 1:
                raise InputError(f"{name}=0: give a positive whole number")
        for name in ("controls", "seed"):
            checked_count(name, getattr(self, name))
        numbers = self.factors if isinstance(self.factors, Sequence) else ()
        if len(numbers) != 2 or not all(isinstance(f, (int, float)) and math.isfinite(f) for f in numbers):
            raise InputError(f"factors={short(self.factors)}: give two numbers, to boost by and to suppress by")
        check_single(self.search.checked(questions).how)
        to = self._listed("to", self.to, len(questions), None)
        paraphrases = self._listed("paraphrases", self.paraphrases, len(questions), ())
        for question, goal in zip(questions, to, strict=True):
            if goal is not None and goal not in question.choices:
                choices = ", ".join(question.choices)
                raise InputError(f"to={short(goal)}: no choice of question {name_of(question)}, which are {choices}")
        return replace(self, to=to, paraphrases=paraphrases)

    def _listed(self, name: str, given: Any, count: int, nothing: Any) -> list[Any]:
        if given is None:
            return [nothing] * count
        if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != count:
            raise InputError(f"{name}: give a list with one entry for each of the {count} questions")
        return list(given)

    @property
    def search(self) -> Request:
        """How neurons are found: in the method's own orders and words, unless words were asked for."""
        return Request(
            self.method,
            objective=self.objective,
            positions=self.positions,
            template=self.template,
            answers=self.answers,
            length=self.length,
            batch_size=self.batch_size,
            backend=self.backend,
            progress=self.progress,
            options=self.options,
        )


def check_questions(name: str, questions: Any) -> None:
    """Refuse what is no list of questions: prompts hold no text to be asked otherwise."""
    listed = questions if isinstance(questions, Sequence) and not isinstance(questions, str) else ()
    if not listed or not all(isinstance(question, Question) for question in listed):
        raise InputError(f"{name}: give a list of one or more questions (nl.Question, nl.load_questions)")


def name_of(question: Question) -> str:
    return short(question.id or question.stem)
