"""Contrast of activity (after CNA): h over prompts answered right minus wrong; and the same of any two groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..common.errors import InputError
from ..results.streaming import Statistics
from .base import Collector, Method, Summary, one_of

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..engine.base import Engine
    from ..engine.objectives import Objective

DIFFERENCES = ("mean", "t")


@dataclass(frozen=True)
class Contrast(Method):
    """h over prompts answered right minus wrong: the difference of the means, or Welch's t of it.

    >>> Contrast.options()
    ['statistic']
    """

    name: ClassVar[str] = "contrast"
    positions: ClassVar[tuple[str, ...]] = ("answer", "all")
    objective: ClassVar[None] = None
    needs_answers: ClassVar[bool] = True

    statistic: str = "mean"

    def __post_init__(self) -> None:
        one_of("statistic", self.statistic, DIFFERENCES)

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        return engine.activations(prompts, positions)

    def collector(self, n_neurons: int) -> Collector:
        return RightMinusWrong(n_neurons, self.statistic)


class RightMinusWrong(Collector):
    """Two means over prompts; a sign over questions has no meaning here, so its consistency is NaN."""

    def __init__(self, n_neurons: int, statistic: str = "mean") -> None:
        super().__init__(n_neurons)
        self.statistic = statistic
        self.right, self.wrong = Statistics(n_neurons), Statistics(n_neurons)

    def add(self, scores: Tensor, right: Tensor | None = None) -> None:
        super().add(scores, right)
        assert right is not None  # the driver asks the model: needs_answers
        for score, is_right in zip(scores, right.tolist(), strict=True):
            (self.right if is_right else self.wrong).add(score)

    def summary(self) -> Summary:
        yes, no = self.right, self.wrong
        if not yes.count or not no.count:
            side = "right" if yes.count else "wrong"
            raise InputError(
                f'method "contrast": all {yes.count + no.count} prompts were answered {side}; '
                "it needs prompts of both kinds, give more questions"
            )
        if self.statistic == "t" and min(yes.count, no.count) < 2:
            raise InputError(
                f'statistic="t": {yes.count} prompts were answered right and {no.count} wrong; it takes two of each '
                'kind to see how far they scatter, give more questions or use statistic="mean"'
            )
        return difference(yes, no, self.statistic)


def difference(yes: Statistics, no: Statistics, statistic: str) -> Summary:
    """The difference of two means and its standard error, or Welch's t: the one over the other."""
    means = yes.mean - no.mean
    stderr = (yes.stderr**2 + no.stderr**2).sqrt()
    nothing = torch.full_like(stderr, float("nan"))
    if statistic == "mean":
        return Summary(means, stderr, nothing)
    # Activity comes in float32 at best: what does not scatter at all is no surer than that, and never infinitely so.
    least = torch.finfo(torch.float32).eps * (yes.mean.abs() + no.mean.abs())
    t = torch.where(means == 0, 0, means / torch.maximum(stderr, least))
    return Summary(t, torch.ones_like(t), nothing)
