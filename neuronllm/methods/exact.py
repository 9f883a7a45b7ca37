"""The exact effect: F(clean) - F(with the neuron edited), every neuron really run. The judge of all other methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..common.checks import integer
from ..common.errors import InputError
from .base import Method, in_range

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..engine.base import Engine
    from ..engine.objectives import Objective

FULL = 1024  # neurons whose edits fill passes with the prompts of one question


@dataclass(frozen=True)
class Exact(Method):
    """F(clean) - F(neuron times factor), really run, at the answer position or at every token.

    With `top` only as many neurons are run as it takes to find that many of the best and of the worst.

    >>> Exact.options()
    ['factor', 'top', 'miss', 'budget', 'seed']
    """

    name: ClassVar[str] = "exact"
    positions: ClassVar[tuple[str, ...]] = ("answer", "all")
    expensive: ClassVar[bool] = True

    factor: float = 0.0  # 0 silences: + means the neuron helps
    top: int | None = None  # how many of the best and of the worst are wanted; None runs all neurons
    miss: float = 0.01  # with top: missed neurons that are put up with, as a share of top
    budget: int | None = None  # with top: neurons that are run at most
    seed: int = 0  # with top: of the random sample

    def __post_init__(self) -> None:
        in_range("factor", self.factor, -1e6, 1e6)
        for name, least in (("top", 1), ("budget", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and ((number := integer(value)) is None or not least <= number < 2**62):
                raise InputError(f"{name}={value!r}: give a whole number, {least} or more")
        in_range("miss", self.miss, 0, 1)
        if self.top is None and (self.budget is not None or self.miss != Exact.miss or self.seed != Exact.seed):
            given = next(name for name in ("budget", "miss", "seed") if getattr(self, name) != getattr(Exact, name))
            raise InputError(f"{given}={getattr(self, given)!r}: it needs top=, how many neurons are to be found")
        if self.top is not None and self.factor == 1:
            raise InputError("factor=1 with top=: it leaves every neuron as it is; give another one (0 silences)")
        if self.top is not None and self.budget is not None and self.budget < 2 * self.top:
            raise InputError(f"budget={self.budget}: give {2 * self.top} or more, top={self.top} neurons of each end")

    @property
    def default_positions(self) -> str:
        """The answer position: at all of them every neuron takes whole prompts, many times as long."""
        return "answer"

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        return engine.effects(prompts, objective, factor=self.factor, positions=positions)


@dataclass(frozen=True)
class Some(Exact):
    """The exact effects of some neurons, NaN for all others: a round of `top`."""

    ids: tuple[int, ...] = ()

    def one_by_one(self, positions: str) -> bool:
        return positions == "all" or len(self.ids) >= FULL

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        ids = torch.tensor(self.ids)
        found = engine.effects(prompts, objective, ids=ids, factor=self.factor, positions=positions)
        return found.new_full((len(prompts), engine.anatomy.n_neurons), float("nan")).index_copy_(1, ids, found)
