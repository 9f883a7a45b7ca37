"""What glu_score computes, in plain PyTorch, question by question; in float64 where it is given float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from neuronllm.kernels.questions import bounds

aten = torch.ops.aten


class Activation(NamedTuple):
    value: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]  # (gradient of the value, input) -> gradient of the input


ACTIVATIONS = {
    "identity": Activation(lambda g: g, lambda da, g: da),
    "silu": Activation(functional.silu, aten.silu_backward),
    "gelu_tanh": Activation(
        lambda g: functional.gelu(g, approximate="tanh"), lambda da, g: aten.gelu_backward(da, g, approximate="tanh")
    ),
    "gelu_erf": Activation(functional.gelu, aten.gelu_backward),
    "relu": Activation(torch.relu, lambda da, g: aten.threshold_backward(da, g, 0)),
    "relu2": Activation(
        lambda g: torch.relu(g).square(), lambda da, g: aten.threshold_backward(da * 2 * torch.relu(g), g, 0)
    ),
}


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def halves(gate: Tensor, up: Tensor | None, width: int) -> tuple[Tensor, Tensor | None]:
    """Gate and up, those of a fused gate_up cut apart."""
    return (gate, up) if gate.shape[1] == width else (gate[:, :width], gate[:, width:])


def products(
    gate: Tensor, up: Tensor | None, grad: Tensor, act: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """h, the gradients of gate and up, and up itself for rows of one question, at least float32."""
    g, u = halves(wide(gate), None if up is None else wide(up), grad.shape[1])
    dh = wide(grad)
    a = ACTIVATIONS[act].value(g)
    dg = ACTIVATIONS[act].backward(dh if u is None else dh * u, g)
    return (a if u is None else a * u), dg, (None if u is None else dh * a), dh, u


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
    """Scores (parts, questions, neurons) and the gradients, those of a fused gate_up in one tensor."""
    rows, width = grad.shape
    begins, counts = (part.tolist() for part in bounds(lengths, starts, rows))
    kind = torch.promote_types(grad.dtype, torch.float32)
    scores = grad.new_zeros((2 if split else 1, len(counts), width), dtype=kind)
    dgate = torch.zeros_like(gate, memory_format=torch.contiguous_format) if gradients else gate.new_empty(0)
    has_up = gradients and up is not None
    dup = torch.zeros_like(up, memory_format=torch.contiguous_format) if has_up else gate.new_empty(0)
    for q, (begin, count) in enumerate(zip(begins, counts, strict=True)):
        here = slice(begin, begin + count)
        h, dg, du, dh, _ = products(gate[here], None if up is None else up[here], grad[here], act)
        s = h * dh
        for part, kept in zip(scores, (s.clamp(min=0), s.clamp(max=0)) if split else (s,), strict=True):
            part[q] = kept.sum(0)
        if gradients:
            dgate[here] = (dg if du is None or up is not None else torch.cat([dg, du], 1)).to(gate.dtype)
        if has_up and du is not None:
            dup[here] = du.to(gate.dtype)
    if weights is not None:
        scores *= weights.to(scores).reshape(len(counts), -1)
    if into is not None:
        into += scores.sum(1)
        scores = into
    return scores, dgate, dup


def backward(
    upstream: Tensor,
    gate: Tensor,
    up: Tensor | None,
    grad: Tensor,
    starts: Tensor | None,
    lengths: Tensor | None,
    act: str,
    split: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the weighted sum of scores, for gate, up and grad; `upstream` has the shape of the scores."""
    dgate, dgrad = torch.zeros_like(gate), torch.zeros_like(grad)
    dup = gate.new_empty(0) if up is None else torch.zeros_like(up)
    begins, counts = (part.tolist() for part in bounds(lengths, starts, len(grad)))
    for q, (begin, count) in enumerate(zip(begins, counts, strict=True)):
        here = slice(begin, begin + count)
        h, dg, du, dh, _ = products(gate[here], None if up is None else up[here], grad[here], act)
        above = torch.where(h * dh >= 0, upstream[0, q], upstream[1, q]) if split else upstream[q]
        dgrad[here] = (above * h).to(grad.dtype)
        fused = du is not None and up is None
        dgate[here] = (torch.cat([above * dg, above * du], 1) if fused else above * dg).to(gate.dtype)
        if up is not None and du is not None:
            dup[here] = (above * du).to(gate.dtype)
    return dgate.contiguous(), dup.contiguous(), dgrad.contiguous()
