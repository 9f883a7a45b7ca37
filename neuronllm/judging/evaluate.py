"""Judge a model on questions, with and without an edit, beside random neuron sets of the same size per layer.

Accuracy alone hides two ways to fool oneself: a model that answers one letter whatever is asked, and an effect that any
random edit has. So every report shows the histogram of predicted letters, letter-balanced accuracy, confidence
intervals by bootstrap over questions, McNemar's exact test on flipped questions, and percentiles of random controls.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.errors import InputError
from ..common.statistics import bootstrap_interval, mcnemar, percent_of, relative_change
from ..data.prompts import Prompt, Questions, as_prompts, group_by_question
from ..engine.answers import Edit, Questionnaire, answered_right
from ..model.anatomy import Anatomy
from ..results.neurons import NeuronSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
POSITIONS = ("answer", "all")
ENOUGH_CONTROLS = 20


class Answers:
    """How a model answered prompts: option log-probabilities and everything that follows from them."""

    def __init__(self, prompts: Sequence[Prompt], logprobs: Tensor) -> None:
        self.groups = group_by_question(prompts)
        self.logprobs = logprobs
        self.right_letter = np.array([p.answer for p in prompts])
        self.letter = logprobs.argmax(-1).numpy()
        self.right = self.letter == self.right_letter
        self.p_right = logprobs.exp()[torch.arange(len(prompts)), torch.from_numpy(self.right_letter)].double().numpy()
        self.question_right = answered_right(logprobs, self.groups).numpy()

    def by_question(self, values: np.ndarray) -> np.ndarray:
        """The mean of prompts' values over the variants of each question."""
        sizes = np.array([len(group) for group in self.groups])
        return np.add.reduceat(values.astype(float), np.cumsum(sizes) - sizes) / sizes

    @property
    def accuracy(self) -> float:
        return float(self.by_question(self.right).mean())

    @property
    def balanced_accuracy(self) -> float:
        """The mean over letters of the accuracy where that letter is right."""
        return float(np.mean([self.right[self.right_letter == n].mean() for n in np.unique(self.right_letter)]))

    @property
    def mean_p_right(self) -> float:
        return float(self.by_question(self.p_right).mean())

    @property
    def letters(self) -> dict[str, float]:
        """Share of the prompts answered with each letter."""
        share = np.bincount(self.letter, minlength=self.logprobs.shape[1]) / len(self.letter)
        return {LETTERS[n]: float(s) for n, s in enumerate(share)}

    @property
    def collapsed(self) -> bool:
        """True if the predicted letters are more than half of the way to one constant letter."""
        predicted = np.bincount(self.letter, minlength=self.logprobs.shape[1]) / len(self.letter)
        right = np.bincount(self.right_letter, minlength=self.logprobs.shape[1]) / len(self.letter)
        excess = predicted - right
        letter = excess.argmax()
        return bool(excess[letter] > (1 - right[letter]) / 2)

    def summary(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "p_right": self.mean_p_right,
            "letters": self.letters,
            "collapsed": self.collapsed,
        }


