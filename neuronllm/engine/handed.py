"""Finds the mixers of a model by running it, and what it hands them for a token.

A mixer is handed a cache, and does not attend through the interface, or more than once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..model.discovery import decoder_layers, decoder_of
from .attention import unread_attention
from .borrowed import DRIVING_ERRORS, input_device, tolerance
from .caches import mapped
from .mixers import CACHE, Call, Calls, Ended, Mixers, layer_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def find_mixers(model: PreTrainedModel, double: bool = False) -> Mixers | None:
    """The mixers, or None where there are none."""
    try:
        found = _looked(model, unread_attention(model))
    except DRIVING_ERRORS:  # it does not take another attention
        found = _looked(model, nullcontext([]))
    if not found.names:
        return None
    cache = found.empty(model)
    with _attending(model, found):
        _step(model, cache, 0, [[1, 1]])
        one, two = (_recorded(model, found, _repeated(cache, rows), 2, rows) for rows in (1, 2))
        shares = _goes_on(model, cache)
    growing = frozenset(
        place
        for name in found.names
        for (place, few), (_, many) in zip(one[name].tensors(name), two[name].tensors(name), strict=True)
        if few.shape != many.shape
    )
    return replace(found, double=double, growing=growing, shares=shares)


def _goes_on(model: PreTrainedModel, cache: Any) -> bool:
    """Whether two tokens behind a cache see what it holds, be it much: they must give what one after the other does."""
    generator = torch.Generator().manual_seed(0)
    drawn = mapped(cache, lambda held: torch.randn(held.shape, generator=generator).to(held))
    apart, together = _copied(drawn), _copied(drawn)
    _step(model, apart, 2, [[1]])
    last, both = _step(model, apart, 3, [[1]]), _step(model, together, 2, [[1, 1]])
    return bool(((last[:, -1] - both[:, -1]).abs() <= tolerance(last)).all())


def _copied(cache: Any) -> Any:
    return mapped(cache, torch.clone)


def _looked(model: PreTrainedModel, attention: AbstractContextManager[list[int]]) -> Mixers:
    """What modules are handed a cache, and which of them attend through the interface."""
    from transformers import Cache

    prefix, layers = decoder_layers(model)
    started: dict[str, int] = {}  # attention calls before a module ran
    taken: dict[str, int] = {}  # attention calls of modules that were handed a cache
    with ExitStack() as stack:
        calls = stack.enter_context(attention)

        def before(name: str, values: list[Any]) -> None:
            if any(isinstance(value, Cache) for value in values):
                started[name] = len(calls)

        def after(name: str) -> None:
            if name in started:
                taken[name] = len(calls) - started[name]

        for name, module in layers.named_modules():
            if "." in name:  # not the layers themselves
                watch = lambda m, args, kwargs, name=name: before(name, [*args, *kwargs.values()])  # noqa: E731
                stack.callback(module.register_forward_pre_hook(watch, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(lambda m, a, out, name=name: after(name)).remove)
        ids = torch.ones(1, 2, dtype=torch.int64, device=input_device(model))
        cache = decoder_of(model)(input_ids=ids, use_cache=True).past_key_values
    inner = [name for name in taken if not any(other.startswith(f"{name}.") for other in taken)]
    served = [name for name in inner if taken[name] == 1]
    names = tuple(f"{prefix}.{name}" for name in inner if name not in served)
    passing = frozenset(layer_in(name) for name in served)
    return Mixers(names, type(cache), passing, len({layer_in(name) for name in inner}), own=not served)


def _attending(model: PreTrainedModel, mixers: Mixers) -> AbstractContextManager[Any]:
    """For passes whose numbers are of no interest."""
    return nullcontext() if mixers.own else unread_attention(model)


def prepare(model: PreTrainedModel, mixers: Mixers, ended: Ended, steps: int) -> None:
    """Have what mixers are handed for so many tokens behind the pieces."""
    if len(ended.calls) >= steps:
        return
    with torch.no_grad(), _attending(model, mixers):
        cache = _repeated(ended.cache, 1)
        ended.calls = [_recorded(model, mixers, cache, ended.length + n, 1) for n in range(steps)]


def _repeated(cache: Any, rows: int) -> Any:
    """The first row of a cache, so many times, to be written to."""
    return mapped(cache, lambda held: held[:1].repeat_interleave(rows, 0))


def _recorded(model: PreTrainedModel, mixers: Mixers, cache: Any, length: int, rows: int) -> Calls:
    """What every mixer is handed for the token behind `length` others, which is run."""
    calls: Calls = {}
    with ExitStack() as stack:
        for name in mixers.names:
            stack.enter_context(_recording(model.get_submodule(name), name, calls))
        _step(model, cache, length, [[1]] * rows)
    return calls


@contextmanager
def _recording(module: nn.Module, name: str, calls: Calls) -> Iterator[None]:
    from transformers import Cache

    def without(value: Any) -> Any:
        return CACHE if isinstance(value, Cache) else value

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[name] = Call(tuple(map(without, args)), {key: without(value) for key, value in kwargs.items()})

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _step(model: PreTrainedModel, cache: Any, length: int, ids: list[list[int]]) -> Tensor:
    """The last hidden states (rows, tokens, D) of tokens behind a cache, by which it grows."""
    tokens = torch.tensor(ids, device=input_device(model))
    places = (length + torch.arange(tokens.shape[1], device=tokens.device)).expand(len(ids), -1)
    found = decoder_of(model)(input_ids=tokens, position_ids=places, past_key_values=cache, use_cache=True)
    cache.length = length + tokens.shape[1]
    states: Tensor = found.last_hidden_state
    return states
