"""What branch_attention computes, in plain PyTorch; in float64 where it is given float64.

Every prompt's pieces are gathered side by side here, so this is the judge, not the way to save memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Pattern(NamedTuple):
    """Attention of rows (prompts, groups, heads a group, rows, tokens + nodes), the last being the row's own tree.

    A row that is no node of a tree is one of its own.
    """

    logits: Tensor
    keys: Tensor  # (prompts, groups, tokens, width)
    values: Tensor
    nodes: int


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def near(seen: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """Which other nodes of its tree a node sees within a window, and how far behind the first one it stands."""
    others = seen & ~torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
    depth = others.sum(2)
    if window is not None:
        others = others & (depth[:, None] > depth[:, :, None] - window)
    return others, depth


def to_nodes(query: Tensor, key: Tensor, nodes: int) -> Tensor:
    """Products of every query (prompts, groups, heads a group, rows, width) with the keys of its own tree's nodes."""
    if nodes == 1:
        return (query * key[:, :, None]).sum(-1, keepdim=True)
    trees, keys = query.unflatten(3, (-1, nodes)), key.unflatten(2, (-1, nodes))
    return torch.einsum("bghrnd,bgrmd->bghrnm", trees, keys).flatten(3, 4)


def from_nodes(weights: Tensor, value: Tensor, nodes: int) -> Tensor:
    """The values of its own tree's nodes, mixed by every query's weights (prompts, groups, heads, rows, nodes)."""
    if nodes == 1:
        return weights * value[:, :, None]
    trees, values = weights.unflatten(3, (-1, nodes)), value.unflatten(2, (-1, nodes))
    return torch.einsum("bghrnm,bgrmd->bghrnd", trees, values).flatten(3, 4)


def onto_nodes(weights: Tensor, x: Tensor, nodes: int) -> Tensor:
    """What every query of a tree and every head of a group adds to its tree's nodes: the adjoint of `from_nodes`."""
    if nodes == 1:
        return (weights * x).sum(2)
    trees, added = weights.unflatten(3, (-1, nodes)), x.unflatten(3, (-1, nodes))
    return torch.einsum("bghrnm,bghrnd->bgrmd", trees, added).flatten(2, 3)


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
    tree: Tensor | None,
) -> Pattern:
    tree = torch.ones(len(query), 1, 1, dtype=torch.bool) if tree is None else tree
    groups, nodes = key.shape[1], tree.shape[1]
    others, depth = near(tree.to(query.device), window)
    q = wide(query).unflatten(1, (groups, -1))
    at = [piece.to(query.device) for piece in pieces]
    seen, before, mixed = [], [wide(key)[:, :, :0]], [wide(value)[:, :, :0]]
    for k, v, piece, length, start in zip(keys, values, at, lengths, starts, strict=True):
        place = torch.arange(k.shape[2], device=query.device)
        there = (place < length.to(query.device)[piece][:, None])[:, None]
        # A weight of 0 does not silence padding that is not finite: 0 times NaN or infinity is NaN.
        padding = ~there[..., None]
        before.append(wide(k)[piece].masked_fill(padding, 0.0))
        mixed.append(wide(v)[piece].masked_fill(padding, 0.0))
        if window is not None:
            first = positions.to(query.device)[:, None] + depth - window
            there = there & ((place + start.to(query.device)[piece][:, None])[:, None] > first[..., None])
        seen.append(there.expand(-1, nodes, -1))
    prefix = torch.cat(before, 2)
    logits = torch.einsum("bghrd,bgtd->bghrt", q, prefix)
    logits = torch.cat([logits, to_nodes(q, wide(key), nodes)], -1) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    own = others | torch.eye(nodes, dtype=torch.bool, device=query.device)
    hidden = ~torch.cat([*seen, own], 2)[:, None, None, None]
    logits = logits.unflatten(3, (-1, nodes)).masked_fill(hidden, float("-inf")).flatten(3, 4)
    return Pattern(logits, prefix, torch.cat(mixed, 2), nodes)


def branch_attention(
    query: Tensor, key: Tensor, value: Tensor, *rest: Any, sinks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mixed values (prompts, heads, rows, width of values) in query's type, and log-sum-exp (prompts, heads, rows)."""
    found = pattern(query, key, value, *rest)
    lse = found.logits.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, wide(sinks).reshape(1, key.shape[1], -1, 1).to(lse))
    weights = (found.logits - lse[..., None]).exp()
    tokens = found.keys.shape[2]
    out = from_nodes(weights[..., tokens:], wide(value), found.nodes)
    if tokens:
        out = out + torch.einsum("bghrt,bgtd->bghrd", weights[..., :tokens], found.values)
    return out.flatten(1, 2).to(query.dtype), lse.flatten(1, 2).contiguous()


def backward(
    grad: Tensor, out: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, and of the rows' own keys and values. The prefix is constant."""
    found, groups = pattern(query, key, value, *rest), key.shape[1]
    scale, softcap = rest[6], rest[7]
    q, above, mixed, peak = (wide(x).unflatten(1, (groups, -1)) for x in (query, grad, out, lse))
    weights = (found.logits - peak[..., None]).exp()
    tokens, nodes = found.keys.shape[2], found.nodes
    share = to_nodes(above, wide(value), nodes)
    if tokens:
        share = torch.cat([torch.einsum("bghrd,bgtd->bghrt", above, found.values), share], -1)
    slopes = weights * (share - (above * mixed).sum(-1, keepdim=True)) * scale
    if softcap is not None:
        slopes = slopes * (1 - (found.logits.masked_fill(weights == 0, 0.0) / softcap).square())
    dquery = from_nodes(slopes[..., tokens:], wide(key), nodes)
    dquery = dquery + torch.einsum("bghrt,bgtd->bghrd", slopes[..., :tokens], found.keys)
    dkey, dvalue = onto_nodes(slopes[..., tokens:], q, nodes), onto_nodes(weights[..., tokens:], above, nodes)
    return dquery.flatten(1, 2).to(query.dtype), dkey.to(key.dtype), dvalue.to(value.dtype)
