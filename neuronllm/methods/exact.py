"""The exact effect: F(clean) - F(with the neuron edited), every neuron really run. The judge of all other methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from .base import Method, in_range

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..engine.base import Engine
    from ..engine.objectives import Objective


@dataclass(frozen=True)
class Exact(Method):
    """F(clean) - F(neuron times factor), really run, at the answer position or at every token.

    >>> Exact.options()
    ['factor']
    """

    name: ClassVar[str] = "exact"
    positions: ClassVar[tuple[str, ...]] = ("answer", "all")
    expensive: ClassVar[bool] = True

    factor: float = 0.0  # 0 silences: + means the neuron helps

    def __post_init__(self) -> None:
        in_range("factor", self.factor, -1e6, 1e6)

    @property
    def default_positions(self) -> str:
        """The answer position: at all of them every neuron takes whole prompts, many times as long."""
        return "answer"

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        return engine.effects(prompts, objective, factor=self.factor, positions=positions)
