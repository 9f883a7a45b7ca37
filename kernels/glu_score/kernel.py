"""scores[q, f] = weight[q, f] * sum over the rows t of question q of act(gate[t, f]) * up[t, f] * grad[t, f],

and the gradients of gate and up, which are wanted anyway for the backward pass to go on. Neither h = act(gate) * up nor
h * grad is ever written. One program owns a chunk of a question's rows and a block of neurons, walks the rows in order
with its sums in registers and stores them once; a second launch adds up the chunks of a question, in order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuronllm.kernels.launch import config, launched_with, rows_together
from neuronllm.kernels.questions import Chunks, covering, cut
from neuronllm.kernels.tile import ACTIVATIONS, activation, backward, interpreted, store

FOLDER = Path(__file__).parent


@triton.jit
def _glu_score_kernel(
    g_ptr,
    u_ptr,
    dh_ptr,
    dg_ptr,
    du_ptr,
    out_ptr,
    neg_ptr,
    weight_ptr,
    table_ptr,
    chunks,
    width,
    stride_g,
    stride_u,
    stride_dh,
    stride_dg,
    stride_du,
    stride_wq,
    stride_wf,
    ACT: tl.constexpr,
    HAS_UP: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    GRADIENTS: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    chunk = tl.program_id(0)
    start = tl.load(table_ptr + chunks + chunk).to(tl.int64)
    count = tl.load(table_ptr + 2 * chunks + chunk)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    c = column[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    negative = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, count, ROWS):
        t = first + tl.arange(0, ROWS)
        mask = (t < count)[:, None] & inside[None, :]
        row = (start + t)[:, None]
        g = tl.load(g_ptr + row * stride_g + c, mask=mask, other=0.0).to(tl.float32)
        dh = tl.load(dh_ptr + row * stride_dh + c, mask=mask, other=0.0).to(tl.float32)
        a, d = activation(g, ACT)
        h = a
        if HAS_UP:
            u = tl.load(u_ptr + row * stride_u + c, mask=mask, other=0.0).to(tl.float32)
            h = a * u
            if GRADIENTS:
                store(dg_ptr + row * stride_dg + c, backward(dh * u, g, d, ACT), mask, INTERPRETED)
                store(du_ptr + row * stride_du + c, dh * a, mask, INTERPRETED)
        elif GRADIENTS:
            store(dg_ptr + row * stride_dg + c, backward(dh, g, d, ACT), mask, INTERPRETED)
        s = h * dh
        if SPLIT:
            total += tl.where(s < 0, 0.0, s)
            negative += tl.where(s > 0, 0.0, s)
        else:
            total += s
    place = chunk.to(tl.int64) * width + column
    sums = tl.sum(total, 0)
    lows = tl.sum(negative, 0)
    if HAS_WEIGHT:
        question = tl.load(table_ptr + chunk).to(tl.int64)
        w = tl.load(weight_ptr + question * stride_wq + column * stride_wf, mask=inside, other=0.0)
        sums *= w
        lows *= w
    tl.store(out_ptr + place, sums, mask=inside)
    if SPLIT:
        tl.store(neg_ptr + place, lows, mask=inside)


@triton.jit
def _chunk_sum_kernel(
    part_ptr,
    out_ptr,
    weight_ptr,
    first_ptr,
    table_ptr,
    chunks,
    width,
    stride_wq,
    stride_wf,
    HAS_WEIGHT: tl.constexpr,
    RUNNING: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[q] = weight[q] * the sum of q's chunks; RUNNING: out[0] += the sum of all chunks, each with its weight."""
    question = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    if RUNNING:
        begin = 0
        end = chunks
    else:
        begin = tl.load(first_ptr + question)
        end = tl.load(first_ptr + question + 1)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(begin, end, ROWS):
        chunk = at + tl.arange(0, ROWS)
        mask = (chunk < end)[:, None] & inside[None, :]
        part = tl.load(part_ptr + chunk.to(tl.int64)[:, None] * width + column[None, :], mask=mask, other=0.0)
        if RUNNING and HAS_WEIGHT:
            owner = tl.load(table_ptr + chunk, mask=chunk < end, other=0).to(tl.int64)
            place = owner[:, None] * stride_wq + column[None, :] * stride_wf
            part *= tl.load(weight_ptr + place, mask=mask, other=0.0)
        total += part
    sums = tl.sum(total, 0)
    out = out_ptr + question.to(tl.int64) * width + column
    if RUNNING:
        sums += tl.load(out, mask=inside, other=0.0)
    elif HAS_WEIGHT:
        w = weight_ptr + question.to(tl.int64) * stride_wq + column * stride_wf
        sums *= tl.load(w, mask=inside, other=0.0)
    tl.store(out, sums, mask=inside)


