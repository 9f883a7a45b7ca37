"""out = softmax of q . [keys of the prefix, own key] over the values of both, for rows that share their prefix.

One program owns a tile of rows of one prompt and all heads of one group of keys, starts its running softmax with the
row itself and walks through the prompt's pieces of the prefix where they lie: pieces that prompts share are never
copied, no mask of rows x tokens is made. Where rows are nodes of trees, what a row sees of its tree comes before that.
The backward pass walks the same way once more; as the prefix is constant, every gradient has one writer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuronllm.kernels.launch import config, launched_with, rows_together
from neuronllm.kernels.tile import interpreted, store

from . import reference
from .trees import tree_of_key, tree_of_query, walk_tree, weigh
from .walk import cap, walk, walk_back

FOLDER = Path(__file__).parent
LEVELS = 3


@triton.jit
def _branch_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    k0_ptr,
    v0_ptr,
    k1_ptr,
    v1_ptr,
    k2_ptr,
    v2_ptr,
    place_ptr,
    position_ptr,
    sink_ptr,
    near_ptr,
    depth_ptr,
    out_ptr,
    lse_ptr,
    above_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    rows,
    heads,
    nodes,
    width,
    width_v,
    stride_qp,
    stride_qh,
    stride_qr,
    stride_kp,
    stride_kg,
    stride_kr,
    stride_vp,
    stride_vg,
    stride_vr,
    stride_k0p,
    stride_k0g,
    stride_k0t,
    stride_v0p,
    stride_v0g,
    stride_v0t,
    stride_k1p,
    stride_k1g,
    stride_k1t,
    stride_v1p,
    stride_v1g,
    stride_v1t,
    stride_k2p,
    stride_k2g,
    stride_k2t,
    stride_v2p,
    stride_v2g,
    stride_v2t,
    scale,
    softcap,
    window,
    LEVELS: tl.constexpr,
    BACKWARD: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    TREES: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """`heads` is the number of heads of a group. out, lse and the gradients are contiguous."""
    group = tl.program_id(1)
    groups = tl.num_programs(1)
    prompt = tl.program_id(2).to(tl.int64)
    m = tl.arange(0, ROWS * HEADS)
    row = tl.program_id(0) * ROWS + m // HEADS
    head = group * heads + m % HEADS
    real = (row < rows) & (m % HEADS < heads)
    d = tl.arange(0, WIDTH)
    dv = tl.arange(0, WIDTH_V)
    inside = real[:, None] & (d < width)[None, :]
    inside_v = real[:, None] & (dv < width_v)[None, :]
    row64 = row.to(tl.int64)[:, None]
    head64 = head.to(tl.int64)[:, None]
    group64 = group.to(tl.int64)
    own_q = q_ptr + prompt * stride_qp + head64 * stride_qh + row64 * stride_qr + d[None, :]
    own_k = k_ptr + prompt * stride_kp + group64 * stride_kg + row64 * stride_kr + d[None, :]
    own_v = v_ptr + prompt * stride_vp + group64 * stride_vg + row64 * stride_vr + dv[None, :]
    q = tl.load(own_q, mask=inside, other=0.0)
    k = tl.load(own_k, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(own_v, mask=inside_v, other=0.0).to(tl.float32)
    if INTERPRETED:
        q = q.to(tl.float32)
    position = tl.load(position_ptr + prompt)
    place = place_ptr + prompt * (3 * LEVELS)
    at = (prompt * groups * heads + head64) * rows + row64  # where this row and head stand in contiguous outputs
    z = cap(tl.sum(q.to(tl.float32) * k, 1) * scale, softcap, SOFTCAP)
    own_out = out_ptr + at * width_v + dv[None, :]
    own_lse = lse_ptr + (prompt * groups * heads + head) * rows + row
    depth = 0
    if TREES:
        node = row % nodes
        near = near_ptr + prompt * nodes * nodes
        if WINDOW:
            depth = tl.load(depth_ptr + prompt * nodes + node)[:, None]

    if BACKWARD:
        own_above = above_ptr + at * width_v + dv[None, :]
        above = tl.load(own_above, mask=inside_v, other=0.0)
        out = tl.load(own_out, mask=inside_v, other=0.0).to(tl.float32)
        delta = tl.sum(out * above.to(tl.float32), 1)
        lse = tl.load(own_lse, mask=real, other=0.0)
        if INTERPRETED:
            above = above.to(tl.float32)
        dq = tl.zeros((ROWS * HEADS, WIDTH), tl.float32)
        # fmt: off
        if LEVELS > 0:
            dq = walk_back(
                q, above, lse, delta, dq, k0_ptr, v0_ptr, place, group, stride_k0p, stride_k0g, stride_k0t, stride_v0p,
                stride_v0g, stride_v0t, width, width_v, scale, softcap, position, depth, window,
                SOFTCAP, WINDOW, TOKENS, WIDTH, WIDTH_V, INTERPRETED,
            )
        if LEVELS > 1:
            dq = walk_back(
                q, above, lse, delta, dq, k1_ptr, v1_ptr, place + 3, group, stride_k1p, stride_k1g, stride_k1t,
                stride_v1p, stride_v1g, stride_v1t, width, width_v, scale, softcap, position, depth, window,
                SOFTCAP, WINDOW, TOKENS, WIDTH, WIDTH_V, INTERPRETED,
            )
        if LEVELS > 2:
            dq = walk_back(
                q, above, lse, delta, dq, k2_ptr, v2_ptr, place + 6, group, stride_k2p, stride_k2g, stride_k2t,
                stride_v2p, stride_v2g, stride_v2t, width, width_v, scale, softcap, position, depth, window,
                SOFTCAP, WINDOW, TOKENS, WIDTH, WIDTH_V, INTERPRETED,
            )
        if TREES:
            dq = tree_of_query(
                q, above, lse, delta, dq, own_k, own_v, near + node * nodes, node, nodes, real, inside, inside_v,
                stride_kr, stride_vr, scale, softcap, SOFTCAP,
            )
        # fmt: on
        wide = above.to(tl.float32)
        p, s = weigh(z, wide, v, lse, delta, real, scale, softcap, SOFTCAP)
        store(dq_ptr + at * width + d[None, :], dq + s[:, None] * k, inside, INTERPRETED)
        dk = s[:, None] * q.to(tl.float32)
        dvalue = p[:, None] * wide
        # fmt: off
        if TREES:
            dk, dvalue = tree_of_key(
                k, v, dk, dvalue, own_q, own_above, own_out, own_lse, near + node, node, nodes, real, inside, inside_v,
                stride_qr, width_v, scale, softcap, SOFTCAP,
            )
        # fmt: on
        # A group's heads share key and value of a row: their gradients are added up.
        dk = tl.sum(tl.reshape(dk, (ROWS, HEADS, WIDTH)), 1)
        dvalue = tl.sum(tl.reshape(dvalue, (ROWS, HEADS, WIDTH_V)), 1)
        r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        own = ((prompt * groups + group) * rows + r.to(tl.int64))[:, None]
        store(dk_ptr + own * width + d[None, :], dk, (r < rows)[:, None] & (d < width)[None, :], INTERPRETED)
        store(dv_ptr + own * width_v + dv[None, :], dvalue, (r < rows)[:, None] & (dv < width_v)[None, :], INTERPRETED)
    else:
        peak = z
        mass = tl.full((ROWS * HEADS,), 1.0, tl.float32)
        out = v
        # fmt: off
        if TREES:
            peak, mass, out = walk_tree(
                q, peak, mass, out, own_k, own_v, near + node * nodes, node, nodes, real, inside, inside_v,
                stride_kr, stride_vr, scale, softcap, SOFTCAP,
            )
        if LEVELS > 0:
            peak, mass, out = walk(
                q, peak, mass, out, k0_ptr, v0_ptr, place, group, stride_k0p, stride_k0g, stride_k0t, stride_v0p,
                stride_v0g, stride_v0t, width, width_v, scale, softcap, position, depth, window,
                SOFTCAP, WINDOW, TOKENS, WIDTH, WIDTH_V, INTERPRETED,
            )
        if LEVELS > 1:
            peak, mass, out = walk(
                q, peak, mass, out, k1_ptr, v1_ptr, place + 3, group, stride_k1p, stride_k1g, stride_k1t, stride_v1p,
                stride_v1g, stride_v1t, width, width_v, scale, softcap, position, depth, window,
                SOFTCAP, WINDOW, TOKENS, WIDTH, WIDTH_V, INTERPRETED,
            )
        if LEVELS > 2:
            peak, mass, out = walk(
                q, peak, mass, out, k2_ptr, v2_ptr, place + 6, group, stride_k2p, stride_k2g, stride_k2t, stride_v2p,
                stride_v2g, stride_v2t, width, width_v, scale, softcap, position, depth, window,
                SOFTCAP, WINDOW, TOKENS, WIDTH, WIDTH_V, INTERPRETED,
            )
        # fmt: on
        lse = peak + tl.log(mass)
        if SINKS:
            sink = tl.load(sink_ptr + head, mask=m % HEADS < heads, other=0.0).to(tl.float32)
            top = tl.minimum(tl.maximum(lse, sink), 3.0e38)  # finite: of an infinite sink, inf - inf would be NaN
            full = top + tl.log(tl.exp(lse - top) + tl.exp(sink - top))
            out = out * tl.exp(lse - full)[:, None]
            lse = full
        store(own_out, out / mass[:, None], inside_v, INTERPRETED)
        tl.store(own_lse, lse, mask=real)


def branch_attention(
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
    seen: Tensor | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Launch. Mixed values in query's type, and log-sum-exp in float32."""
    out = query.new_empty((*query.shape[:3], value.shape[3]))
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    prefix = (keys, values, pieces, lengths, starts)
    _launch(query, key, value, prefix, positions, scale, softcap, window, seen, sinks, out, lse, None)
    return out, lse


