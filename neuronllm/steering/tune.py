"""Choose how hard to steer: how many neurons, which factors, which positions, on a validation split.

A coordinate search, because the full grid is large and each point asks every question once:

1. For each of the positions and sizes k: the k best and k worst neurons, under a few plain pairs of factors.
2. From the best point, one coordinate at a time (factor of the good, factor of the bad, number of each), until
   nothing improves.

"No edit" takes part, and wins unless the best edit gains more than `margin` standard errors over it, question by
question: the best of a hundred edits answers a few more questions right by luck alone. Edits that tie are ordered by
the right option's mean probability. The split that the choice was made on says too much of it: report on another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.errors import InputError
from ..data.prompts import Questions
from ..data.seen import packed
from ..engine.asking import Asker, Edit
from ..judging.asking import Asking, warn_if_leaning, warn_if_one_sided
from ..judging.gains import Gain, check_margin
from ..model.bridged import plain_model
from ..results.answers import Answers
from ..results.factors import ROLES, Steering
from ..results.neurons import POSITIONS, NeuronSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
STARTS = ((2.0, 0.0), (1.5, 0.5), (1.0, 0.0), (1.0, 0.5), (1.5, 1.0))  # factors of (good, bad)
CRITERIA = ("accuracy", "p_right")
Pair: TypeAlias = "tuple[float | None, float | None]"  # factors of (good, bad); None: each neuron's own


class Point(NamedTuple):
    """A way to steer: the first k neurons of each role, their factors (None: each neuron's own), and where."""

    k_good: int
    k_bad: int
    good: float | None
    bad: float | None
    positions: str

    @property
    def steering(self) -> Steering:
        own = tuple(role for role in ROLES if getattr(self, role) is None)
        return Steering(None, self.good, self.bad, own)


NO_EDIT = Point(0, 0, 1.0, 1.0, "all")


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    neurons: NeuronSet,
    questions: Questions,
    *,
    ks: Sequence[int] | None = None,
    factors: Sequence[float] = FACTORS,
    positions: Sequence[str] | str | None = None,
    criterion: str = "accuracy",
    margin: float = 2.0,
    orders: str = "none",
    template: str | list[str] | None = None,
    answers: str | None = None,
    length: str | None = None,
    batch_size: int | str = "auto",
    progress: bool = True,
) -> NeuronSet:
    """The neurons to keep and how to steer with them, chosen on validation questions.

    Returns a neuron set whose `.tuned` holds the factors, the positions and the whole curve that was looked at;
    `.apply(model)`, `nl.evaluate(..., mode="tuned")` and `nl.bake` use it. It is empty where no edit was best.
    positions: those to try, "all" and "answer"; by default those that the set was found with ("all" where it does not
    say), and the tuned set is judged and lived with at the chosen ones. Where neurons have factors of their own, these
    are tried beside the factors of the roles; a role whose own factors won keeps them. answers, length: in letters or
    in texts, as in `nl.evaluate`; by default as the set was found.

    >>> tuned = nl.tune(model, tokenizer, neurons, validation)              # doctest: +SKIP
    >>> nl.evaluate(model, tokenizer, test, tuned, mode="tuned")            # doctest: +SKIP
    """
    model = plain_model(model)
    positions = (neurons.positions or "all",) if positions is None else positions
    positions = (positions,) if isinstance(positions, str) else positions
    _check(ks, factors, positions, criterion)
    check_margin(margin)
    asking = Asking.of(questions, neurons.provenance, orders, template, answers, length)
    prompts = asking.prompts(model, tokenizer, questions)
    warn_if_one_sided(prompts)
    search = _Search(Asker(model, prompts, batch_size), neurons, criterion, progress)
    warn_if_leaning(search.base)
    sizes = {role: int((neurons.role == role).sum()) for role in ("good", "bad")}
    ks = sorted({min(k, max(sizes.values())) for k in ks or _doubling(max(sizes.values()))})

    pairs: list[Pair] = [*STARTS]
    tries: list[float | None] = [*factors]
    if neurons.factor is not None:
        pairs.insert(0, (None, None))
        tries.insert(0, None)
    best = search.best(NO_EDIT, _starts(ks, sizes, positions, pairs))
    while best != NO_EDIT:
        better = search.best(best, _neighbours(best, ks, sizes, tries))
        if better == best:
            break
        best = better
    search.close()
    gain = search.gain(best)
    if not gain.worth(margin):
        best = NO_EDIT
    chosen = neurons.top(best.k_good if best.good != 1 else 0, best.k_bad if best.bad != 1 else 0)
    tuned = {**best._asdict(), "criterion": criterion, "questions": len(search.base.groups), "curve": search.curve()}
    tuned |= {"margin": margin, "best_gain": gain.mean, "best_gain_stderr": gain.stderr, **asking.form._asdict()}
    tuned["seen"] = packed(questions)
    return replace(chosen, provenance={**neurons.provenance, "tuned": tuned}, factor=_kept(chosen, best))


