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

from ..model.discovery import decoder_layers
from ..model.wrapped import adapter_modules, is_wrapped
from .head import is_cut

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HALVES = (torch.bfloat16, torch.float16)


@contextmanager
def float32_stream(model: PreTrainedModel) -> Iterator[None]:
    """Compute in float32 while the context lasts; nothing to do in wider models."""
    layers = decoder_layers(model)[1]
    if not any(p.dtype in HALVES for p in layers.parameters()):
        yield
        return
    changed: list[tuple[nn.Module, str, Any]] = []
    # Behind the embedding, so that rotary angles, which take their type from there, are not rounded either.
    first = model.get_input_embeddings().register_forward_hook(lambda module, args, output: _float(output))
    try:
        # PEFT rounds what goes into an adapter to the adapter's type: its layers widen all that is theirs.
        adapters = {part for module in model.modules() if is_wrapped(module) for part in adapter_modules(module)}
        for module in model.modules():
            halved = any(p.dtype in HALVES for p in _own(module))
            if not halved or isinstance(module, nn.Embedding) or is_cut(module) or module in adapters:
                continue
            # accelerate brings weights from elsewhere inside the forward that it put there, and then calls the old one.
            name = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
            changed.append((module, name, vars(module).get(name)))
            setattr(module, name, _linear(module) if type(module) is nn.Linear else _widening(module, name))
        yield
    finally:
        first.remove()
        for module, name, own in changed:
            delattr(module, name) if own is None else setattr(module, name, own)


def _own(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that a module's forward uses itself; a layer of PEFT, those of its adapters."""
    modules = adapter_modules(module) if is_wrapped(module) else [module]
    return [p for part in modules for p in part.parameters(recurse=False)]


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value


def _widening(module: nn.Module, name: str) -> Callable[..., Any]:
    """The module's forward, with its own weights as float32 while it runs."""
    forward = getattr(module, name)

    def widened(*args: Any, **kwargs: Any) -> Any:
        narrow = [(p, p.data) for p in _own(module) if p.dtype in HALVES]
        try:
            for parameter, data in narrow:
                parameter.data = data.float()
            return forward(*args, **kwargs)
        finally:
            for parameter, data in narrow:
                parameter.data = data

    return widened


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
