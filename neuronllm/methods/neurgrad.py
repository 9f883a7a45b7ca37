"""NeurGrad: the gradient of the right answer's probability times the sign of h, dP/dh * sign(h)."""

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
class NeurGrad(Method):
    """dF/dh sign(h).

    >>> NeurGrad.options()
    []
    """

    name: ClassVar[str] = "neurgrad"
    positions: ClassVar[tuple[str, ...]] = ("answer", "all")
    objective: ClassVar[str] = "p_vocab"

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        return engine.gradients(prompts, objective, positions=positions, weight="sign")

    def question_scores(
        self, engine: Engine, prompts: Sequence[Prompt], sizes: Sequence[int], objective: Objective
    ) -> Tensor | None:
        return engine.question_gradients(prompts, sizes, objective, weight="sign")