def _kept(chosen: NeuronSet, best: Point) -> Tensor | None:
    """The own factors of the roles that were best with them; the others have the factor of their role now."""
    if chosen.factor is None:
        return None
    keeps = [getattr(best, role) is None for role in chosen.role.tolist()]
    return chosen.factor.masked_fill(~torch.tensor(keeps, dtype=torch.bool), math.nan)


class _Search:
    """Measures points once each and remembers them."""

    def __init__(self, ask: Asker, neurons: NeuronSet, criterion: str, progress: bool) -> None:
        self.ask, self.neurons, self.criterion = ask, neurons, criterion
        self.bar = tqdm(desc="tuning", disable=not progress, unit="edit", leave=False)
        self.base = ask(None)
        self.seen: dict[Point, Answers] = {NO_EDIT: self.base}

    def best(self, current: Point, points: Iterator[Point]) -> Point:
        """The best of the current point and others; the current one wins ties."""
        for point in points:
            if point not in self.seen:
                self.seen[point] = self._measure(point)
            if self._value(point) > self._value(current):
                current = point
        return current

    def _measure(self, point: Point) -> Answers:
        subset = self.neurons.top(point.k_good, point.k_bad)
        self.bar.update()
        return self.ask(Edit(*subset.edits(self.ask.model, point.steering), point.positions))

    def _value(self, point: Point) -> tuple[float, float]:
        """Compared in order. An edit that collapses to one option, or gains nothing over no edit, is never better."""
        answers = self.seen[point]
        if answers.collapsed and not self.base.collapsed:
            return -1.0, 0.0
        first = answers.accuracy if self.criterion == "accuracy" else answers.mean_p_right
        return round(first, 9), 1.0 if point == NO_EDIT else answers.mean_p_right

    def gain(self, point: Point) -> Gain:
        """What the point gains over no edit."""
        after, before = self.seen[point], self.base
        if self.criterion == "accuracy":
            return Gain.of(after.by_question(after.right), before.by_question(before.right))
        return Gain.of(after.by_question(after.p_right), before.by_question(before.p_right))

    def curve(self) -> list[dict[str, Any]]:
        return [
            {**point._asdict(), "accuracy": answers.accuracy, "p_right": answers.mean_p_right}
            for point, answers in self.seen.items()
        ]

    def close(self) -> None:
        self.bar.close()


def _starts(
    ks: Sequence[int], sizes: dict[str, int], positions: Sequence[str], pairs: Sequence[Pair]
) -> Iterator[Point]:
    for where in positions:
        for k in ks:
            for good, bad in pairs:
                yield Point(min(k, sizes["good"]), min(k, sizes["bad"]), good, bad, where)


def _neighbours(
    point: Point, ks: Sequence[int], sizes: dict[str, int], factors: Sequence[float | None]
) -> Iterator[Point]:
    """Points that differ in one coordinate."""
    for factor in factors:
        yield point._replace(good=factor)
    for factor in factors:
        yield point._replace(bad=factor)
    for k in ks:
        yield point._replace(k_good=min(k, sizes["good"]))
        yield point._replace(k_bad=min(k, sizes["bad"]))


def _doubling(largest: int) -> list[int]:
    return [k for k in (2**n for n in range(largest.bit_length())) if k < largest] + [largest]


def _check(ks: Sequence[int] | None, factors: Sequence[float], positions: Sequence[str], criterion: str) -> None:
    if any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks or ()):
        raise InputError(f"ks={ks!r}: give a list of whole numbers, 1 or more")
    if not factors or any(isinstance(f, bool) or not isinstance(f, (int, float)) for f in factors):
        raise InputError(f"factors={factors!r}: give a list of numbers")
    if not all(math.isfinite(factor) for factor in factors):
        raise InputError(f"factors={factors!r}: every factor must be finite")
    if not positions:
        raise InputError(f"positions={positions!r}: give one or more of {', '.join(POSITIONS)}")
    for where in positions:
        if where not in POSITIONS:
            raise InputError(f"positions={where!r}: known values are {', '.join(POSITIONS)}")
    if criterion not in CRITERIA:
        raise InputError(f"criterion={criterion!r}: known values are {', '.join(CRITERIA)}")
