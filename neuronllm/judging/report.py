"""What a judgement says, as plain data and as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ..common.checks import short
from ..common.tables import show
from ..data.prompts import Prompt, Questions
from ..data.questions import Question
from ..results.factors import show_factor

# whose ("base", "edited", "change") -> of what ("accuracy", "p_right") -> 95 % interval
Intervals: TypeAlias = "dict[str, dict[str, tuple[float, float]]]"
NAMED = 3  # flipped questions of each direction that are printed


@dataclass
class Report:
    """What `nl.evaluate` returns; `print(report)` shows all of it.

    Without neurons, only the first five fields, `ci` and `questions` say something.

    With an edit: `base` holds the same numbers of the unedited model; `ci` has the intervals of "base", "edited" and
    "change"; `rac` and `rcc` are the signed relative changes of accuracy and of the right option's mean probability;
    `flips` counts the questions that changed sides, and `flipped` names them; `pcr` is the change on these questions
    over the change on unrelated ones; `controls` describes random sets of the same size per layer.
    """

    accuracy: float
    balanced_accuracy: float
    p_right: float
    letters: dict[str, float]
    collapsed: bool
    questions: int
    ci: Intervals
    base: dict[str, Any] | None = None
    rac: float | None = None
    rcc: float | None = None
    flips: dict[str, int] | None = None
    flipped: dict[str, list[dict[str, Any]]] | None = None
    mcnemar: float | None = None
    pcr: float | None = None
    controls: dict[str, Any] | None = None
    edit: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(report_lines(self))


def report_lines(report: Report) -> list[str]:
    """An evaluation as lines of text: raw values before and after, then what they amount to."""
    base = report.base
    lines = [f"{report.questions} questions" + (f", {_edit(report.edit)}" if base else "")]
    for name, label in (("accuracy", "accuracy"), ("balanced_accuracy", "letter-balanced"), ("p_right", "P(right)")):
        now = show(getattr(report, name))
        lines.append(
            f"{label:<18}" + (f"{show(base[name])} -> {now}" if base else now) + _control(report.controls, name)
        )
    lines.append(f"{'letters':<18}" + (f"{show(base['letters'])} -> " if base else "") + show(report.letters))
    for name, label in (("accuracy", "accuracy"), ("p_right", "P(right)")):
        intervals = ", ".join(_interval(whose, ci[name]) for whose, ci in report.ci.items())
        lines.append(f"{'95 % ' + label:<18}{intervals}")
    if base:
        lines.append(f"RAC {show(report.rac)}   RCC {show(report.rcc)}   PCR {show(report.pcr)}")
    if flips := report.flips:
        lines.append(
            f"flips {flips['right_to_wrong']} right to wrong, {flips['wrong_to_right']} wrong to right, "
            f"McNemar p = {show(report.mcnemar)}"
        )
        lines += _flipped(report.flipped or {})
    if report.collapsed:
        lines.append("letter collapse: the predictions lean on one letter, accuracy says little")
    return lines


def _edit(edit: dict[str, Any]) -> str:
    what = edit.get("mode") or "edited"
    good, bad = (f"{role} {show_factor(edit[role], edit['own'].get(role))}" for role in ("good", "bad"))
    text = f"{what}: {edit['neurons']} neurons, {good}, {bad}, positions {edit['positions']}"
    return text if edit["positions_from"] == "as asked for" else f"{text}, {edit['positions_from']}"


def _interval(whose: str, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{whose} {show(interval)}" if whose == "change" else f"{whose} {low:.3f} to {high:.3f}"


def named(questions: Questions, groups: Sequence[Sequence[Prompt]], which: np.ndarray) -> list[dict[str, Any]]:
    """The questions at which `which` is true: place in the list, id, and text, which given prompts do not have."""
    found = []
    for n in which.nonzero()[0].tolist():
        # Given questions have a group of prompts each, in their order; given prompts are grouped by their ids.
        question = questions[n]
        text = question.stem if isinstance(question, Question) else None
        found.append({"number": n, "id": groups[n][0].question_id, "question": text})
    return found


def _flipped(flipped: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A few of the questions that changed sides; `to_dict` has them all."""
    lines = []
    for direction, questions in flipped.items():
        if questions:
            shown = [_name(question) for question in questions[:NAMED]]
            more = [f"{len(questions) - NAMED} more"] if len(questions) > NAMED else []
            lines.append(f"  {direction.replace('_', ' ')}: " + "; ".join(shown + more))
    return lines


def _name(question: dict[str, Any]) -> str:
    name = question["id"] or f"number {question['number']}"
    return name if question["question"] is None else f"{name} {short(' '.join(question['question'].split()))}"


def _control(controls: dict[str, Any] | None, name: str) -> str:
    if not controls:
        return ""
    drawn = controls[name]
    return f"   ({controls['sets']} random sets: {drawn['p2.5']:.3f} to {drawn['p97.5']:.3f})"
