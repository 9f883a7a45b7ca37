"""Several streams of the residual, which layers have behind the tokens (DeepSeek-V4) or before the batch (Gemma 3n)."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from .discovery import decoder_layers, decoder_of

_in_front: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


class _Seen(Exception):
    """The first layer was reached."""


def tokens_first(model: nn.Module, states: Tensor) -> Tensor:
    """What a layer takes or gives, as (rows, tokens, ...)."""
    return states.movedim(0, 2) if states.ndim == 4 and _streams_in_front(model) else states


def as_layers_take(model: nn.Module, states: Tensor) -> Tensor:
    """The inverse."""
    return states.movedim(2, 0) if states.ndim == 4 and _streams_in_front(model) else states


def _streams_in_front(model: Any) -> bool:
    """Seen by handing three rows of two tokens to the first layer, once."""
    if model not in _in_front:
        shapes: list[torch.Size] = []

        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            shapes.append((args[0] if args else kwargs["hidden_states"]).shape)
            raise _Seen

        device = next(model.get_input_embeddings().parameters()).device
        ids = torch.zeros(3, 2, dtype=torch.int64, device=device)
        handle = decoder_layers(model)[1][0].register_forward_pre_hook(look, with_kwargs=True, prepend=True)
        try:
            with torch.no_grad(), suppress(_Seen):
                decoder_of(model)(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        _in_front[model] = bool(shapes) and shapes[0][1:3] == ids.shape
    return _in_front[model]
