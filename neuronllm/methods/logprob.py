"""A neuron's own push on the answer (after Yu & Ananiadou): F(unembed(r + h_i v_i)) - F(unembed(r)).

r is the residual stream before the block's FFN and v_i the neuron's column of the down projection; a post-FFN norm of
the model is passed. No later layer takes part. There is one r, that of the answer position, so of answers in texts it
explains the first token.
"""

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
class LogProb(Method):
    """F(unembed(r + h v)) - F(unembed(r)); of answers in texts, F of their first tokens.

    >>> LogProb.options()
    []
    """

    name: ClassVar[str] = "logprob"
    expensive: ClassVar[bool] = True
    reads: ClassVar[str] = "first answer token"

    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        return engine.direct(prompts, objective)