@dataclass
class Report:
    """What `nl.evaluate` returns; `print(report)` shows all of it.

    Without neurons, only the first five fields, `ci` and `questions` say something.

    With an edit: `base` holds the same numbers of the unedited model; `rac` and `rcc` are the signed relative changes
    of accuracy and of the right option's mean probability; `flips` counts questions; `pcr` is the change on these
    questions over the change on unrelated ones; `controls` describes random sets of the same size per layer.
    """

    accuracy: float
    balanced_accuracy: float
    p_right: float
    letters: dict[str, float]
    collapsed: bool
    questions: int
    ci: dict[str, tuple[float, float]]
    base: dict[str, Any] | None = None
    rac: float | None = None
    rcc: float | None = None
    flips: dict[str, int] | None = None
    mcnemar: float | None = None
    pcr: float | None = None
    controls: dict[str, Any] | None = None
    edit: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)

    def __str__(self) -> str:
        from ..common.tables import report_lines

        return "\n".join(report_lines(self))


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Questions,
    neurons: NeuronSet | None = None,
    mode: str | None = None,
    good: float | None = None,
    bad: float | None = None,
    positions: str | None = None,
    controls: int = 20,
    *,
    unrelated: Questions | None = None,
    orders: str = "none",
    template: str | list[str] | None = None,
    batch_size: int | str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Accuracy and more on questions; with `neurons`, of the edited model beside the base model and random controls.

    mode: "enhance", "degrade" or "tuned" (what `nl.tune` chose); or give the factors good= and bad= (one alone leaves
    the other role as it is). positions: "answer" (default) or "all". unrelated: questions for the PCR. orders: the
    questions as written by default; "rotate" asks each with every order of its choices.

    >>> nl.evaluate(model, tokenizer, questions, neurons, mode="degrade", positions="all")   # doctest: +SKIP
    """
    if positions is not None and positions not in POSITIONS:
        raise InputError(f"positions={positions!r}: known values are {', '.join(POSITIONS)}")
    if isinstance(controls, bool) or not isinstance(controls, int) or controls < 0:
        raise InputError(f"controls={controls!r}: give a whole number, 0 or more")
    change: Edit | None = None
    edit: dict[str, Any] = {}
    if neurons is not None:
        if controls < ENOUGH_CONTROLS:
            few = f"controls={controls}: with fewer than {ENOUGH_CONTROLS} random sets their band says little"
            warnings.warn(few, stacklevel=2)
        change, edit = _planned(model, neurons, mode, good, bad, positions)
    elif mode or good is not None or bad is not None or unrelated is not None:
        raise InputError("neurons=None: mode, good, bad and unrelated need a neuron set")
    template = template_of(neurons, template)
    prompts = as_prompts(tokenizer, questions, orders, template)
    warn_if_one_letter(prompts)
    ask = Asker(model, prompts, batch_size)
    base = ask(None, "base", progress)
    if change is None:
        return Report(**base.summary(), questions=len(base.groups), ci=_intervals(base, None, seed))

    edited = ask(change, edit["mode"] or "edited", progress)
    report = Report(
        **edited.summary(), questions=len(edited.groups), ci=_intervals(base, edited, seed), base=base.summary()
    )
    report.edit = edit
    report.rac = relative_change(base.accuracy, edited.accuracy)
    report.rcc = relative_change(base.mean_p_right, edited.mean_p_right)
    lost, won = base.question_right & ~edited.question_right, ~base.question_right & edited.question_right
    report.flips = {"right_to_wrong": int(lost.sum()), "wrong_to_right": int(won.sum())}
    report.mcnemar = mcnemar(int(lost.sum()), int(won.sum()))
    if unrelated is not None:
        other = Asker(model, as_prompts(tokenizer, unrelated, orders, template), batch_size)
        report.pcr = _pcr(base, edited, other(None, "unrelated", progress), other(change, "unrelated", progress))
    if controls:
        report.controls = _controls(ask, change, edited, controls, seed, progress)
    if edited.collapsed:
        top = max(edited.letters, key=lambda letter: edited.letters[letter])
        warnings.warn(
            f"letter collapse: the edited model answers {top} in {edited.letters[top]:.0%} of the prompts; "
            "its accuracy says little",
            stacklevel=2,
        )
    return report


def _planned(
    model: PreTrainedModel, neurons: NeuronSet, mode: str | None, good: Any, bad: Any, positions: str | None
) -> tuple[Edit, dict[str, Any]]:
    """The edit that was asked for, and its description."""
    good, bad, tuned_positions = neurons.factors(mode, good, bad)
    positions = positions or tuned_positions or "answer"
    change = Edit(*neurons.edits(model, good, bad), positions)
    mode = "tuned" if tuned_positions else mode
    return change, {"mode": mode, "good": good, "bad": bad, "positions": positions, "neurons": len(change.ids)}


def template_of(neurons: NeuronSet | None, template: Any) -> Any:
    """The template asked for, else the one that the neurons were found with: they are judged as they were chosen."""
    if template is None and neurons is not None:
        return neurons.provenance.get("template")
    return template


def warn_if_one_letter(prompts: Sequence[Prompt]) -> None:
    """Where one letter is nearly always right, liking that letter looks like knowledge."""
    shares = np.bincount([p.answer for p in prompts]) / len(prompts)
    if len(prompts) > 1 and shares.max() > 0.8:
        warnings.warn(
            f"{LETTERS[shares.argmax()]} is the right letter of {shares.max():.0%} of the prompts, so a model that "
            'likes this letter looks right; ask with orders="rotate" (--orders rotate)',
            stacklevel=3,
        )


class Asker:
    """The same prompts asked again and again, under different edits."""

    def __init__(self, model: PreTrainedModel, prompts: list[Prompt], batch_size: int | str) -> None:
        self.model, self.prompts = model, prompts
        self.anatomy = Anatomy.of(model)
        self._ask = Questionnaire(model, prompts, batch_size=batch_size)

    def __call__(self, change: Edit | None, label: str = "", progress: bool = False) -> Answers:
        return Answers(self.prompts, self._ask(change, anatomy=self.anatomy, progress=progress, label=label))


def random_like(ids: Tensor, anatomy: Anatomy, generator: torch.Generator) -> Tensor:
    """As many random neurons in each block, and of each expert, as `ids` has there, in the same order of blocks."""
    where, drawn = anatomy.site_of(ids), torch.empty_like(ids)
    widths = torch.tensor([site.width for site in anatomy.sites])[where]
    # The first neuron of the block, or of the expert, that each id lies in.
    first = ids - (ids - anatomy.offsets[where]) % widths
    for start in first.unique().tolist():
        here = first == start
        picked = torch.randperm(int(widths[here][0]), generator=generator)[: int(here.sum())]
        drawn[here] = picked + start
    return drawn


def _controls(ask: Asker, change: Edit, edited: Answers, count: int, seed: int, progress: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, list[float]] = {"accuracy": [], "balanced_accuracy": [], "p_right": []}
    for _ in tqdm(range(count), desc="random sets", disable=not progress, unit="set", leave=False):
        # No neurons: every random set is the same edit, none.
        other = change._replace(ids=random_like(change.ids, ask.anatomy, generator))
        answers = ask(other) if len(change.ids) else edited
        for name, value in (("accuracy", answers.accuracy), ("p_right", answers.mean_p_right)):
            values[name].append(value)
        values["balanced_accuracy"].append(answers.balanced_accuracy)
    own = {"accuracy": edited.accuracy, "balanced_accuracy": edited.balanced_accuracy, "p_right": edited.mean_p_right}
    described = {}
    for name, drawn in values.items():
        low, middle, high = np.percentile(drawn, [2.5, 50, 97.5])
        described[name] = {
            "p2.5": float(low),
            "p50": float(middle),
            "p97.5": float(high),
            "percentile_of_edit": percent_of(drawn, own[name]),
        }
    return {"sets": count, **described}


def _intervals(base: Answers, edited: Answers | None, seed: int) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over questions; changes are paired."""
    now = edited or base
    right, p_right = now.by_question(now.right), now.by_question(now.p_right)
    intervals = {"accuracy": bootstrap_interval(right, seed), "p_right": bootstrap_interval(p_right, seed)}
    if edited is not None:
        before, p_before = base.by_question(base.right), base.by_question(base.p_right)
        intervals["accuracy_change"] = bootstrap_interval(right - before, seed)
        intervals["p_right_change"] = bootstrap_interval(p_right - p_before, seed)
    return intervals


def _pcr(base: Answers, edited: Answers, other_base: Answers, other_edited: Answers) -> float | None:
    """|mean relative change of P(right) here| / |the same on unrelated questions|; None if the latter is 0."""

    def change(before: Answers, after: Answers) -> float:
        return abs(float(((after.p_right - before.p_right) / before.p_right).mean()))

    elsewhere = change(other_base, other_edited)
    return change(base, edited) / elsewhere if elsewhere else None
