"""What was found out about a model by trying, remembered with the model object, so that the next call need not try.

A verdict says how a model's code behaves (whether it may be driven by answer tokens, which blocks only add), which
follows from its modules and their forwards, its configuration (the attention and the experts in use stand there), its
types and its devices. It does not follow from the values of the weights: a trained or baked model behaves as before.
So a model is described by the former, and a description that differs in anything begins without verdicts. Hooks may do
anything, and otherwise each time: a model that carries any is tried anew in every call.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ..model.wrapped import switches
from .borrowed import attention_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt

REMEMBERED = 4  # descriptions of one model whose verdicts are remembered, such as under several kinds of attention
AUTOCASTS = ("cpu", "cuda")
Verdicts = MutableMapping[Hashable, Any]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)
# The values must not hold the model, or it would never be freed: descriptions refer to its parts weakly.
_of_models: weakref.WeakKeyDictionary[Any, list[tuple[Any, Verdicts]]] = weakref.WeakKeyDictionary()


def verdicts(model: PreTrainedModel) -> Verdicts:
    """The verdicts on the model as it is now, to be read and added to; nothing is remembered of a model with hooks."""
    modules = list(model.modules())
    if any(getattr(torch_module, name) for name in _GLOBAL_HOOKS):
        return {}
    if any(getattr(module, name) for module in modules for name in _HOOKS):
        return {}
    now = _description(model, modules)
    known = _of_models.setdefault(model, [])
    for place, (before, found) in enumerate(known):
        if before == now:
            known.insert(0, known.pop(place))
            return found
    known.insert(0, (now, {}))
    del known[REMEMBERED:]
    return known[0][1]


def _description(model: Any, modules: list[nn.Module]) -> Any:
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [_of_module(module) for module in modules],
        [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors],
        repr(vars(model.config)),
        attention_names(model),
        [(kind, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)) for kind in AUTOCASTS],
    )


def _of_module(module: nn.Module) -> tuple[Any, ...]:
    """Which object it is, and what runs when it is called: its class's forward, or one that was put before it.

    Of a layer of PEFT, which of its adapters are on.
    """
    own = vars(module).get("forward")
    kind = type(module)
    forward = None if own is None else _weakly(own)
    return (_weakly(module), kind, _weakly(kind.forward), forward, switches(module))


def _weakly(thing: Any) -> Any:
    """Stands for a thing without holding it; where that cannot be done, for nothing that could come again."""
    try:
        return weakref.ref(thing)
    except TypeError:
        return object()


def reach(model: PreTrainedModel, prompt: Prompt) -> tuple[int, ...]:
    """What of a prompt's length a verdict holds for: twice as long, or beyond another window, is another question."""
    length = prompt.n_tokens
    settings: dict[str, Any] = model.config.get_text_config().to_dict()
    windows = [value for name, value in settings.items() if "window" in name or "chunk" in name]
    return (length.bit_length(), *(length > size for size in windows if type(size) is int))
