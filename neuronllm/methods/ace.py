"""ACE, the contrastive scores of NeuronLLM (arXiv 2601.04548).

1. A question is asked several times with its options in other orders.
2. Each prompt: integrated gradients of the log-probability of the right option among the options, a layer's whole h
   scaled together (the gradient is the right option's minus the probability-weighted mean of all options').
3. A question's score is the mean over its variants, a task's the mean over questions.
4. A mask drops neurons that do not keep their sign.

The paper's printed mask is not known to us; "ambiguous" is our reading of it (only top and bottom z neurons of a
question count, and neurons in some top and some bottom are dropped). It deletes ever more neurons as questions are
added, so the default is our own "consistent": a neuron keeps its score if at least a share tau of the questions agree
with its sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..engine.quadrature import integrated, steps_of
from ..select import extremes
from .base import Collector, Method, in_range, one_of, question_mean

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..engine.base import Engine
    from ..engine.objectives import Objective

MASKS = ("consistent", "ambiguous", "none")


@dataclass(frozen=True)
class ACE(Method):
    """The contrastive scores of NeuronLLM: integrated gradients, masked by the agreement of questions.

    >>> ACE.options()
    ['steps', 'quadrature', 'mask', 'tau', 'z']
    """

    name: ClassVar[str] = "ace"
    integrates: ClassVar[bool] = True

    steps: int | None = None  # of an equal rule, 16 unless told otherwise
    quadrature: str | None = None  # midpoint where steps are given, else adaptive: as many points as a layer takes
    mask: str = "consistent"
    tau: float = 0.6  # mask="consistent": the share of questions that must agree with the mean's sign
    z: float = 0.01  # mask="ambiguous": neurons of a question's top and bottom, a share below 1, else a count

    def __post_init__(self) -> None:
        # What was left open is filled in, so that a provenance says which rule ran.
        rule = self.quadrature or ("adaptive" if self.steps is None else "midpoint")
        object.__setattr__(self, "steps", steps_of(rule, self.steps))
        object.__setattr__(self, "quadrature", rule)
        one_of("mask", self.mask, MASKS)
        in_range("tau", self.tau, 0, 1)
        in_range("z", self.z, 0, 2**62)

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        assert self.quadrature is not None
        return integrated(engine, prompts, objective, self.quadrature, self.steps)

    def collector(self, n_neurons: int) -> Collector:
        if self.mask == "ambiguous":
            return Unambiguous(n_neurons, self.z)
        return Consistent(n_neurons, self.tau if self.mask == "consistent" else 0.0)


class Consistent(Collector):
    """The mean, 0 for neurons whose sign fewer than a share tau of the questions agree with."""

    def __init__(self, n_neurons: int, tau: float) -> None:
        super().__init__(n_neurons)
        self.tau = tau

    def values(self) -> Tensor:
        return torch.where(self.stats.sign_consistency >= self.tau, self.stats.mean, 0.0)


class Unambiguous(Collector):
    """A question adds only its z highest and z lowest scores; neurons seen on both sides count 0."""

    def __init__(self, n_neurons: int, z: float) -> None:
        super().__init__(n_neurons)
        self.z = max(1, round(z * n_neurons) if z < 1 else int(z))
        self.sum = torch.zeros(n_neurons, dtype=torch.float64)
        self.good = torch.zeros(n_neurons, dtype=torch.bool)
        self.bad = torch.zeros(n_neurons, dtype=torch.bool)

    def add(self, scores: Tensor, right: Tensor | None = None) -> None:
        super().add(scores, right)
        score = question_mean(scores)
        ends = extremes(score, largest=self.z, smallest=self.z)
        self.good[ends.largest.indices] = True
        self.bad[ends.smallest.indices] = True
        chosen = torch.cat([ends.largest.indices, ends.smallest.indices]).unique()
        self.sum[chosen] += score[chosen]

    def values(self) -> Tensor:
        return torch.where(self.good & self.bad, 0.0, self.sum / max(1, self.stats.count))
