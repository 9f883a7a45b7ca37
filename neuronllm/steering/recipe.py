"""How factors are learned: what for, how fast, how long, and what holds them back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.checks import short
from ..common.errors import InputError
from ..engine.objectives import NEVER, AnyObjective, Objective, Readout, get_objective
from ..results.neurons import POSITIONS

GOALS = ("enhance", "degrade")
MOST = 4.0  # times: beyond it a factor is clamped


def _unlearned(read: Readout) -> Tensor:
    real = read.options > NEVER / 2
    chance = -real.sum(-1).to(read.options).log()
    logp = read.options.log_softmax(-1)
    alike = torch.where(real, logp, 0.0).sum(-1) / real.sum(-1)
    return torch.where(read.of_right(logp) > chance, alike, chance)


# The mean log-probability of all options, highest where they are as likely: not to know, which is no wrong answer that
# is always the same. A question whose right answer is no likelier than chance counts as such, or learning would begin
# with the model's confident mistakes and make it better.
UNLEARNED = Objective("not_known", _unlearned, least=2)


@dataclass(frozen=True)
class Goal:
    """What is raised, and what says whether that was worth it."""

    name: str
    objective: Objective

    @classmethod
    def of(cls, goal: AnyObjective, objective: AnyObjective | None) -> Goal:
        if isinstance(goal, str) and goal in GOALS:
            if goal == "degrade" and objective is not None:
                raise InputError(
                    'objective: goal="degrade" has one of its own; to raise something else, give it as goal='
                )
            return cls(goal, UNLEARNED if goal == "degrade" else get_objective(objective or "logp_options"))
        if objective is not None:
            raise InputError('objective: it says what goal="enhance" raises; give it as goal= alone')
        try:
            return cls("objective", get_objective(goal))
        except InputError:
            raise InputError(f"goal={short(goal)}: give {' or '.join(GOALS)}, or an objective to be raised") from None

    @property
    def by_accuracy(self) -> bool:
        """Whether accuracy decides if an edit is worth it; of an objective of the user, that itself does."""
        return self.name in GOALS

    @property
    def sign(self) -> int:
        """Which way accuracy is to go."""
        return -1 if self.name == "degrade" else 1


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training; the same in every seed.

    >>> Recipe().rate(256)
    0.1
    """

    positions: str = "all"
    steps: int = 16
    batch: int = 16  # questions of a step
    every: int = 4  # steps between looks at the validation questions
    lr: float | None = None
    l1: float = 0.0
    retain_weight: float = 1.0
    retain_batch: int = 2  # texts of a step
    signed: bool = False

    def rate(self, neurons: int) -> float:
        """How far Adam moves a factor in a step: few neurons have to move further than many."""
        return self.lr if self.lr is not None else round(0.1 * min(1.0, 256 / max(1, neurons)) ** 0.3, 4)

    def clamped(self, factors: Tensor) -> Tensor:
        return factors.clamp_(-MOST if self.signed else 0.0, MOST)

    def checked(self) -> Recipe:
        if self.positions not in POSITIONS:
            raise InputError(f"positions={self.positions!r}: known values are {', '.join(POSITIONS)}")
        for name in ("steps", "batch", "every", "retain_batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}: give a whole number, 1 or more")
        for name in ("l1", "retain_weight"):
            _check_number(name, getattr(self, name))
        if self.lr is not None:
            _check_number("lr", self.lr, above=True)
        return self

    def to_dict(self, neurons: int) -> dict[str, Any]:
        return asdict(self) | {"lr": self.rate(neurons)}


def _check_number(name: str, value: Any, above: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (above and value == 0):
        raise InputError(f"{name}={value!r}: give a number {'above 0' if above else '0 or more'}")
