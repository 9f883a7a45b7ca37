"""Plain activity: h, how often the gate is positive, or a share of what the FFN puts out. Forward passes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from .base import Method, one_of

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..engine.base import Engine
    from ..engine.objectives import Objective


@dataclass(frozen=True)
class Activation(Method):
    """h, or (statistic=) "frequency", how often its gate is positive, or "cett", the share of its FFN's output.

    >>> Activation.options()
    ['statistic']
    """

    name: ClassVar[str] = "activation"
    positions: ClassVar[tuple[str, ...]] = ("answer", "all")
    objective: ClassVar[None] = None

    statistic: str = "value"

    def __post_init__(self) -> None:
        one_of("statistic", self.statistic, ("value", "frequency", "cett"))

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        return engine.activations(prompts, positions, self.statistic)
