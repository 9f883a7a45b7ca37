"""Seeded random scores, the control that every method has to beat. The model is not asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..common.errors import InputError
from .base import Method, in_range

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..engine.base import Engine
    from ..engine.objectives import Objective


@dataclass(frozen=True)
class Random(Method):
    """Seeded normal numbers.

    >>> Random.options()
    ['seed']
    """

    name: ClassVar[str] = "random"
    positions: ClassVar[tuple[str, ...]] = ("answer", "all")
    objective: ClassVar[None] = None

    seed: int = 0

    def __post_init__(self) -> None:
        in_range("seed", self.seed, 0, 2**62)
        if not isinstance(self.seed, int):
            raise InputError(f"seed={self.seed!r}: give a whole number")

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(engine.anatomy.n_neurons, generator=generator).expand(len(prompts), -1)
