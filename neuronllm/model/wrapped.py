"""Models that PEFT has wrapped: the model itself, and what a wrapped linear module does to its input.

PEFT puts a layer of its own in the place of a linear module and keeps that one inside, as `base_layer`. A neuron's h is
what the outer layer is given: a LoRA adds to what the neuron writes, an IA3 multiplies it. Adapters that are merged are
in the inner weight already, and those that are switched off do nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import InputError

BASE = "base_layer"


def own_model(model: Any) -> Any:
    """The Hugging Face model inside PEFT's `PeftModel`, with its adapters in place; any other model as it is."""
    peft = _peft()
    if peft is None or not isinstance(model, (peft.PeftModel, peft.PeftMixedModel)):
        return model
    if isinstance(model, peft.PeftModel) and model.active_peft_config.is_prompt_learning:
        kind = model.active_peft_config.peft_type.value
        raise InputError(
            f"model: PEFT puts learned tokens in front of every prompt ({kind}), which is not supported: give a model "
            "with LoRA or IA3, or the plain one"
        )
    return model.get_base_model()


def is_wrapped(module: Any) -> bool:
    """Whether a module is a layer of PEFT in the place of another module."""
    peft = _peft()
    return peft is not None and isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)


def inner(module: Any) -> Any:
    """The model's own module, inside however many layers of PEFT."""
    return module.get_base_layer() if is_wrapped(module) else module


def wrapped_around(model: nn.Module, name: str) -> str | None:
    """What PEFT has put around the named module or in its place; None where it left it alone."""
    path = [name]
    while path[-1].rpartition(".")[2] == BASE:
        path.append(path[-1].rpartition(".")[0])
    wrappers = [module for at in path if is_wrapped(module := model.get_submodule(at))]
    return _kind(wrappers[0]) if wrappers else None


def adapter_modules(module: Any) -> Iterator[nn.Module]:
    """All modules of a layer of PEFT that are not the model's own."""
    for name, child in module.named_children():
        if name != BASE:
            yield from child.modules()


def switches(module: Any) -> tuple[Hashable, ...]:
    """What decides, beside the weights, what a layer of PEFT does; nothing of any other module."""
    if not is_wrapped(module):
        return ()
    scaling = tuple(sorted(getattr(module, "scaling", {}).items()))
    return tuple(module.active_adapters), tuple(module.merged_adapters), module.disable_adapters, scaling


def adapters_on(model: nn.Module) -> list[str]:
    """The adapters of PEFT that are at work in a model, such as "default (lora)"."""
    modules: list[Any] = list(model.modules()) if _peft() else []
    layers = [module for module in modules if is_wrapped(module) and not module.disable_adapters]
    return sorted({f"{name} ({_kind(layer).partition('.')[0]})" for layer in layers for name in layer.active_adapters})


def unreadable(module: Any) -> str | None:
    """Why it cannot be told what the neurons in front of a linear module write; None where it can."""
    weight = getattr(inner(module), "weight", None)
    if weight is None or not weight.is_floating_point() or weight.ndim != 2:
        return "its weights are quantised"
    if weight.is_meta:
        return "its weights are not in memory"
    while is_wrapped(module):
        if module.merged and module.disable_adapters:
            return "its adapter is merged and switched off"  # PEFT takes it out again in the next forward pass
        if not (module.merged or module.disable_adapters or _is_ia3(module) or _is_lora(module)):
            return f"PEFT has wrapped it ({_kind(module)}) in a way that is not known here"
        module = module.base_layer
    return None


def written(module: Any, transposed: bool, ids: Tensor | None = None) -> Tensor:
    """What each neuron of a down projection writes when its h is 1, (neurons, D); all of them without ids.

    In the type of the weight, and where adapters change it in float32 or better.
    """
    if not is_wrapped(module):
        weight = module.weight
        if ids is None:
            return weight if transposed else weight.T
        index = ids.to(weight.device)
        return weight.index_select(0, index) if transposed else weight.index_select(1, index).T
    rows = written(module.base_layer, transposed, ids)
    if module.merged or module.disable_adapters:
        return rows
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if _is_ia3(module):
        return rows * _scale(module, rows, ids)
    for name in _active(module, module.lora_A):
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        a = a if ids is None else a.index_select(1, ids.to(a.device))
        rows = rows + (a.T.to(rows) @ b.T.to(rows)) * module.scaling[name]
    return rows


def _scale(module: Any, rows: Tensor, ids: Tensor | None) -> Tensor:
    """What an IA3 multiplies rows (neurons, D) with: the neurons, or what the module puts out."""
    scale = torch.ones((), dtype=rows.dtype, device=rows.device)
    for name in _active(module, module.ia3_l):
        factors = module.ia3_l[name].flatten().to(rows)
        if module.is_feedforward:
            factors = (factors if ids is None else factors[ids.to(factors.device)])[:, None]
        scale = scale * factors
    return scale


def _active(module: Any, adapters: Any) -> list[str]:
    return [name for name in module.active_adapters if name in adapters]


def _is_ia3(module: Any) -> bool:
    return isinstance(module, _peft().tuners.ia3.Linear)


def _is_lora(module: Any) -> bool:
    """A plain LoRA: no DoRA, and none of its other variants."""
    return isinstance(module, _peft().tuners.lora.Linear) and not _active(module, module.lora_variant)


def _kind(module: Any) -> str:
    """As a reader knows it: the package of PEFT's layers, such as "lora", and the layer."""
    return f"{type(module).__module__.split('.')[-2]}.{type(module).__name__}"


def _peft() -> Any:
    """PEFT where it has been imported: nothing is wrapped before."""
    return sys.modules.get("peft")
