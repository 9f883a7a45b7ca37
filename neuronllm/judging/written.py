"""Judge what a model writes: its own answers in words, held against the accepted ones, with and without an edit.

An answer is right if it holds an accepted one (inclusion); whether it is nothing else is counted beside it (exact
match). What is neither right nor an abstention nor empty is wrong: made up. Variants of a question count by their mean,
and a question is right where most of its variants are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..common.checks import short
from ..common.errors import InputError
from ..common.statistics import bootstrap_interval, mcnemar
from ..common.tables import show
from ..data.matching import ABSTENTIONS, abstains, check_comparable, includes, matches
from ..data.prompts import Prompt, Questions, group_by_question
from ..data.questions import Question
from ..engine.asking import Edit
from ..engine.writing import Writer
from ..model.random_sets import random_like
from ..results.neurons import NeuronSet
from ..results.shown import Shown
from .controls import all_among
from .learned import among_learned, as_learned, corrected, on_plain_text
from .report import (
    NAMED,
    Intervals,
    _control,
    _edit,
    _flipped,
    _interval,
    _name,
    among_learned_lines,
    holm_lines,
    named,
    plain_text_lines,
)
from .shown import report_shown
from .wording import prompts_to_write, warn_if_silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What is counted, and how it is called in print.
COUNTED = {
    "inclusion": "right (included)",
    "exact": "exact match",
    "wrong": "wrong",
    "abstained": "abstained",
    "empty": "nothing written",
}
WITH_INTERVAL = ("inclusion", "wrong")


@dataclass
class WrittenReport(Shown):
    """What `nl.evaluate(answers="generate")` returns; `print(report)` shows all of it, and `show()` as a page.

    Shares of the questions: `inclusion` holds an accepted answer, `exact` is one and nothing else, `abstained`
    declines, `empty` says nothing, and `wrong` is all the rest; but for `exact` they add up to 1. `written` is what the
    model wrote to each prompt, and `written_to` names the prompts.

    With an edit: all of these are the edited model's, and `base` holds them of the unedited one; `ci` has the intervals
    of "base", "edited" and "change"; `flips` counts the questions that changed sides by inclusion, `flipped` names
    them, and `mcnemar` tests them; `changed` has every answer that changed, before and after; `controls` describes
    random sets of the same size per layer.

    Of a learned edit: `learned`, `holm` and `plain_text` are as in `nl.Report`, with a p-value of the inclusion;
    `not_judged` names what cannot be compared here: the bias, since what is written has no options to add it to.
    """

    inclusion: float
    exact: float
    wrong: float
    abstained: float
    empty: float
    questions: int
    written: list[str]
    written_to: list[dict[str, Any]]
    ci: Intervals
    base: dict[str, Any] | None = None
    flips: dict[str, int] | None = None
    flipped: dict[str, list[dict[str, Any]]] | None = None
    mcnemar: float | None = None
    changed: list[dict[str, Any]] | None = None
    controls: dict[str, Any] | None = None
    learned: dict[str, Any] | None = None
    holm: dict[str, float] | None = None
    plain_text: dict[str, Any] | None = None
    not_judged: list[str] = field(default_factory=list)
    edit: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(_lines(self))

    def _shown(self) -> tuple[str, dict[str, Any]]:
        about = {"Edit": _edit(self.edit)} if self.base else {}
        cautions = plain_text_lines(self.plain_text)[1:]
        return report_shown(f"{self.questions} questions, answers written", about, cautions, self.to_dict(), COUNTED)


class Key:
    """The accepted answers of every prompt, and what counts as an abstention."""

    def __init__(self, questions: Questions, prompts: Sequence[Prompt], abstentions: Sequence[str] | None) -> None:
        self.groups = group_by_question(prompts)
        self.abstentions = _phrases(abstentions)
        self.accepted: list[tuple[str, ...]] = []
        for number, group in enumerate(self.groups):
            answers = _accepted(questions, number, group)
            name = group[0].question_id or f"number {number}"
            check_comparable(answers, f"question {name}: its accepted answers")
            self.accepted += [answers] * len(group)
        self.sizes = np.array([len(group) for group in self.groups])
        self.question = np.repeat(np.arange(len(self.sizes)), self.sizes).tolist()  # of every prompt

    def marks(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The share of each question's variants of which each thing that is counted is true."""
        pairs = list(zip(texts, self.accepted, strict=True))
        right = np.array([includes(text, answers) for text, answers in pairs])
        empty = np.array([not text for text in texts])
        declined = np.array([abstains(text, self.abstentions) for text in texts]) & ~right & ~empty
        found = {
            "inclusion": right,
            "exact": np.array([matches(text, answers) for text, answers in pairs]),
            "wrong": ~(right | declined | empty),
            "abstained": declined,
            "empty": empty,
        }
        return {name: np.bincount(self.question, each) / self.sizes for name, each in found.items()}


