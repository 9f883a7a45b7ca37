"""Gradient times activation, h * dF/dh: one forward and one backward pass for every neuron of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from .base import Method

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..engine.base import Engine
    from ..engine.objectives import Objective


@dataclass(frozen=True)
class Gradient(Method):
    """h dF/dh.

    >>> Gradient.options()
    []
    """

    name: ClassVar[str] = "gradient"
    positions: ClassVar[tuple[str, ...]] = ("answer", "all")

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        return engine.gradients(prompts, objective, positions=positions)

    def question_scores(
        self, engine: Engine, prompts: Sequence[Prompt], sizes: Sequence[int], objective: Objective
    ) -> Tensor | None:
        return engine.question_gradients(prompts, sizes, objective)
