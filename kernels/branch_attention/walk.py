"""A tile of rows walks through one piece of the prefix, forward and backward: what the kernel does once a level."""

from __future__ import annotations

import triton
import triton.language as tl

from neuronllm.kernels.tile import NEVER, tanh


@triton.jit
def cap(z, softcap, SOFTCAP: tl.constexpr):
    if SOFTCAP:
        z = softcap * tanh(z / softcap)
    return z


@triton.jit
def _tokens(first, length, start, position, depth, window, WINDOW: tl.constexpr, TOKENS: tl.constexpr):
    """Tokens of a piece from `first` on, and which are seen: by all rows, or with a column of depths by each."""
    t = first + tl.arange(0, TOKENS)
    seen = (t < length)[None, :]
    if WINDOW:
        seen = seen & ((start + t)[None, :] > position + depth - window)
    return t, seen


@triton.jit
def _first(start, position, window, WINDOW: tl.constexpr, TOKENS: tl.constexpr):
    """The first token of a piece that a window lets any row see, rounded down to a whole block."""
    first = start * 0
    if WINDOW:
        first = tl.maximum(position - window + 1 - start, 0) // TOKENS * TOKENS
    return first


@triton.jit
def walk(
    q,
    peak,
    mass,
    out,
    k_ptr,
    v_ptr,
    place_ptr,
    group,
    stride_kp,
    stride_kg,
    stride_kt,
    stride_vp,
    stride_vg,
    stride_vt,
    width,
    width_v,
    scale,
    softcap,
    position,
    depth,
    window,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Take a piece of the prefix into the running softmax. place_ptr: the prompt's piece, its length, its start."""
    piece = tl.load(place_ptr).to(tl.int64)
    length = tl.load(place_ptr + 1)
    start = tl.load(place_ptr + 2)
    d = tl.arange(0, WIDTH)
    dv = tl.arange(0, WIDTH_V)
    k_ptr += piece * stride_kp + group.to(tl.int64) * stride_kg
    v_ptr += piece * stride_vp + group.to(tl.int64) * stride_vg
    for first in range(_first(start, position, window, WINDOW, TOKENS), length, TOKENS):
        t, seen = _tokens(first, length, start, position, depth, window, WINDOW, TOKENS)
        t64 = t.to(tl.int64)
        inside = (t < length)[None, :] & (d < width)[:, None]
        k = tl.load(k_ptr + t64[None, :] * stride_kt + d[:, None], mask=inside, other=0.0)
        if INTERPRETED:
            k = k.to(tl.float32)
        z = tl.dot(q, k, input_precision="ieee") * scale
        z = tl.where(seen, cap(z, softcap, SOFTCAP), NEVER)
        higher = tl.maximum(peak, tl.max(z, 1))
        p = tl.where(seen, tl.exp(z - higher[:, None]), 0.0)
        fade = tl.exp(peak - higher)
        mass = mass * fade + tl.sum(p, 1)
        inside = (t < length)[:, None] & (dv < width_v)[None, :]
        v = tl.load(v_ptr + t64[:, None] * stride_vt + dv[None, :], mask=inside, other=0.0)
        if INTERPRETED:
            v = v.to(tl.float32)
        out = tl.dot(p.to(v.dtype), v, out * fade[:, None], input_precision="ieee")
        peak = higher
    return peak, mass, out


@triton.jit
def walk_back(
    q,
    above,
    lse,
    delta,
    dq,
    k_ptr,
    v_ptr,
    place_ptr,
    group,
    stride_kp,
    stride_kg,
    stride_kt,
    stride_vp,
    stride_vg,
    stride_vt,
    width,
    width_v,
    scale,
    softcap,
    position,
    depth,
    window,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Add a piece's part to the gradient of the queries."""
    piece = tl.load(place_ptr).to(tl.int64)
    length = tl.load(place_ptr + 1)
    start = tl.load(place_ptr + 2)
    d = tl.arange(0, WIDTH)
    dv = tl.arange(0, WIDTH_V)
    k_ptr += piece * stride_kp + group.to(tl.int64) * stride_kg
    v_ptr += piece * stride_vp + group.to(tl.int64) * stride_vg
    for first in range(_first(start, position, window, WINDOW, TOKENS), length, TOKENS):
        t, seen = _tokens(first, length, start, position, depth, window, WINDOW, TOKENS)
        t64 = t.to(tl.int64)
        inside = (t < length)[:, None] & (d < width)[None, :]
        k = tl.load(k_ptr + t64[:, None] * stride_kt + d[None, :], mask=inside, other=0.0)
        inside = (t < length)[None, :] & (dv < width_v)[:, None]
        v = tl.load(v_ptr + t64[None, :] * stride_vt + dv[:, None], mask=inside, other=0.0)
        if INTERPRETED:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        z = cap(tl.dot(q, tl.trans(k), input_precision="ieee") * scale, softcap, SOFTCAP)
        p = tl.where(seen, tl.exp(z - lse[:, None]), 0.0)
        s = p * (tl.dot(above, v, input_precision="ieee") - delta[:, None]) * scale
        if SOFTCAP:
            s = s * (1.0 - (z / softcap) * (z / softcap))
        dq = tl.dot(s.to(k.dtype), k, dq, input_precision="ieee")
    return dq
