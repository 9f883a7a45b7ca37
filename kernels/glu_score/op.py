"""glu_score as operators of PyTorch: `neuronllm::glu_score` is differentiable, `neuronllm::glu_score_into` adds up."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuronllm.common.errors import InputError
from neuronllm.kernels.checks import FLOATS, check_flags, check_given, check_name, check_tensors, check_weights
from neuronllm.kernels.launch import check_backend, on_device, uses_triton
from neuronllm.kernels.questions import check_questions

from . import reference

TYPES = (torch.float16, torch.bfloat16, torch.float32)
_INPUTS = (
    "Tensor gate, Tensor? up, Tensor grad, Tensor? starts, Tensor? lengths, Tensor? weights, "
    "str act, bool split, bool gradients, str backend"
)


class GluScore(NamedTuple):
    """Scores float32 (questions, neurons), with split (2, questions, neurons): the positive, then the negative parts.

    The gradients have the types of gate and up; they are None where they were not asked for, the one of a fused gate_up
    is whole in `gate`.
    """

    scores: Tensor
    gate: Tensor | None
    up: Tensor | None


def glu_score(
    gate: Tensor,
    up: Tensor | None,
    grad: Tensor,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    *,
    act: str = "silu",
    weights: Tensor | None = None,
    split: bool = False,
    gradients: bool = True,
    into: Tensor | None = None,
    backend: str = "auto",
) -> GluScore:
    """Scores of neurons, act(gate) * up * grad summed over each question's rows, and the gradients of gate and up.

    gate, up and grad are (rows, neurons); grad is the gradient at act(gate) * up. Without up, a gate of twice the width
    is a fused gate_up (gate first), and one of the same width an FFN without a gate: h = act(gate). act is one of
    identity, silu, gelu_tanh, gelu_erf, relu and relu2.

    Question q owns lengths[q] rows from starts[q] on (default: one behind the other); without lengths all rows are one
    question. Rows of no question get gradients of zero; questions may not share a row. Lengths on the CPU are faster.
    weights, (questions,) or (questions, neurons), multiply a question's scores. split keeps positive and negative
    products apart. into, float32 (neurons,) or with split (2, neurons), is a running sum over all questions that the
    scores are added to; it is not differentiable and shares no memory with an input.

    >>> gate, up, grad = torch.ones(3, 2), torch.ones(3, 2), torch.ones(3, 2)
    >>> glu_score(gate, up, grad, torch.tensor([1, 2]), act="relu").scores
    tensor([[1., 1.],
            [2., 2.]])
    """
    check_given(gate=gate, grad=grad)
    check_tensors(up=up, weights=weights, into=into)
    check_flags(split=split, gradients=gradients)
    check_backend(backend)
    _check(gate, up, grad, lengths, starts, act)
    questions = 1 if lengths is None else lengths.shape[0]
    check_weights(weights, questions, grad.shape[1], "grad", grad.device)
    if into is None:
        scores, dgate, dup = _op(gate, up, grad, starts, lengths, weights, act, split, gradients, backend)
    else:
        if into.shape != ((2, grad.shape[1]) if split else (grad.shape[1],)) or not into.is_contiguous():
            raise InputError("into: give a contiguous (neurons,) tensor, (2, neurons) with split")
        if into.dtype != torch.promote_types(grad.dtype, torch.float32) or into.device != grad.device:
            raise InputError("into: give float32 (float64 for float64 inputs) on the device of grad")
        asked = any(x is not None and x.requires_grad for x in (gate, up, grad)) and torch.is_grad_enabled()
        if into.requires_grad or asked:
            raise InputError("into: a running sum is not differentiable, detach it, gate, up and grad (or use no_grad)")
        dgate, dup = _op_into(into, gate, up, grad, starts, lengths, weights, act, split, gradients, backend)
        scores = into
    return GluScore(scores, dgate if gradients else None, dup if gradients and up is not None else None)


def _check(
    gate: Tensor,
    up: Tensor | None,
    grad: Tensor,
    lengths: Tensor | None,
    starts: Tensor | None,
    act: str,
) -> None:
    check_name("act", act, reference.ACTIVATIONS, "activations")
    for name, x in (("gate", gate), ("up", up), ("grad", grad)):
        if x is not None and (x.ndim != 2 or x.dtype not in FLOATS):
            raise InputError(f"{name}: give a matrix (rows, neurons) of float16, bfloat16, float32 or float64")
        if x is not None and (x.dtype != grad.dtype or x.device != grad.device):
            raise InputError(f"{name}: gate, up and grad must have one type and one device")
    rows, width = grad.shape
    fits = [(rows, width)] if up is not None else [(rows, width), (rows, 2 * width)]
    if tuple(gate.shape) not in fits or (up is not None and tuple(up.shape) != (rows, width)):
        raise InputError(
            f"gate, up: give the shape of grad, ({rows}, {width}), or gate_up of twice the width without up"
        )
    check_questions(lengths, starts, "grad", grad.device)


def _refusal(grad: Tensor) -> str | None:
    return None if grad.dtype in TYPES else f"the kernel takes float16, bfloat16 and float32, not {grad.dtype}"


def _forward(*inputs: Any, backend: str, into: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    gate, up, grad = inputs[:3]
    if uses_triton("glu_score", backend, grad, refusal=_refusal(grad)):
        from . import kernel

        with on_device(grad):
            return kernel.glu_score(*inputs, into=into)
    return reference.glu_score(*inputs, into=into)


@torch.library.custom_op("neuronllm::glu_score", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor)")
def _op(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    scores, dgate, dup = _forward(*inputs[:-1], backend=inputs[-1])
    split = inputs[7]
    return scores if split else scores[0], dgate, dup


@_op.register_fake
def _fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    gate, up, grad, _, lengths, _, _, split, gradients, _ = inputs
    questions = 1 if lengths is None else lengths.shape[0]
    shape = ((2,) if split else ()) + (questions, grad.shape[1])
    return grad.new_empty(shape, dtype=torch.promote_types(grad.dtype, torch.float32)), *_fake_gradients(
        gate, up, gradients
    )


def _fake_gradients(gate: Tensor, up: Tensor | None, gradients: bool) -> tuple[Tensor, Tensor]:
    nothing = gate.new_empty(0)
    if not gradients:
        return nothing, gate.new_empty(0)
    return gate.new_empty(gate.shape), nothing if up is None else up.new_empty(up.shape)


@torch.library.custom_op(
    "neuronllm::glu_score_into", mutates_args=("into",), schema=f"(Tensor(a!) into, {_INPUTS}) -> (Tensor, Tensor)"
)
def _op_into(into: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    for x in inputs[:6]:
        if x is not None and _overlap(into, x):
            raise InputError("into: it shares memory with an input, give a tensor of its own")
    _, dgate, dup = _forward(*inputs[:-1], backend=inputs[-1], into=into if into.ndim == 2 else into[None])
    return dgate, dup


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the memory from the first to the last element of one meets that of the other."""
    if not a.numel() or not b.numel() or a.device != b.device:
        return False
    (first, last), (begin, end) = (
        (
            x.data_ptr(),
            x.data_ptr() + x.element_size() * sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)),
        )
        for x in (a, b)
    )
    return first < end + b.element_size() and begin < last + a.element_size()


