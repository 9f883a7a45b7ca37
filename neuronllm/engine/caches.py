"""Caches that a model is handed: one that keeps nothing, one that keeps states, and rows of another one.

A model may ask for a cache of its own kind, so these are subclasses of the kind that it makes itself.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .borrowed import Slot


def passing_cache(length: int, kind: type | None = None, model: PreTrainedModel | None = None) -> Any:
    """A cache that says how long the prefix is and hands a layer its own new keys and values back.

    With a model it has the layers that the model looks for.
    """
    from transformers import DynamicCache

    class PassingCache(kind or DynamicCache):  # type: ignore[misc]
        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            return key_states, value_states

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return length

        def get_query_offset(self, *args: Any, **kwargs: Any) -> int:
            return length

        def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
            tokens = query_length if isinstance(query_length, int) else len(query_length)
            return length + tokens, 0

        def has_previous_state(self, *args: Any, **kwargs: Any) -> bool:
            return length > 0

    return _made(PassingCache, model)


def state_cache(
    model: PreTrainedModel, kind: type, passing: frozenset[int], axes: dict[str, int], own: Sequence[dict[Slot, Any]]
) -> Any:
    """An empty cache whose `passing` layers keep nothing: their keys and values are kept elsewhere.

    Where there are such layers, `length` says how many tokens have been computed. `axes` are those of `axes_of`, and
    `own` are states that modules keep themselves, by layer.
    """

    class StateCache(kind):
        length = 0
        axes_of_rows = axes

        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            if layer_idx in passing:
                return key_states, value_states
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)

        def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
            return self.length if passing else int(super().get_seq_length(*args, **kwargs))

        def get_query_offset(self, *args: Any, **kwargs: Any) -> int:
            return self.get_seq_length(*args, **kwargs)

    cache = _made(StateCache, model)
    cache.own_states = list(own)
    return cache


@contextmanager
def states_in_modules(model: PreTrainedModel, cache: Any, layer: int | None = None) -> Iterator[None]:
    """Around a pass: modules that keep states themselves have those of the cache, and it has theirs from then on."""
    layers = cache.own_states[slice(None) if layer is None else slice(layer, layer + 1)]
    held = [(model.get_submodule(slot[0]), slot, states) for states in layers for slot in states]
    before = [getattr(module, slot[1]) for module, slot, _ in held]
    try:
        for module, slot, states in held:
            setattr(module, slot[1], states[slot])
        yield
        for module, slot, states in held:
            states[slot] = getattr(module, slot[1])
    finally:
        for (module, slot, _), value in zip(held, before, strict=True):
            setattr(module, slot[1], value)


def _made(kind: type, model: PreTrainedModel | None) -> Any:
    config = None if model is None or "config" not in inspect.signature(kind).parameters else model.config
    return kind(*_inner_caches(kind, model), **{} if config is None else {"config": config})


def _inner_caches(kind: type, model: PreTrainedModel | None = None) -> list[Any]:
    """What a cache is made of that keeps attention to an encoder apart, which decoders on their own may have too."""
    from transformers import DynamicCache, EncoderDecoderCache

    config = None if model is None else model.config
    return [DynamicCache(config=config) for _ in range(2)] if issubclass(kind, EncoderDecoderCache) else []


def mapped(cache: Any, change: Callable[[Tensor], Tensor], layer: int | None = None) -> Any:
    """A cache with the same tensors changed; with `layer` those of that layer only, the others are not to be used."""
    from transformers import Cache

    new, axes = copy.copy(cache), getattr(cache, "axes_of_rows", {})
    for name, value in vars(cache).items():
        if isinstance(value, Cache):
            setattr(new, name, mapped(value, change, layer))
        elif isinstance(value, list):
            parts = [_changed(part, change, axes) if layer in (None, n) else part for n, part in enumerate(value)]
            setattr(new, name, parts)
    return new


def axes_of(one: Any, two: Any) -> dict[str, int]:
    """The dimension of rows in what layers hold, where it is not the first: seen in caches of one row and of two."""
    found: dict[str, int] = {}
    for few, many in zip(_layers(one), _layers(two), strict=True):
        for name, held in vars(few).items():
            if isinstance(held, Tensor) and held.shape != (other := vars(many)[name]).shape:
                found[name] = next(n for n in range(held.ndim) if held.shape[n] != other.shape[n])
    return {name: axis for name, axis in found.items() if axis}


def _layers(cache: Any) -> list[Any]:
    """Those of attention among the tokens, where that to an encoder is kept apart."""
    layers: list[Any] = getattr(cache, "self_attention_cache", cache).layers
    return layers


def rows_of(cache: Any, rows: Tensor, layer: int | None = None, *, shared: bool = False) -> Any:
    """Some rows of a cache, to be written to; `shared` says that one row again and again is not copied.

    That goes for a CPU. On other devices a kernel may write into it, past Python.
    """
    alone = shared and bool((rows == rows[0]).all())

    def take(held: Tensor) -> Tensor:
        if alone and held.device.type == "cpu":
            return held[rows[0]].expand(len(rows), *held.shape[1:])
        return held[rows.to(held.device)]

    return mapped(cache, take, layer)


def tensors(cache: Any, layer: int | None = None) -> list[Tensor]:
    """What a cache holds."""
    found: list[Tensor] = []

    def look(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(cache, look, layer)
    return found


def _changed(part: Any, change: Callable[[Tensor], Tensor], axes: dict[str, int]) -> Any:
    """A layer of a cache, or what it holds."""
    if isinstance(part, Tensor):
        return change(part) if part.ndim and len(part) else part
    if isinstance(part, dict):
        return {name: _changed(value, change, axes) for name, value in part.items()}
    if not hasattr(part, "__dict__") or isinstance(part, type):
        return part
    new = copy.copy(part)
    for name, value in vars(part).items():
        if name in axes and isinstance(value, Tensor):
            setattr(new, name, change(value.movedim(axes[name], 0)).movedim(0, axes[name]))
        elif isinstance(value, (Tensor, dict)):
            setattr(new, name, _changed(value, change, axes))
    return new
