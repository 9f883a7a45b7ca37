"""Rows that are nodes of a tree: what a row takes of the others of its tree, and what they take of it.

Node after node, in float32 and without matrix units: so a tree has the same bits wherever it stands in a tile, and what
is not finite reaches only what sees it. A node that a row does not see is not loaded for it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from neuronllm.kernels.tile import NEVER

from .walk import cap


@triton.jit
def weigh(z, above, v, lse, delta, seen, scale, softcap, SOFTCAP: tl.constexpr):
    """The weight of a key whose logit is z, one a row, and the gradient of the product that the logit comes from."""
    p = tl.where(seen, tl.exp(z - lse), 0.0)
    s = p * (tl.sum(above * v, 1) - delta) * scale
    if SOFTCAP:
        s = s * (1.0 - (z / softcap) * (z / softcap))
    return p, s


@triton.jit
def _of_node(own_ptr, away, stride, seen, inside):
    """What stands `away` rows from each row's own place, 0 where it is not seen."""
    mask = seen[:, None] & inside
    return tl.load(own_ptr + away.to(tl.int64)[:, None] * stride, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def walk_tree(
    q,
    peak,
    mass,
    out,
    own_k,
    own_v,
    near_ptr,
    node,
    nodes,
    real,
    inside,
    inside_v,
    stride_k,
    stride_v,
    scale,
    softcap,
    SOFTCAP: tl.constexpr,
):
    """Take the other nodes that a row sees into the running softmax. near_ptr: whether it sees node 0, 1, ..."""
    q = q.to(tl.float32)
    for n in range(nodes):
        seen = tl.load(near_ptr + n, mask=real, other=0) != 0
        k = _of_node(own_k, n - node, stride_k, seen, inside)
        v = _of_node(own_v, n - node, stride_v, seen, inside_v)
        z = tl.where(seen, cap(tl.sum(q * k, 1) * scale, softcap, SOFTCAP), NEVER)
        higher = tl.maximum(peak, z)
        p = tl.where(seen, tl.exp(z - higher), 0.0)
        fade = tl.exp(peak - higher)
        mass = mass * fade + p
        out = out * fade[:, None] + p[:, None] * v
        peak = higher
    return peak, mass, out


@triton.jit
def tree_of_query(
    q,
    above,
    lse,
    delta,
    dq,
    own_k,
    own_v,
    near_ptr,
    node,
    nodes,
    real,
    inside,
    inside_v,
    stride_k,
    stride_v,
    scale,
    softcap,
    SOFTCAP: tl.constexpr,
):
    """Add the part of the other nodes that a row sees to the gradient of its query."""
    q, above = q.to(tl.float32), above.to(tl.float32)
    for n in range(nodes):
        seen = tl.load(near_ptr + n, mask=real, other=0) != 0
        k = _of_node(own_k, n - node, stride_k, seen, inside)
        v = _of_node(own_v, n - node, stride_v, seen, inside_v)
        z = cap(tl.sum(q * k, 1) * scale, softcap, SOFTCAP)
        _, s = weigh(z, above, v, lse, delta, seen, scale, softcap, SOFTCAP)
        dq += s[:, None] * k
    return dq


@triton.jit
def tree_of_key(
    k,
    v,
    dk,
    dv,
    own_q,
    own_above,
    own_out,
    own_lse,
    near_ptr,
    node,
    nodes,
    real,
    inside,
    inside_v,
    stride_q,
    width_v,
    scale,
    softcap,
    SOFTCAP: tl.constexpr,
):
    """Add the part of the other nodes that see a row to the gradients of its key and value.

    near_ptr: whether node 0 sees it; node 1 stands a line of `nodes` further, and so on.
    """
    for n in range(nodes):
        seen = tl.load(near_ptr + n * nodes, mask=real, other=0) != 0
        q = _of_node(own_q, n - node, stride_q, seen, inside)
        above = _of_node(own_above, n - node, width_v, seen, inside_v)
        out = _of_node(own_out, n - node, width_v, seen, inside_v)
        lse = tl.load(own_lse + (n - node), mask=seen, other=0.0)
        z = cap(tl.sum(q * k, 1) * scale, softcap, SOFTCAP)
        p, s = weigh(z, above, v, lse, tl.sum(out * above, 1), seen, scale, softcap, SOFTCAP)
        dk += s[:, None] * q
        dv += p[:, None] * above
    return dk, dv
