"""A residual stream in float32 through a model whose weights are in 16 bits.

An exact effect is a difference of two nearly equal numbers: in bfloat16 most of a single neuron's effect is rounded
away as soon as it is added to the residual stream. Here the stream, the norms and the head work in float32, while the
matrices keep their type and see inputs in it.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    """The residual stream in float32 while the context lasts; nothing to do in wider models."""
    head, layers = model.get_output_embeddings(), decoder_layers(model)[1]
    matrices = [m for m in model.modules() if _halves(m, 2) and not isinstance(m, nn.Embedding) and m is not head]
    vectors = [m for m in model.modules() if _halves(m, 1) and not _halves(m, 2)]
    kept: list[tuple[nn.Parameter, Tensor]] = []
    handles: list[Any] = []
    try:
        if _halves(layers, 0):
            handles.append(layers[0].register_forward_pre_hook(_widen, with_kwargs=True))
        for module in matrices:
            handles.append(module.register_forward_pre_hook(_narrow(module), with_kwargs=True))
        for module in vectors:
            for parameter in module.parameters(recurse=False):
                kept.append((parameter, parameter.data))
                parameter.data = parameter.data.float()
        with _wide_head(head):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, data in kept:
            parameter.data = data


def _halves(module: nn.Module, ndim: int) -> bool:
    """Whether a module itself holds 16-bit weights of at least so many dimensions (0: it or a part of it)."""
    parameters = module.parameters(recurse=ndim == 0)
    return any(p.dtype in HALVES and p.ndim >= ndim and not p.is_meta for p in parameters)


def _widen(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return tuple(map(_float, args)), {name: _float(value) for name, value in kwargs.items()}


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value


def _narrow(module: nn.Module) -> Any:
    dtype = next(p.dtype for p in module.parameters(recurse=False) if p.dtype in HALVES)

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}

    return hook


@contextmanager
def _wide_head(head: Any) -> Iterator[None]:
    """The head in float32, unless it is already replaced by one of a few rows."""
    if "forward" in head.__dict__ or not _halves(head, 2):
        yield
        return
    weight, bias = head.weight.float(), None if getattr(head, "bias", None) is None else head.bias.float()
    head.forward = lambda x: nn.functional.linear(x.float(), weight, bias)
    try:
        yield
    finally:
        del head.forward
