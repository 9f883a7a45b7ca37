"""What score_gemm computes, in plain PyTorch, question by question; in float64 where it is given float64."""

from __future__ import annotations

import torch
from torch import Tensor

from neuronllm.kernels.glu_score.reference import products, wide
from neuronllm.kernels.questions import bounds


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
    """Scores (questions, neurons); with `each` every row is a question."""
    if each:
        scores = _h(gate, up, act, weight.shape[1]) * (wide(grad) @ wide(weight))
    else:
        begins, counts = (part.tolist() for part in bounds(lengths, starts, len(grad)))
        scores = wide(grad).new_zeros(len(counts), weight.shape[1])
        for q, (begin, count) in enumerate(zip(begins, counts, strict=True)):
            here = slice(begin, begin + count)
            h = _h(gate[here], None if up is None else up[here], act, weight.shape[1])
            scores[q] = (h * (wide(grad[here]) @ wide(weight))).sum(0)
    return scores if weights is None else scores * weights.to(scores).reshape(len(scores), -1)


def _h(gate: Tensor, up: Tensor | None, act: str, width: int) -> Tensor:
    return products(gate, up, gate.new_zeros(len(gate), width), act)[0]


def backward(
    upstream: Tensor,
    grad: Tensor,
    weight: Tensor,
    gate: Tensor,
    up: Tensor | None,
    starts: Tensor | None,
    lengths: Tensor | None,
    act: str,
    each: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the weighted sum of scores, for grad, gate and up; `upstream` has the shape of the scores."""
    rows, width = len(grad), weight.shape[1]
    above = upstream
    if not each:
        above = upstream.new_zeros(rows, width)
        begins, counts = (part.tolist() for part in bounds(lengths, starts, rows))
        for q, (begin, count) in enumerate(zip(begins, counts, strict=True)):
            above[begin : begin + count] = upstream[q]
    dh = wide(grad) @ wide(weight)
    h, dg, du, *_ = products(gate, up, above * dh, act)
    dgate = dg if du is None or up is not None else torch.cat([dg, du], 1)
    dgrad = ((above * h) @ wide(weight).T).to(grad.dtype)
    dup = gate.new_empty(0) if up is None or du is None else du.to(up.dtype)
    return dgrad.contiguous(), dgate.to(gate.dtype).contiguous(), dup.contiguous()
