"""All positions: a full forward and backward of a batch with frozen parameters.

The score of a layer is formed inside its FFN's backward, as soon as the gradient is there, so that gradients of
different layers never stand beside each other. Where memory asks for it, a block keeps its input only and runs again on
the way back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..model.discovery import decoder_layers
from .borrowed import DoublePrecision, answer_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt


def full_pass(model: PreTrainedModel, prompts: Sequence[Prompt]) -> Tensor:
    """Logits (prompts, 1, ids) at the answer positions of whole prompts."""
    return answer_logits(model, *padded(prompts))[:, None]


def padded(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor | None, Tensor]:
    """Token ids padded on the right, their mask (None without padding), and every prompt's answer position."""
    lengths = torch.tensor([len(p.input_ids) for p in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt.input_ids)] = torch.tensor(prompt.input_ids)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    # Prompts of one length need no mask: the model may then take its plain causal path.
    return ids, None if bool(mask.all()) else mask.long(), lengths - 1


@contextmanager
def recomputing(model: PreTrainedModel, wanted: bool = True, double: bool = False) -> Iterator[None]:
    """Blocks keep their inputs only, and run again on the way back; `double` says that they ran in DoublePrecision.

    On the way back torch has left every mode of its functions, that one too.
    """
    blocks = list(decoder_layers(model)[1]) if wanted else []
    owns = [block.__dict__.get("forward") for block in blocks]

    def there_and_back() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), DoublePrecision() if double else nullcontext()

    try:
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=there_and_back)
        yield
    finally:
        for block, own in zip(blocks, owns, strict=True):
            if own is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = own
