"""Attention of answer tokens: each attends to its prompt's cached prefix and to itself, never to another row.

Registered with transformers under the name BRANCH, so that a model's own layers call it. What the layers hand over as
keyword arguments (scaling, soft cap, sliding window, sinks) is honoured here; windows count true positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .prefix import PrefixCache

BRANCH = "neuronllm_branch"


@dataclass
class _Pass:
    """What the attention of the pass under way needs to know, and which layers it has seen."""

    prefix: PrefixCache
    constant_patterns: bool = False
    seen: set[int] = field(default_factory=set)


_passes: list[_Pass] = []


@contextmanager
def branch_attention(
    model: PreTrainedModel, prefix: PrefixCache, *, constant_patterns: bool = False
) -> Iterator[set[int]]:
    """Let the model's layers attend to `prefix`; yields the set of layers that have done so."""
    _register()
    own = model.config._attn_implementation
    _passes.append(_Pass(prefix, constant_patterns))
    try:
        model.set_attn_implementation(BRANCH)
        yield _passes[-1].seen
    finally:
        _passes.pop()
        model.set_attn_implementation(own)


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(BRANCH, _attend)
    AttentionMaskInterface.register(BRANCH, lambda *args, **kwargs: None)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (prompts, heads, rows, d), key, value (prompts, groups, rows, d): a row sees the prefix and itself."""
    now = _passes[-1]
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    now.seen.add(layer)
    if now.constant_patterns:
        query, key = query.detach(), key.detach()
    keys, values = now.prefix.layer(layer)
    visible = now.prefix.visible(sliding_window).to(query.device)
    prompts, heads, rows, width = query.shape
    groups = key.shape[1]
    grouped = query.reshape(prompts, groups, heads // groups, rows, width)
    scale = width**-0.5 if scaling is None else scaling
    to_prefix = torch.einsum("bkgnd,bktd->bkgnt", grouped, keys) * scale
    to_self = (grouped * key[:, :, None]).sum(-1, keepdim=True) * scale
    scores = torch.cat([to_prefix, to_self], -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~visible[:, None, None, None, :], float("-inf"))
    if s_aux is not None:
        sinks = s_aux.reshape(1, groups, -1, 1, 1).expand(prompts, -1, -1, rows, 1).to(scores)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype)
    length = keys.shape[2]
    mixed = torch.einsum("bkgnt,bktd->bkgnd", weights[..., :length], values)
    mixed = mixed + weights[..., length : length + 1] * value[:, :, None]
    return mixed.reshape(prompts, heads, rows, -1).transpose(1, 2).contiguous(), None