def glu_score(
    gate: Tensor,
    up: Tensor | None,
    grad: Tensor,
    starts: Tensor | None,
    lengths: Tensor | None,
    weights: Tensor | None,
    act: str,
    split: bool,
    gradients: bool,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch. Scores (parts, questions, neurons) and the gradients, those of a fused gate_up in one tensor."""
    rows, width = grad.shape
    gate, grad = rows_together(gate), rows_together(grad)
    fused = gate.shape[1] != width
    g, u = (gate[:, :width], gate[:, width:]) if fused else (gate, None if up is None else rows_together(up))
    dgate, dup, dg, du = _gradients(gate, up, fused, width, gradients, covering(lengths, starts, rows))
    sizes = config(FOLDER, str(grad.dtype).removeprefix("torch."), grad.device)
    chunks = cut(lengths, starts, rows, sizes["chunk"], grad.device)
    direct, count = chunks.single and into is None, chunks.table.shape[1]
    parts = grad.new_empty((2 if split else 1, count, width), dtype=torch.float32)
    weight, stride_wq, stride_wf = weight_of(weights, grad.device)
    if parts.numel():
        _glu_score_kernel[(count, triton.cdiv(width, sizes["columns"]))](
            g,
            g if u is None else u,
            grad,
            g if dg is None else dg,
            g if du is None else du,
            parts[0],
            parts[-1],
            parts if weight is None else weight,
            chunks.table,
            count,
            width,
            g.stride(0),
            0 if u is None else u.stride(0),
            grad.stride(0),
            0 if dg is None else dg.stride(0),
            0 if du is None else du.stride(0),
            stride_wq,
            stride_wf,
            ACT=ACTIVATIONS[act],
            HAS_UP=u is not None,
            HAS_WEIGHT=direct and weight is not None,
            GRADIENTS=gradients,
            SPLIT=split,
            ROWS=sizes["rows"],
            COLUMNS=sizes["columns"],
            INTERPRETED=interpreted(_glu_score_kernel),
            **launched_with(sizes),
        )
    scores = parts if direct else add_chunks(parts, chunks, weights, into)
    return scores, dgate, dup


def _gradients(
    gate: Tensor, up: Tensor | None, fused: bool, width: int, wanted: bool, covered: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """What is returned, and where the kernel writes; rows of no question stay zero."""
    if not wanted:
        return gate.new_empty(0), gate.new_empty(0), None, None
    make: Any = torch.empty_like if covered else torch.zeros_like
    dgate = make(gate, memory_format=torch.contiguous_format)
    if fused:
        return dgate, gate.new_empty(0), dgate[:, :width], dgate[:, width:]
    dup = gate.new_empty(0) if up is None else make(up, memory_format=torch.contiguous_format)
    return dgate, dup, dgate, None if up is None else dup


def weight_of(weights: Tensor | None, device: torch.device) -> tuple[Tensor | None, int, int]:
    """Weights in float32 with their strides; one a question is the same for every neuron."""
    if weights is None:
        return None, 0, 0
    weights = weights.to(device, torch.float32)
    return weights, weights.stride(0), weights.stride(1) if weights.ndim == 2 else 0


def add_chunks(parts: Tensor, chunks: Chunks, weights: Tensor | None, into: Tensor | None = None) -> Tensor:
    """Sums of chunks (parts, chunks, neurons) by question, or all of them added to `into` (parts, neurons)."""
    _, count, width = parts.shape
    questions = len(chunks.first) - 1
    out = parts.new_empty((len(parts), questions, width)) if into is None else into
    weight, stride_wq, stride_wf = weight_of(weights, parts.device)
    sizes = config(FOLDER, "chunk_sum", parts.device)
    grid = (1 if into is not None else questions, triton.cdiv(width, sizes["columns"]))
    if width and grid[0]:
        for part, sums in zip(parts, out, strict=True):
            _chunk_sum_kernel[grid](
                part,
                sums,
                part if weight is None else weight,
                chunks.first,
                chunks.table,
                count,
                width,
                stride_wq,
                stride_wf,
                HAS_WEIGHT=weight is not None,
                RUNNING=into is not None,
                ROWS=sizes["rows"],
                COLUMNS=sizes["columns"],
                **launched_with(sizes),
            )
    return out