@_op_into.register_fake
def _fake_into(into: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    return _fake_gradients(inputs[0], inputs[1], inputs[8])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    gate, up, grad, starts, lengths, weights, ctx.act, ctx.split, _, _ = inputs
    ctx.save_for_backward(gate, up, grad, starts, lengths, weights)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """A score is a sum of products of three, so each factor's gradient is the other two, times that of the score."""
    gate, up, grad, starts, lengths, weights = ctx.saved_tensors
    upstream = grads[0] if weights is None else grads[0] * weights.reshape(weights.shape[0], -1)
    dgate, dup, dgrad = _op_backward(upstream, gate, up, grad, starts, lengths, ctx.act, ctx.split)
    return dgate, None if up is None else dup, dgrad, *[None] * 7


@torch.library.custom_op(
    "neuronllm::glu_score_backward",
    mutates_args=(),
    schema="(Tensor upstream, Tensor gate, Tensor? up, Tensor grad, Tensor? starts, Tensor? lengths, str act, "
    "bool split) -> (Tensor, Tensor, Tensor)",
)
def _op_backward(
    upstream: Tensor,
    gate: Tensor,
    up: Tensor | None,
    grad: Tensor,
    starts: Tensor | None,
    lengths: Tensor | None,
    act: str,
    split: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.backward(upstream, gate, up, grad, starts, lengths, act, split)


@_op_backward.register_fake
def _fake_backward(upstream: Tensor, gate: Tensor, up: Tensor | None, grad: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return *_fake_gradients(gate, up, True), grad.new_empty(grad.shape)


_op.register_autograd(_backward, setup_context=_save)
