"""The Hugging Face model inside a TransformerLens bridge.

A bridge puts its own modules in the place of the model's, each around the one that it replaced. Here the model is put
together again from those: new containers, the same weights, and nothing of the bridge in between, so that it is scored
as fast as any other. The bridge is left alone. TransformerLens need not be installed.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from ..common.errors import InputError
from .wrapped import own_model

LIBRARY, ORIGINAL = "transformer_lens", "_original_component"


def plain_model(model: Any) -> Any:
    """The model that a bridge was made of, with the bridge's weights, or that PEFT has wrapped; any other as it is.

    >>> model, _ = nl.load_model("demo")
    >>> plain_model(model) is model
    True
    """
    if not is_bridged(model):
        return own_model(model)
    if getattr(model, "compatibility_mode", False):
        raise InputError(
            "model: the weights of a bridge in compatibility mode are TransformerLens's own: give the bridge before "
            "enable_compatibility_mode, or the Hugging Face model"
        )
    inner = getattr(model, "original_model", None) if _of_library(model) else model
    if inner is None:
        raise InputError(f"model: a {type(model).__name__} holds no Hugging Face model: give a TransformerBridge")
    return _without_bridges(inner, {})


def is_bridged(model: Any) -> bool:
    """True for a bridge, and for a model whose modules were replaced by one."""
    return _of_library(model) or isinstance(model, nn.Module) and any(_of_library(part) for part in model.modules())


def _of_library(thing: Any) -> bool:
    return type(thing).__module__.partition(".")[0] == LIBRARY


def _without_bridges(module: Any, done: dict[nn.Module, nn.Module]) -> Any:
    """The module, or the one that a bridge replaced, with children of the same kind; its weights are not copied."""
    while _of_library(module):
        module = module._modules[ORIGINAL]
    if module is None or module in done:
        return done.get(module)
    twin = done[module] = copy.copy(module)
    own = vars(twin)
    own |= {name: value.copy() for name, value in own.items() if name.endswith("_hooks")}  # ours are not the bridge's
    if getattr(own.get("forward"), "__module__", "").partition(".")[0] == LIBRARY:
        del own["forward"]  # bound to the module under the bridge
    own["_modules"] = {name: _without_bridges(child, done) for name, child in module._modules.items()}
    return twin
