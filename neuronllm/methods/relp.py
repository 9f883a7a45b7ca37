"""RelP: h times a gradient that follows layer-wise relevance rules.

Norm scales are constant, act(x)/x is constant, the two factors of a gated product take half each. Attention patterns
stay live unless attention="detached".
"""

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
class RelP(Method):
    """h times a gradient by relevance rules.

    >>> RelP.options()
    ['attention']
    """

    name: ClassVar[str] = "relp"
    positions: ClassVar[tuple[str, ...]] = ("answer", "all")

    attention: str = "live"

    def __post_init__(self) -> None:
        one_of("attention", self.attention, ("live", "detached"))

    @property
    def rules(self) -> str:
        return "relp" if self.attention == "live" else "relp-detached"

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        return engine.gradients(prompts, objective, positions=positions, rules=self.rules)

    def question_scores(
        self, engine: Engine, prompts: Sequence[Prompt], sizes: Sequence[int], objective: Objective
    ) -> Tensor | None:
        return engine.question_gradients(prompts, sizes, objective, rules=self.rules)
