"""QRNCA, query-relevant neuron cluster attribution (arXiv 2406.10868).

1. Integrated gradients of P(right letter), for each of a question's prompts (three templates).
2. na = the sum over the prompts, normalised to sum 1 over all neurons.
3. The question's cluster = neurons above 0.2 of its largest score.
4. ica(n) = log(#clusters / (#clusters with n + 1)): neurons that every question shares count little.
5. Score = mean over questions of na, times ica; neurons in more than 30 % of the clusters are common and score 0.

The reference on screen is the paper. `compat="released-code"` follows what its public code does instead: the points of
the integral include both ends, the target is the bare letter's probability, the 0.2 threshold cuts each prompt before
the sum and the normaliser, what survives is rounded to six decimals, and no common neuron is ever dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.warning import warn
from ..engine.objectives import BARE_LETTER
from ..engine.quadrature import integrated, steps_of
from .base import Collector, Method, above_share_of_max, empty_counts, in_range, one_of

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..engine.base import Engine
    from ..engine.objectives import Objective

RELEASED = "released-code"


@dataclass(frozen=True)
class QRNCA(Method):
    """Integrated gradients of P(right), weighted by how few questions share a neuron.

    >>> QRNCA.options()
    ['steps', 'quadrature', 'threshold', 'common', 'compat']
    """

    name: ClassVar[str] = "qrnca"
    objective: ClassVar[str] = "p_vocab"
    orders: ClassVar[str] = "none"
    template: ClassVar[tuple[str, ...]] = ("default", "plain", "brief")
    text_template: ClassVar[tuple[str, ...]] = ("cloze", "cloze_plain", "cloze_brief")
    integrates: ClassVar[bool] = True

    steps: int | None = None  # 16 of an equal rule
    quadrature: str = "right"
    threshold: float = 0.2
    common: float = 0.3
    compat: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", steps_of(self.quadrature, self.steps))
        in_range("threshold", self.threshold, 0, 1)
        in_range("common", self.common, 0, 1)
        if self.compat is not None:
            one_of("compat", self.compat, (RELEASED,))
            if self.quadrature not in ("right", "endpoints"):  # the default, or what the code does
                raise InputError(f'quadrature={self.quadrature!r}: compat="{RELEASED}" takes its own, "endpoints"')
            object.__setattr__(self, "quadrature", "endpoints")
            object.__setattr__(self, "objective", BARE_LETTER)

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        return integrated(engine, prompts, objective, self.quadrature, self.steps)

    def check_objective(self, objective: Objective) -> None:
        if self.compat == RELEASED and objective != BARE_LETTER:
            raise InputError(
                f'objective={objective.name!r}: compat="{RELEASED}" explains the bare letter\'s probability only'
            )

    def collector(self, n_neurons: int) -> Collector:
        return Clusters(n_neurons, self)


class Clusters(Collector):
    """Counts in how many clusters a neuron is, and sums the normalised scores."""

    def __init__(self, n_neurons: int, method: QRNCA) -> None:
        super().__init__(n_neurons)
        self.method = method
        self.na = torch.zeros(n_neurons, dtype=torch.float64)
        self.members = empty_counts(n_neurons)

    def add(self, scores: Tensor, right: Tensor | None = None) -> None:
        super().add(scores, right)
        scores = scores.double()
        if self.method.compat == RELEASED:
            above = above_share_of_max(scores, self.method.threshold)
            total = torch.where(above, scores.round(decimals=6), 0.0).sum(0)
            cluster = above.any(0)
        else:
            total = scores.sum(0)
            cluster = above_share_of_max(total, self.method.threshold)
        normaliser = total.sum()
        if normaliser > 0:  # a question whose scores sum to nothing or less adds to the cluster counts only
            self.na += total / normaliser
        self.members += cluster

    def values(self) -> Tensor:
        questions = max(1, self.stats.count)
        score = self.na / questions * torch.log(questions / (self.members.double() + 1))
        if self.method.compat == RELEASED:
            return score
        if self.stats.count == 1:
            warn("qrnca of one question scores nothing, since every neuron of its only cluster is common; give more")
        elif self.stats.count and not bool(self.na.any()):
            warn(
                "qrnca scores nothing: the scores of every question sum to nothing or less, so none of them counts; "
                "give more questions, or take another method"
            )
        return torch.where(self.members > self.method.common * questions, 0.0, score)
