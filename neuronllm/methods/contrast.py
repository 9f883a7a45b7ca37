"""Contrast of activity (after CNA): mean h over prompts answered right minus mean h over prompts answered wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..common.errors import InputError
from ..results.streaming import Statistics
from .base import Collector, Method, Summary

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..engine.base import Engine
    from ..engine.objectives import Objective


@dataclass(frozen=True)
class Contrast(Method):
    """Mean h over prompts answered right minus wrong.

    >>> Contrast.options()
    []
    """

    name: ClassVar[str] = "contrast"
    positions: ClassVar[tuple[str, ...]] = ("answer", "all")
    objective: ClassVar[None] = None
    needs_answers: ClassVar[bool] = True

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        return engine.activations(prompts, positions)

    def collector(self, n_neurons: int) -> Collector:
        return RightMinusWrong(n_neurons)


class RightMinusWrong(Collector):
    """Two means over prompts; a sign over questions has no meaning here, so its consistency is NaN."""

    def __init__(self, n_neurons: int) -> None:
        super().__init__(n_neurons)
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
        stderr = (yes.stderr**2 + no.stderr**2).sqrt()
        return Summary(yes.mean - no.mean, stderr, torch.full_like(stderr, float("nan")))
