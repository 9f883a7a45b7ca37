"""Knowledge neurons (arXiv 2104.08696): integrated gradients of P(answer), refined over a question's prompts.

A neuron keeps its score for a question if it exceeds 0.3 of the prompt's largest score in more than half of the
question's prompts. The points of the integral are those of the public code, both ends included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..engine.quadrature import integrated, steps_of
from .base import Collector, Method, above_share_of_max, in_range, question_mean

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..engine.base import Engine
    from ..engine.objectives import Objective


@dataclass(frozen=True)
class Knowledge(Method):
    """Integrated gradients of P(right), refined over a question's prompts.

    >>> Knowledge.options()
    ['steps', 'quadrature', 'threshold', 'share']
    """

    name: ClassVar[str] = "knowledge"
    objective: ClassVar[str] = "p_vocab"
    text_template: ClassVar[tuple[str, ...]] = ("cloze", "cloze_plain", "cloze_brief")
    integrates: ClassVar[bool] = True

    steps: int | None = None  # 20 of an equal rule
    quadrature: str = "endpoints"
    threshold: float = 0.3
    share: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", steps_of(self.quadrature, self.steps, usual=20))
        in_range("threshold", self.threshold, 0, 1)
        in_range("share", self.share, 0, 1)

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        return integrated(engine, prompts, objective, self.quadrature, self.steps)

    def collector(self, n_neurons: int) -> Collector:
        return Refined(n_neurons, self.threshold, self.share)


class Refined(Collector):
    """The mean over questions of what survives the refinement."""

    def __init__(self, n_neurons: int, threshold: float, share: float) -> None:
        super().__init__(n_neurons)
        self.threshold, self.share = threshold, share
        self.sum = torch.zeros(n_neurons, dtype=torch.float64)

    def add(self, scores: Tensor, right: Tensor | None = None) -> None:
        super().add(scores, right)
        above = above_share_of_max(scores, self.threshold).double().mean(0) > self.share
        self.sum += torch.where(above, question_mean(scores), 0.0)

    def values(self) -> Tensor:
        return self.sum / max(1, self.stats.count)
