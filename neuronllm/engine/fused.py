"""Where a kernel of `neuronllm.ops` takes the place of the engine's own PyTorch.

`ops.using` says by name whether it does; without it, it does on devices where the kernel was measured to win. On a CPU
no operator is called at all: the first call of one loads torch's compiler, which takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels.launch import uses_triton

if TYPE_CHECKING:
    from .tree import Prefix


def glu_score_wanted(h: Tensor) -> bool:
    return h.dtype != torch.float64 and uses_triton("glu_score", "auto", h)


def summed_products(h: Tensor, grad: Tensor) -> Tensor:
    """(prompts, width): h times grad, (prompts, tokens, width), summed over a prompt's tokens in float32."""
    from ..ops import glu_score

    prompts, tokens, width = h.shape
    lengths = torch.full((prompts,), tokens)
    h, grad = (x.to(h).reshape(-1, width) for x in (h, grad))
    return glu_score(h, None, grad, lengths, act="identity", gradients=False).scores


def branch_attention_wanted(query: Tensor, prefix: Prefix, layer: int) -> bool:
    """The prefix must have been computed in the type of the answer tokens, and types be such as the kernel takes."""
    wide = query.dtype == torch.float64 or (query.is_cuda and query.dtype == torch.float32)
    mixed = any(part.dtype != query.dtype for level in prefix.levels for part in level.layers[layer])
    return not wide and not mixed and _small(prefix) and uses_triton("branch_attention", "auto", query)


def _small(prefix: Prefix) -> bool:
    """Whether the kernel takes so wide trees."""
    if prefix.trees.width == 1:
        return True
    from ..kernels.branch_attention.op import MOST_NODES

    return prefix.trees.width <= MOST_NODES


def by_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix: Prefix,
    layer: int,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    sinks: Tensor | None,
) -> Tensor:
    """Answer tokens attend to their prompts' pieces where those lie, and to what they see of their own trees."""
    from ..ops import Pieces, branch_attention

    pieces = [Pieces(*level.layers[layer], level.piece, level.lengths, level.starts) for level in prefix.levels]
    return branch_attention(
        query,
        key,
        value,
        pieces,
        positions=prefix.lengths,
        scale=scale,
        softcap=softcap,
        window=window,
        sinks=None if sinks is None else sinks.detach(),
        seen=prefix.trees.seen,
    )


def normaliser_wanted(states: Tensor, weight: Tensor) -> bool:
    """With a gradient only, which the operator always computes; without, PyTorch's pieces do half of its work."""
    kinds = states.dtype == weight.dtype and states.dtype != torch.float64
    return kinds and states.requires_grad and uses_triton("contrastive_ce", "auto", states)


def normaliser_by_kernel(
    states: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """(rows,): the log of the vocabulary's normaliser, as some token's logit minus its log-probability."""
    from ..ops import contrastive_ce

    first = torch.zeros(len(states), 1, dtype=torch.int64, device=states.device)
    bias = None if bias is None else bias.detach()
    value = contrastive_ce(
        states, weight.detach(), first, first[:, 0], objective="logp_vocab", bias=bias, scale=scale, softcap=softcap
    ).value
    wide = states.to(value.dtype) @ weight[0].detach().to(value.dtype)
    logit = scale * (wide if bias is None else wide + bias[0])
    return (logit if softcap is None else softcap * torch.tanh(logit / softcap)) - value
