"""score_gemm as an operator of PyTorch, `neuronllm::score_gemm`, differentiable by grad, gate and up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neuronllm.common.errors import InputError
from neuronllm.kernels.checks import FLOATS, check_flags, check_given, check_name, check_tensors, check_weights
from neuronllm.kernels.glu_score.reference import ACTIVATIONS
from neuronllm.kernels.launch import check_backend, on_device, uses_triton
from neuronllm.kernels.questions import check_questions

from . import reference

TYPES = (torch.float16, torch.bfloat16, torch.float32)
_INPUTS = "Tensor grad, Tensor weight, Tensor gate, Tensor? up, Tensor? starts, Tensor? lengths"


def score_gemm(
    grad: Tensor,
    weight: Tensor,
    gate: Tensor,
    up: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    *,
    act: str = "silu",
    weights: Tensor | None = None,
    each: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Scores of neurons from the gradient at the down projection's output: h * (grad @ weight), summed over questions.

    grad is (rows, width), weight the down projection (width, neurons), any strides; gate and up are (rows, neurons), of
    which h = act(gate) * up is made as in `glu_score`: a gate of twice the width is a fused gate_up, without up h is
    act(gate), and act="identity" takes h itself. The gradient at h, rows x neurons, is never written. lengths, starts
    and weights are those of `glu_score`; with each, every row is a question of its own. Float32 (questions, neurons);
    float64 for float64 inputs.

    >>> grad, weight, h = torch.ones(3, 2), torch.ones(2, 4), torch.ones(3, 4)
    >>> score_gemm(grad, weight, h, act="identity")
    tensor([[6., 6., 6., 6.]])
    """
    check_given(grad=grad, weight=weight, gate=gate)
    check_tensors(up=up, weights=weights)
    check_flags(each=each)
    check_backend(backend)
    _check(grad, weight, gate, up, act)
    check_questions(lengths, starts, "grad", grad.device)
    if each and lengths is not None:
        raise InputError("each: every row is a question then, leave lengths out")
    questions = len(grad) if each else 1 if lengths is None else lengths.shape[0]
    check_weights(weights, questions, weight.shape[1], "grad", grad.device)
    if weight.requires_grad:
        raise InputError("weight: it takes no gradient here, detach it")
    return _op(grad, weight, gate, up, starts, lengths, weights, act, each, backend)


def _check(grad: Tensor, weight: Tensor, gate: Tensor, up: Tensor | None, act: str) -> None:
    check_name("act", act, ACTIVATIONS, "activations")
    for name, x in (("grad", grad), ("weight", weight), ("gate", gate), ("up", up)):
        if x is not None and (x.ndim != 2 or x.dtype not in FLOATS):
            raise InputError(f"{name}: give a matrix of float16, bfloat16, float32 or float64")
        if x is not None and (x.dtype != grad.dtype or x.device != grad.device):
            raise InputError(f"{name}: grad, weight, gate and up must have one type and one device")
    if weight.shape[0] != grad.shape[1]:
        raise InputError(
            f"weight: give ({grad.shape[1]}, neurons), the transpose of a matrix that is the other way round"
        )
    (rows, _), neurons = grad.shape, weight.shape[1]
    fits = [(rows, neurons)] if up is not None else [(rows, neurons), (rows, 2 * neurons)]
    if tuple(gate.shape) not in fits or (up is not None and tuple(up.shape) != (rows, neurons)):
        raise InputError(f"gate, up: give ({rows}, {neurons}), or gate_up of twice the width without up")


@torch.library.custom_op(
    "neuronllm::score_gemm",
    mutates_args=(),
    schema=f"({_INPUTS}, Tensor? weights, str act, bool each, str backend) -> Tensor",
)
def _op(*inputs: Any) -> Tensor:
    *values, backend = inputs
    refusal = None if values[0].dtype in TYPES else f"the kernel takes 16-bit types and float32, not {values[0].dtype}"
    if uses_triton("score_gemm", backend, values[0], refusal=refusal):
        from . import kernel

        with on_device(values[0]):
            return kernel.score_gemm(*values)
    return reference.score_gemm(*values)


@_op.register_fake
def _fake(grad: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    lengths, each = rest[3], rest[6]
    questions = grad.shape[0] if each else 1 if lengths is None else lengths.shape[0]
    return grad.new_empty((questions, weight.shape[1]), dtype=torch.promote_types(grad.dtype, torch.float32))


@torch.library.custom_op(
    "neuronllm::score_gemm_backward",
    mutates_args=(),
    schema=f"(Tensor upstream, {_INPUTS}, str act, bool each) -> (Tensor, Tensor, Tensor)",
)
def _op_backward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return reference.backward(*inputs)


@_op_backward.register_fake
def _fake_backward(
    upstream: Tensor, grad: Tensor, weight: Tensor, gate: Tensor, up: Any, *_: Any
) -> tuple[Tensor, ...]:
    dup = gate.new_empty(0) if up is None else up.new_empty(up.shape)
    return grad.new_empty(grad.shape), gate.new_empty(gate.shape), dup


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.act, ctx.each, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """A score is a sum of products: each factor's gradient is the others, times that of the score."""
    *tensors, weights = ctx.saved_tensors
    if weights is not None:
        upstream = upstream * weights.reshape(weights.shape[0], -1)
    dgrad, dgate, dup = _op_backward(upstream, *tensors, ctx.act, ctx.each)
    return dgrad, None, dgate, None if tensors[3] is None else dup, *[None] * 6


_op.register_autograd(_backward, setup_context=_save)
