"""How the work is cut into batches: a plan, made before the start and kept for the whole run.

The same prompts under the same plan give the same bytes, which is why a run writes its plan down and a resumed run
takes it from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..anatomy import Anatomy
    from ..prompts import Prompt

ROWS = 2048  # answer tokens of one pass
TOKENS = 4096  # tokens of one full pass


@dataclass
class Plan:
    """Sizes of batches, and what was learnt on the way.

    >>> Plan.from_dict(Plan(prompts=4, rows=64, window=8).to_dict()).prompts
    4
    """

    prompts: int  # of one batch, at most
    rows: int  # answer tokens of one pass, at most
    window: int  # prompts that the engine is handed at once
    estimate: dict[str, int] = field(default_factory=dict)  # bytes: what -> how many
    backoffs: list[str] = field(default_factory=list)  # what ran out of memory, and what was done

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        return cls(**data)

    def __str__(self) -> str:
        return f"batches of {self.prompts} prompts, passes of {self.rows} answer tokens"


def make_plan(
    model: PreTrainedModel, anatomy: Anatomy, prompts: Sequence[Prompt], *, batch_size: int | str = "auto"
) -> Plan:
    """The plan for these prompts on this model."""
    longest = max(len(p.input_ids) for p in prompts)
    size = batch_size if isinstance(batch_size, int) else max(1, min(TOKENS // longest, len(prompts)))
    return Plan(prompts=size, rows=ROWS, window=size if isinstance(batch_size, int) else 32)