def judge_written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Questions,
    neurons: NeuronSet | None,
    change: Edit | None,
    edit: dict[str, Any],
    *,
    orders: str,
    template: Any,
    controls: int,
    abstentions: Sequence[str] | None,
    max_new_tokens: int,
    batch_size: int | str,
    seed: int,
    progress: bool,
) -> WrittenReport:
    """The judgement of what the model writes, under an edit that `edit` describes or as it is."""
    prompts = prompts_to_write(tokenizer, questions, orders, template)
    key = Key(questions, prompts, abstentions)
    write = Writer(model, tokenizer, prompts, max_new_tokens, batch_size)
    before = write(None, label="base", progress=progress)
    warn_if_silent(before)
    base = key.marks(before)
    names = named(questions, key.groups, np.ones(len(key.groups), dtype=bool))
    written_to = [{**names[n], "accepted": list(good)} for n, good in zip(key.question, key.accepted, strict=True)]
    about: dict[str, Any] = {"questions": len(key.groups), "written_to": written_to}
    if change is None:
        return WrittenReport(**_means(base), **about, written=before, ci=_intervals({"base": base}, seed))

    after = write(change, label=edit["mode"] or "edited", progress=progress)
    edited = key.marks(after)
    gained = {name: edited[name] - base[name] for name in base}
    ci = _intervals({"base": base, "edited": edited, "change": gained}, seed)
    report = WrittenReport(**_means(edited), **about, written=after, ci=ci, base=_means(base), edit=edit)
    was, now = base["inclusion"] > 0.5, edited["inclusion"] > 0.5
    flipped = {"right_to_wrong": was & ~now, "wrong_to_right": ~was & now}
    report.flips = {direction: int(which.sum()) for direction, which in flipped.items()}
    report.flipped = {direction: named(questions, key.groups, which) for direction, which in flipped.items()}
    report.mcnemar = mcnemar(*report.flips.values())
    report.changed = _changed(report, key, before, after)
    if controls:
        report.controls = _controls(write, key, change, edited, controls, seed, progress)
    if neurons is not None and "learned" in neurons.provenance:
        if neurons.controls is not None and as_learned(neurons, change):
            each = (neurons.controls, neurons, _means(edited), change.positions, progress, "inclusion")
            report.learned = among_learned(lambda other: _means(key.marks(write(other))), *each)
            report.holm = corrected(report.learned, report.mcnemar)
        report.plain_text = on_plain_text(model, tokenizer, change, seed) if tokenizer is not None else None
        report.not_judged = ["bias"] if "bias" in neurons.provenance["learned"] else []
    return report


def _phrases(abstentions: Sequence[str] | None) -> tuple[str, ...]:
    """The usual abstentions, and the user's own."""
    if isinstance(abstentions, str):
        raise InputError(f"abstentions={short(abstentions)}: give a list of texts")
    own = tuple(abstentions or ())
    check_comparable(own, "abstentions")
    return (*ABSTENTIONS, *own)


