"""Edits at every token: a prompt in full, whose edited copies share every layer below their edit.

The pass begins with the prompt and its answer tree alone, one row. A copy of that row joins at the block that it is
edited in, and from there on is a row of its own: so one pass serves edits of every layer, as the sweep of answer tokens
does. All rows hold the same tokens, so that what they may see, and where they stand, is the same too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..model.anatomy import Anatomy
from .answer_trees import AnswerTrees
from .attention import piece_attention
from .batching import ANSWER_TOKENS, TOKENS
from .borrowed import answer_logits, held_states
from .branch import Batch
from .mixers import Mixers
from .prefill import piece_inputs
from .rows import row_by_row
from .tree import Prefix, with_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt


class WholePrompt(Batch):
    """One prompt with nothing in front of it: its rows are all of its tokens, and of these the answer's are read."""

    axis: ClassVar[int] = 0

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy,
        prompt: Prompt,
        plain: frozenset[str],
        value: Callable[[Tensor], Tensor],
        answer_tokens: int,
        mixers: Mixers | None = None,
        together: bool = False,
    ) -> None:
        """A model with mixers takes prompts that are read at their last token."""
        nothing = Prefix([], torch.zeros(1, dtype=torch.int64), AnswerTrees([prompt]))
        super().__init__(model, anatomy, [prompt], nothing, plain, value, answer_tokens, together=together)
        self.level, self.pieces = with_answers([prompt], [0])
        self.mixers = mixers

    @property
    def width(self) -> int:
        return self.level.width

    @property
    def branches(self) -> int:
        """Beside the clean row, as many as make a pass of whole prompts."""
        return max(1, self.answer_tokens * TOKENS // ANSWER_TOKENS // self.width - 1)

    @property
    def real(self) -> Tensor:
        return self.level.real

    def attending(self) -> AbstractContextManager[None]:
        if self.mixers is None:
            return piece_attention(self.model, self.level, [], None)
        return row_by_row(self.model, self.mixers) if self.mixers.own else nullcontext()

    def logits(self, copies: int = 1) -> Tensor:
        """Those of the answer tree, (nodes, branches, ids)."""
        inputs = piece_inputs(self.model, self.level, self.pieces)
        inputs |= {name: inputs[name].expand(copies, -1) for name in ("input_ids", "position_ids")}
        if self.mixers is not None:
            inputs |= {"past_key_values": None, "use_cache": False}
        found = answer_logits(self.model, inputs.pop("input_ids"), None, self.level.nodes, **inputs)
        if (held := held_states(self.model)) is not None and held.states is not None:
            held.states = self.turned(held.states)
        return self.turned(found)
