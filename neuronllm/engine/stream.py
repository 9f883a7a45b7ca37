"""Float32 through a model whose weights are in 16 bits.

An exact effect is a difference of two nearly equal numbers: where every layer rounds to bfloat16, most of a single
neuron's effect is rounded away. Here the residual stream, the norms, the head and what goes into the matrices are
float32; the weights keep their type and are widened one matrix at a time, while it is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..anatomy import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HALVES = (torch.bfloat16, torch.float16)


@contextmanager
def float32_stream(model: PreTrainedModel) -> Iterator[None]:
    """Compute in float32 while the context lasts; nothing to do in wider models."""
    layers, head = decoder_layers(model)[1], model.get_output_embeddings()
    cut = head is not None and "forward" in head.__dict__  # to the options, by `only_options`, in float32 already
    if not any(_halved(p) for p in layers.parameters()):
        yield
        return
    linears: list[nn.Module] = []
    others: list[nn.Module] = []
    small: list[nn.Module] = []
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.Embedding) or (cut and module is head) or not any(map(_halved, own)):
            continue
        matrix = any(p.ndim >= 2 for p in own)
        (linears if type(module) is nn.Linear else others if matrix else small).append(module)
    widened: list[tuple[nn.Parameter, Tensor]] = []
    owns = [linear.__dict__.get("forward") for linear in linears]
    handles = [layers[0].register_forward_pre_hook(_widen, with_kwargs=True)]
    try:
        for linear in linears:
            linear.forward = _linear(linear)
        for module in others:
            kept: list[tuple[nn.Parameter, Tensor]] = []
            handles.append(module.register_forward_pre_hook(lambda m, args, kept=kept: kept.extend(_widened(m))))
            handles.append(
                module.register_forward_hook(lambda m, args, out, kept=kept: _narrow(kept), always_call=True)
            )
        for module in small:
            widened += _widened(module)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for linear, own_forward in zip(linears, owns, strict=True):
            linear.__dict__.pop("forward", None)
            if own_forward is not None:
                linear.forward = own_forward
        _narrow(widened)


def _halved(parameter: nn.Parameter) -> bool:
    return parameter.dtype in HALVES and not parameter.is_meta


def _widen(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return tuple(map(_float, args)), {name: _float(value) for name, value in kwargs.items()}


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value


def _widened(module: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Give a module's own weights as float32, and what they were."""
    kept = [(p, p.data) for p in module.parameters(recurse=False) if _halved(p)]
    for parameter, data in kept:
        parameter.data = data.float()
    return kept


def _narrow(kept: list[tuple[nn.Parameter, Tensor]]) -> None:
    while kept:
        parameter, data = kept.pop()
        parameter.data = data


def _linear(linear: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if x.is_cuda:
            return _split_product(x.float(), linear.weight, linear.bias)
        return nn.functional.linear(x.float(), linear.weight.float(), _float(linear.bias))

    return forward


def _split_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T to about 16 bits at the speed of 16-bit hardware: x as the sum of two halves, summed in float32."""
    rows = x.reshape(-1, x.shape[-1])
    high = rows.to(weight.dtype)
    low = (rows - high.float()).to(weight.dtype)
    product = torch.mm(high, weight.T, out_dtype=torch.float32) + torch.mm(low, weight.T, out_dtype=torch.float32)
    product = product if bias is None else product + bias
    return product.reshape(*x.shape[:-1], -1)