def _accepted(questions: Questions, number: int, group: Sequence[Prompt]) -> tuple[str, ...]:
    # Given questions have a group of prompts each, in their order; given prompts are grouped by their ids.
    question = questions[number]
    if isinstance(question, Question):
        return (question.choices[question.answer], *question.answers)
    prompt = group[0]
    if not prompt.texts:
        name = f"question {prompt.question_id!r}" if prompt.question_id else f"prompt {number}"
        raise InputError(
            f'{name}: answers="generate" needs the options of a prompt in words: give it texts=, or give questions'
        )
    return (prompt.texts[prompt.answer],)


def _changed(report: WrittenReport, key: Key, before: Sequence[str], after: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {**about, "before": was, "after": now, "right_before": includes(was, good), "right_after": includes(now, good)}
        for about, good, was, now in zip(report.written_to, key.accepted, before, after, strict=True)
        if was != now
    ]


def _means(marks: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: float(values.mean()) for name, values in marks.items()}


def _intervals(marks: dict[str, dict[str, np.ndarray]], seed: int) -> Intervals:
    """95 % bootstrap intervals over questions."""
    return {
        whose: {name: bootstrap_interval(values, seed) for name, values in found.items()}
        for whose, found in marks.items()
    }


def _controls(
    write: Writer, key: Key, change: Edit, edited: dict[str, np.ndarray], count: int, seed: int, progress: bool
) -> dict[str, Any]:
    """Where the edit stands among the same edit of random neurons."""
    generator = torch.Generator().manual_seed(seed)
    drawn: list[dict[str, Any]] = []
    for _ in tqdm(range(count), desc="random sets", disable=not progress, unit="set", leave=False):
        # No neurons: every random set is the same edit, none.
        other = change._replace(ids=random_like(change.ids, write.anatomy, generator))
        drawn.append(_means(key.marks(write(other)) if len(change.ids) else edited))
    return all_among(drawn, _means(edited))


# ---- in print ----


def _lines(report: WrittenReport) -> list[str]:
    base = report.base
    lines = [f"{report.questions} questions, answers written" + (f", {_edit(report.edit)}" if base else "")]
    for name, label in COUNTED.items():
        now = getattr(report, name)
        if name != "empty" or now or (base and base[name]):
            shown = f"{show(base[name])} -> {show(now)}" if base else show(now)
            lines.append(f"{label:<18}{shown}{_control(report.controls, name)}")
    for name in WITH_INTERVAL:
        intervals = ", ".join(_interval(whose, ci[name]) for whose, ci in report.ci.items())
        lines.append(f"{'95 % ' + name:<18}{intervals}")
    if flips := report.flips:
        lines.append(
            f"flips {flips['right_to_wrong']} right to wrong, {flips['wrong_to_right']} wrong to right (by inclusion), "
            f"McNemar p = {show(report.mcnemar)}"
        )
        lines += _flipped(report.flipped or {})
    return lines + _refutations(report) + _sample(report)


def _refutations(report: WrittenReport) -> list[str]:
    """What else would do what the edit does, and what the edit does to other texts."""
    now = {name: getattr(report, name) for name in WITH_INTERVAL}
    lines = among_learned_lines(report.learned or {}, now, {name: COUNTED[name] for name in WITH_INTERVAL})
    if "bias" in report.not_judged:
        lines.append(f"{'a bias alone':<18}not judged: what is written has no options to add it to")
    return lines + holm_lines(report.holm) + plain_text_lines(report.plain_text)


def _sample(report: WrittenReport) -> list[str]:
    """A few answers; where there was an edit a few that changed, those that changed sides first."""
    if report.changed is None:
        pairs = zip(report.written_to[:NAMED], report.written[:NAMED], strict=True)
        return ["written:", *(f"  {_name(about)}: {short(text)}" for about, text in pairs)]
    lines = [f"answers changed: {len(report.changed)} of {len(report.written)}"]
    flipped_first = sorted(report.changed, key=lambda each: each["right_before"] == each["right_after"])
    for each in flipped_first[: 2 * NAMED]:
        lines.append(f"  {_name(each)}: {short(each['before'])} -> {short(each['after'])}")
    return lines