def backward(
    grad: Tensor, out: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch. Gradients of query and of the rows' own keys and values."""
    found = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    _launch(query, key, value, rest[:5], *rest[5:], None, out, lse, (grad.contiguous(), *found))
    return found


def _launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix: tuple[list[Tensor], ...],
    positions: Tensor,
    scale: float,
    softcap: float | None,
    window: int | None,
    seen: Tensor | None,
    sinks: Tensor | None,
    out: Tensor,
    lse: Tensor,
    gradients: tuple[Tensor, ...] | None,
) -> None:
    prompts, _, rows, width = query.shape
    groups, width_v, device = key.shape[1], value.shape[3], query.device
    heads, levels = query.shape[1] // groups, len(prefix[0])
    if not query.numel():
        return
    query, key, value = (rows_together(x) for x in (query, key, value))
    tensors, strides = [], []
    for k, v in zip(*prefix[:2], strict=True):
        tensors += [rows_together(k), rows_together(v)]
        strides += [*tensors[-2].stride()[:3], *tensors[-1].stride()[:3]]
    tensors += [query] * (2 * (LEVELS - levels))
    strides += [0] * (6 * (LEVELS - levels))
    tree = (query, query) if seen is None else trees(seen, window, device)
    padded, padded_v = (max(16, triton.next_power_of_2(n)) for n in (width, width_v))
    kind = "backward " if gradients else ""
    sizes = config(FOLDER, f"{kind}{max(64, padded, padded_v)}", device)
    fewer = seen is not None and not gradients  # rows that each see other tokens of a window take more registers
    together = triton.next_power_of_2(heads)
    in_tile = max(1, sizes["tile"] // together)
    _branch_attention_kernel[(triton.cdiv(rows, in_tile), groups, prompts)](
        query,
        key,
        value,
        *tensors,
        places(prefix, device),
        positions.to(device, torch.int32).contiguous(),
        query if sinks is None else sinks.contiguous(),
        *tree,
        out,
        lse,
        *(gradients or (out, out, out, out)),
        rows,
        heads,
        1 if seen is None else seen.shape[1],
        width,
        width_v,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *strides,
        scale,
        softcap or 1.0,
        window or 0,
        LEVELS=levels,
        BACKWARD=gradients is not None,
        SOFTCAP=softcap is not None,
        WINDOW=window is not None,
        SINKS=sinks is not None,
        TREES=seen is not None,
        ROWS=in_tile,
        HEADS=together,
        TOKENS=max(16, sizes["tokens"] // 2) if fewer else sizes["tokens"],
        WIDTH=padded,
        WIDTH_V=padded_v,
        INTERPRETED=interpreted(_branch_attention_kernel),
        **launched_with(sizes),
    )


def places(prefix: tuple[list[Tensor], ...], device: torch.device) -> Tensor:
    """(prompts, levels, 3) int32: every prompt's piece in every level, its length and its start."""
    _, _, pieces, lengths, starts = prefix
    found = [torch.stack([p, n[p], s[p]], -1) for p, n, s in zip(pieces, lengths, starts, strict=True)]
    return torch.stack(found, 1).to(device, torch.int32) if found else torch.zeros(1, dtype=torch.int32, device=device)


def trees(seen: Tensor, window: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """`reference.near` for the kernel: (prompts, nodes, nodes) int8 and (prompts, nodes) int32."""
    others, depth = reference.near(seen, window)
    return others.to(device, torch.int8).contiguous(), depth.to(device, torch.int32).contiguous()
