"""contrastive_ce as an operator of PyTorch, `neuronllm::contrastive_ce`; its value is differentiable by hidden."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuronllm.common.errors import InputError
from neuronllm.kernels.checks import (
    FLOATS,
    WHOLE,
    check_device,
    check_given,
    check_name,
    check_scale,
    check_softcap,
    check_tensors,
)
from neuronllm.kernels.launch import check_backend, on_device, uses_triton

from . import reference

TYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_TOKENS = 32  # of a question's options, that the kernel holds at once


class ContrastiveCE(NamedTuple):
    """The objective (rows,), the options' scores (rows, options) and the objective's gradient by hidden (rows, width).

    All are float32 (float64 for float64 inputs). An option without tokens has the score -1e30.
    Of a row without any token, which only the CPU refuses, the gradient by the options is 0, and so is p_options.
    """

    value: Tensor
    options: Tensor
    grad: Tensor


def contrastive_ce(
    hidden: Tensor,
    weight: Tensor,
    options: Tensor,
    right: Tensor,
    *,
    objective: str = "logp_options",
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    backend: str = "auto",
) -> ContrastiveCE:
    """An objective of multiple-choice answers from final hidden states and the rows of the head, and its gradient.

    hidden is (rows, width), the head's weight (vocabulary, width) and bias (vocabulary,). options holds the token ids
    of every option, (rows, options) or (rows, options, forms) where an option may be written in several ways; -1 is no
    token. right is the right option of every row. A logit is scale * (hidden . weight + bias), then
    softcap * tanh(logit / softcap); the score of an option is the logsumexp over its tokens. The objective is one of
    logp_options (minus the cross-entropy over the options), p_options, margin (right score minus the logsumexp of the
    others), logp_vocab and p_vocab (normalised by the whole vocabulary).

    value.sum().backward() gives hidden the gradient that is also returned. The head takes no gradient.

    >>> hidden, weight = torch.tensor([[1.0, 0.0]]), torch.eye(3, 2)
    >>> contrastive_ce(hidden, weight, torch.tensor([[0, 1]]), torch.tensor([0]), objective="margin").value
    tensor([1.])
    """
    check_given(hidden=hidden, weight=weight, options=options, right=right)
    check_tensors(bias=bias)
    options = options[..., None] if options.ndim == 2 else options
    _check(hidden, weight, options, right, objective, bias)
    check_scale(scale)
    check_softcap(softcap)
    check_backend(backend)
    return ContrastiveCE(*_op(hidden, weight, options, right, bias, objective, scale, softcap, backend))


def _check(hidden: Tensor, weight: Tensor, options: Tensor, right: Tensor, objective: str, bias: Tensor | None) -> None:
    check_name("objective", objective, reference.OBJECTIVES, "objectives")
    if hidden.ndim != 2 or hidden.dtype not in FLOATS:
        raise InputError("hidden: give final hidden states (rows, width), float16, bfloat16, float32 or float64")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1] or weight.dtype != hidden.dtype:
        raise InputError(f"weight: give the head, (vocabulary, {hidden.shape[1]}), in hidden's type")
    if not weight.shape[0]:
        raise InputError("weight: the vocabulary is empty, give a head of at least one row")
    shaped = options.ndim == 3 and options.shape[0] == hidden.shape[0] and 0 not in options.shape[1:]
    if not shaped or options.dtype not in WHOLE:
        raise InputError("options: give whole numbers (rows, options) or (rows, options, forms), at least one option")
    if right.shape != hidden.shape[:1] or right.dtype not in WHOLE:
        raise InputError("right: give the place of the right option, a whole number a row")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise InputError("bias: give one number a row of weight, in its type")
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise InputError("weight, bias: the head takes no gradient here, detach it")
    check_device("hidden", hidden.device, weight=weight, options=options, right=right, bias=bias)


def _check_ids(options: Tensor, right: Tensor, vocabulary: int) -> None:
    """What can be looked at without waiting for a device."""
    if int(options.max()) >= vocabulary:
        raise InputError(f"options: token id {int(options.max())} is outside the vocabulary of {vocabulary}")
    empty = (options < 0).flatten(1).all(1)
    if bool(empty.any()):
        raise InputError(f"options: row {int(empty.int().argmax())} has no token at all, leave it out")
    if int(right.min()) < 0 or int(right.max()) >= options.shape[1]:
        raise InputError(f"right: give places from 0 to {options.shape[1] - 1}")


def _refusal(hidden: Tensor, options: Tensor) -> str | None:
    if hidden.dtype not in TYPES:
        return f"the kernel takes float16, bfloat16 and float32, not {hidden.dtype}"
    count, forms = (1 << (n - 1).bit_length() for n in options.shape[1:])
    if count * forms > MOST_TOKENS:
        return f"the kernel takes at most {MOST_TOKENS} option tokens a question"
    return None


@torch.library.custom_op(
    "neuronllm::contrastive_ce",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor options, Tensor right, Tensor? bias, str objective, float scale, "
    "float? softcap, str backend) -> (Tensor, Tensor, Tensor)",
)
def _op(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *values, backend = inputs
    hidden, _, options, right = values[:4]
    if options.device.type == "cpu" and right.device.type == "cpu" and len(options):
        _check_ids(options, right, len(values[1]))
    if uses_triton("contrastive_ce", backend, hidden, refusal=_refusal(hidden, options)):
        from . import kernel

        with on_device(hidden):
            return kernel.contrastive_ce(*values)
    return reference.contrastive_ce(*values)


@_op.register_fake
def _fake(hidden: Tensor, weight: Tensor, options: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    kind = torch.promote_types(hidden.dtype, torch.float32)
    rows, count = options.shape[:2]
    shapes: tuple[Any, ...] = ((rows,), (rows, count), hidden.shape)
    value, scores, grad = (hidden.new_empty(shape, dtype=kind) for shape in shapes)
    return value, scores, grad


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[2])
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return (grads[0][:, None] * grad).to(ctx.dtype), *[None] * 8


_op.register_autograd(_backward, setup_context=_save)
