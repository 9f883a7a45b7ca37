"""What branch_attention computes, in plain PyTorch; in float64 where it is given float64.

Every prompt's pieces are gathered side by side here, so this is the judge, not the way to save memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Pattern(NamedTuple):
    """Attention of rows (prompts, groups, heads a group, rows, tokens + 1), the last column being the row itself."""

    logits: Tensor
    keys: Tensor  # (prompts, groups, tokens, width)
    values: Tensor


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pattern(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    pieces: list[Tensor],
    lengths: list[Tensor],
    starts: list[Tensor],
    positions: Tensor,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Pattern:
    groups = key.shape[1]
    q = wide(query).unflatten(1, (groups, -1))
    at = [piece.to(query.device) for piece in pieces]
    seen, before, mixed = [], [wide(key)[:, :, :0]], [wide(value)[:, :, :0]]
    for k, v, piece, length, start in zip(keys, values, at, lengths, starts, strict=True):
        place = torch.arange(k.shape[2], device=query.device)
        there = place < length.to(query.device)[piece][:, None]
        # A weight of 0 does not silence padding that is not finite: 0 times NaN or infinity is NaN.
        padding = ~there[:, None, :, None]
        before.append(wide(k)[piece].masked_fill(padding, 0.0))
        mixed.append(wide(v)[piece].masked_fill(padding, 0.0))
        if window is not None:
            first = positions.to(query.device) - window
            there = there & (place + start.to(query.device)[piece][:, None] > first[:, None])
        seen.append(there)
    prefix = torch.cat(before, 2)
    logits = torch.einsum("bghrd,bgtd->bghrt", q, prefix)
    logits = torch.cat([logits, (q * wide(key)[:, :, None]).sum(-1, keepdim=True)], -1) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if seen:
        hidden = torch.nn.functional.pad(~torch.cat(seen, 1), (0, 1))
        logits = logits.masked_fill(hidden[:, None, None, None], float("-inf"))
    return Pattern(logits, prefix, torch.cat(mixed, 2))


def branch_attention(
    query: Tensor, key: Tensor, value: Tensor, *rest: Any, sinks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mixed values (prompts, heads, rows, width of values) in query's type, and log-sum-exp (prompts, heads, rows)."""
    found = pattern(query, key, value, *rest)
    lse = found.logits.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, wide(sinks).reshape(1, key.shape[1], -1, 1).to(lse))
    weights = (found.logits - lse[..., None]).exp()
    out = weights[..., -1:] * wide(value)[:, :, None]
    if found.keys.shape[2]:
        out = out + torch.einsum("bghrt,bgtd->bghrd", weights[..., :-1], found.values)
    return out.flatten(1, 2).to(query.dtype), lse.flatten(1, 2).contiguous()


def backward(
    grad: Tensor, out: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, and of the rows' own keys and values. The prefix is constant."""
    found, groups = pattern(query, key, value, *rest), key.shape[1]
    scale, softcap = rest[6], rest[7]
    q, above, mixed, peak = (wide(x).unflatten(1, (groups, -1)) for x in (query, grad, out, lse))
    weights = (found.logits - peak[..., None]).exp()
    share = (above * wide(value)[:, :, None]).sum(-1, keepdim=True)
    if found.keys.shape[2]:
        share = torch.cat([torch.einsum("bghrd,bgtd->bghrt", above, found.values), share], -1)
    slopes = weights * (share - (above * mixed).sum(-1, keepdim=True)) * scale
    if softcap is not None:
        slopes = slopes * (1 - (found.logits.masked_fill(weights == 0, 0.0) / softcap).square())
    dquery = slopes[..., -1:] * wide(key)[:, :, None] + torch.einsum("bghrt,bgtd->bghrd", slopes[..., :-1], found.keys)
    dkey, dvalue = (slopes[..., -1:] * q).sum(2), (weights[..., -1:] * above).sum(2)
    return dquery.flatten(1, 2).to(query.dtype), dkey.to(key.dtype), dvalue.to(value.dtype)
