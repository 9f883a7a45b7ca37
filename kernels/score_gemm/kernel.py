"""scores[q, f] = weights[q, f] * sum over the rows t of q of act(gate[t, f]) * up[t, f] * (grad[t] . weight[:, f]).

A product of matrices whose result never leaves the registers: a tile of grad @ weight, the gradient at h, is multiplied
by h, which is made on the fly from gate and up, and summed over the rows of its question. One program owns one chunk of
a question, at most a tile of rows, and one block of neurons; the sums of chunks are added up as in glu_score.
"""

from __future__ import annotations

from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuronllm.kernels.glu_score.kernel import add_chunks, weight_of
from neuronllm.kernels.glu_score.reference import halves
from neuronllm.kernels.launch import config, launched_with, rows_together
from neuronllm.kernels.questions import cut
from neuronllm.kernels.tile import ACTIVATIONS, activation, interpreted

FOLDER = Path(__file__).parent


@triton.jit
def _score_gemm_kernel(
    grad_ptr,
    w_ptr,
    g_ptr,
    u_ptr,
    out_ptr,
    weight_ptr,
    table_ptr,
    chunks,
    rows,
    width,
    neurons,
    stride_grad,
    stride_wd,
    stride_wf,
    stride_g,
    stride_u,
    stride_q,
    stride_qf,
    ACT: tl.constexpr,
    HAS_UP: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    EACH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """EACH: every row is a question of its own, and a tile of rows is stored as it is."""
    chunk = tl.program_id(0)
    if EACH:
        start = chunk.to(tl.int64) * ROWS
        count = tl.minimum(rows - chunk * ROWS, ROWS)
    else:
        start = tl.load(table_ptr + chunks + chunk).to(tl.int64)
        count = tl.load(table_ptr + 2 * chunks + chunk)
    r = tl.arange(0, ROWS)
    row = (start + r)[:, None]
    f = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    f64 = f.to(tl.int64)
    real = (r < count)[:, None]
    inside = (f < neurons)[None, :]
    dh = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, width, DEPTH):
        d = first + tl.arange(0, DEPTH)
        near = d < width
        a = tl.load(grad_ptr + row * stride_grad + d[None, :], mask=real & near[None, :], other=0.0)
        place = d.to(tl.int64)[:, None] * stride_wd + f64[None, :] * stride_wf
        w = tl.load(w_ptr + place, mask=near[:, None] & inside, other=0.0)
        if INTERPRETED:
            a = a.to(tl.float32)
            w = w.to(tl.float32)
        dh = tl.dot(a, w, dh, input_precision="ieee")
    mask = real & inside
    g = tl.load(g_ptr + row * stride_g + f[None, :], mask=mask, other=0.0).to(tl.float32)
    h, _ = activation(g, ACT)
    if HAS_UP:
        h *= tl.load(u_ptr + row * stride_u + f[None, :], mask=mask, other=0.0).to(tl.float32)
    s = tl.where(mask, h * dh, 0.0)  # a weight that is not finite makes NaN of rows that are not there
    if EACH:
        if HAS_WEIGHT:
            s *= tl.load(weight_ptr + row * stride_q + f64[None, :] * stride_qf, mask=mask, other=0.0)
        tl.store(out_ptr + row * neurons + f[None, :], s, mask=mask)
    else:
        sums = tl.sum(s, 0)
        if HAS_WEIGHT:
            question = tl.load(table_ptr + chunk).to(tl.int64)
            sums *= tl.load(weight_ptr + question * stride_q + f64 * stride_qf, mask=f < neurons, other=0.0)
        tl.store(out_ptr + chunk.to(tl.int64) * neurons + f, sums, mask=f < neurons)


def score_gemm(
    grad: Tensor,
    weight: Tensor,
    gate: Tensor,
    up: Tensor | None,
    starts: Tensor | None,
    lengths: Tensor | None,
    weights: Tensor | None,
    act: str,
    each: bool,
) -> Tensor:
    """Launch. Scores (questions, neurons), float32; with `each` every row is a question."""
    (rows, width), neurons = grad.shape, weight.shape[1]
    grad = rows_together(grad)
    g, u = (None if x is None else rows_together(x) for x in halves(gate, up, neurons))
    assert g is not None
    sizes = config(FOLDER, str(grad.dtype).removeprefix("torch."), grad.device)
    chunks = None if each else cut(lengths, starts, rows, sizes["rows"], grad.device)
    direct = chunks is None or chunks.single
    count = triton.cdiv(rows, sizes["rows"]) if chunks is None else chunks.table.shape[1]
    parts = grad.new_empty((1, rows if chunks is None else count, neurons), dtype=torch.float32)
    factor, stride_q, stride_qf = weight_of(weights, grad.device)
    if parts.numel():
        _score_gemm_kernel[(count, triton.cdiv(neurons, sizes["columns"]))](
            grad,
            weight,
            g,
            g if u is None else u,
            parts,
            parts if factor is None else factor,
            grad if chunks is None else chunks.table,
            count,
            rows,
            width,
            neurons,
            grad.stride(0),
            weight.stride(0),
            weight.stride(1),
            g.stride(0),
            0 if u is None else u.stride(0),
            stride_q,
            stride_qf,
            ACT=ACTIVATIONS[act],
            HAS_UP=u is not None,
            HAS_WEIGHT=direct and factor is not None,
            EACH=each,
            ROWS=sizes["rows"],
            COLUMNS=sizes["columns"],
            DEPTH=sizes["depth"],
            INTERPRETED=interpreted(_score_gemm_kernel),
            **launched_with(sizes),
        )
    return parts[0] if direct or chunks is None else add_chunks(parts, chunks, weights)[0]
