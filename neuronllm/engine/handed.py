"""Finds the mixers of a model by running it, and what it hands them for a token.

A mixer is handed a cache, and does not attend through the interface, or more than once, or writes more into the cache
than keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..model.discovery import decoder_layers, decoder_of
from .attention import unread_attention
from .borrowed import DRIVING_ERRORS, input_device, tensors_of_modules, tolerance
from .caches import axes_of, mapped, states_in_modules, tensors
from .mixers import CACHE, Call, Calls, Ended, Mixers, layer_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def ways(model: PreTrainedModel, double: bool = False) -> Iterator[Mixers | None]:
    """Without mixers; with mixers that go on from each other's states, or begin anew; at last in all layers."""
    yield None
    known: list[Mixers] = []
    for own in (False, True):
        with suppress(*DRIVING_ERRORS):
            mixers = find_mixers(model, double, own=own)
            if mixers is not None and mixers not in known:
                known.append(mixers)
                yield mixers
                if mixers.shares:
                    yield replace(mixers, shares=False)


@torch.no_grad()
def find_mixers(model: PreTrainedModel, double: bool = False, *, own: bool = False) -> Mixers | None:
    """The mixers, or None where there are none; with `own` every module that is handed a cache is one."""
    try:
        found = _looked(model, unread_attention(model, masked=True), own)
    except DRIVING_ERRORS:  # it does not take another attention
        found = _looked(model, nullcontext([]), own)
    if not found.names:
        return None
    caches = [found.empty(model) for _ in range(2)]
    with _attending(model, found):
        for rows, cache in enumerate(caches, start=1):
            _step(model, cache, 0, [[1, 1]] * rows)
        axes, shares = axes_of(*caches), _goes_on(model, caches[0])
        with _noting_outputs(model, found) as outputs:
            one = _recorded(model, found, caches[0], 2, 1)
        two = _recorded(model, found, caches[1], 2, 2)
    growing = frozenset(
        place
        for name in found.names
        for (place, few), (_, many) in zip(one[name].tensors(name), two[name].tensors(name), strict=True)
        if few.shape != many.shape
    )
    handed = [(place, x) for name, call in one.items() for place, x in call.tensors(name)]
    passed = [(of, place) for place, x in handed for y, of in outputs if x is y]
    given, taken = frozenset(of for of, _ in passed), frozenset(place for _, place in passed)
    return replace(found, double=double, growing=growing, shares=shares, given=given, taken=taken, axes=axes)


def _goes_on(model: PreTrainedModel, cache: Any) -> bool:
    """Whether two tokens behind a cache see what it holds, be it much: they must give what one after the other does."""
    generator = torch.Generator().manual_seed(0)

    def draw(held: Tensor) -> Tensor:
        return torch.randn(held.shape, generator=generator).to(held) if held.is_floating_point() else held

    drawn = mapped(cache, draw)
    apart, together = _copied(drawn), _copied(drawn)
    _step(model, apart, 2, [[1]])
    last, both = _step(model, apart, 3, [[1]]), _step(model, together, 2, [[1, 1]])
    return bool(((last[:, -1] - both[:, -1]).abs() <= tolerance(last)).all())


def _copied(cache: Any) -> Any:
    return mapped(cache, torch.clone)


def _looked(model: PreTrainedModel, attention: AbstractContextManager[list[int]], own: bool) -> Mixers:
    """What modules are handed a cache, and which of them attend through the interface, once, and do nothing else."""
    prefix, layers = decoder_layers(model)
    before = tensors_of_modules(layers)
    with ExitStack() as stack:
        uses = _Uses(stack.enter_context(attention))
        for name, module in layers.named_modules():
            if "." in name:  # not the layers themselves
                stack.callback(module.register_forward_pre_hook(partial(uses.begin, name), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(partial(uses.end, name)).remove)
        ids = torch.ones(1, 2, dtype=torch.int64, device=input_device(model))
        decoder_of(model)(input_ids=ids, use_cache=True)
    after = tensors_of_modules(layers)
    slots = [slot for slot, held in after.items() if held is not None and held is not before.get(slot)]
    units = uses.outermost()
    served = [name for name in units if uses.attended[name] == 1 and uses.wrote(name) <= 2]  # keys and values
    # A mixer that attends through the interface wants the masks that the model makes, which all layers then have.
    own = own or not served or any(uses.attended[name] for name in units if name not in served)
    names = tuple(f"{prefix}.{name}" for name in units if own or name not in served)
    passing = frozenset() if own else frozenset(layer_in(name) for name in served)
    states = tuple((f"{prefix}.{name}", attribute) for name, attribute in slots)
    return Mixers(names, uses.kind, passing, len({layer_in(name) for name in units}), own, slots=states)


class _Uses:
    """What each module does that is handed a cache."""

    def __init__(self, attending: list[int]) -> None:
        """`attending` grows whenever a module attends through the interface."""
        self.kind: type = type(None)  # of the cache
        self.attended: dict[str, int] = {}  # how often, with what is within
        self._attending = attending
        self._writes: dict[str, int] = {}  # how many tensors of the cache, without what is within
        self._running: list[tuple[str, int, Any]] = []  # the innermost last, attention calls before it, its cache
        self._held: list[tuple[Tensor, int]] = []  # what the cache held last, and in which version

    def begin(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        from transformers import Cache

        for cache in (value for value in [*args, *kwargs.values()] if isinstance(value, Cache)):
            self.kind = type(cache)
            self._look(cache)
            self._running.append((name, len(self._attending), cache))
            return

    def end(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._running and self._running[-1][0] == name:
            _, before, cache = self._running[-1]
            self._look(cache)
            self._running.pop()
            self.attended[name] = len(self._attending) - before

    def _look(self, cache: Any) -> None:
        """What was written since the last look is the work of the module that runs."""
        known = {(id(held), version) for held, version in self._held}
        self._held = [(held, held._version) for held in tensors(cache)]
        if self._running:
            name = self._running[-1][0]
            new = sum((id(held), version) not in known for held, version in self._held)
            self._writes[name] = self._writes.get(name, 0) + new

    def outermost(self) -> list[str]:
        """The modules that use the cache by themselves, with all that is within them.

        One that hands it on and writes nothing is not among them, be it written by what is within.
        """
        last = {name for name in self.attended if not any(other.startswith(f"{name}.") for other in self.attended)}
        using = [name for name in self.attended if self._writes[name] or name in last]
        return [name for name in using if not any(name.startswith(f"{other}.") for other in using)]

    def wrote(self, name: str) -> int:
        return sum(count for other, count in self._writes.items() if f"{other}.".startswith(f"{name}."))


def _attending(model: PreTrainedModel, mixers: Mixers) -> AbstractContextManager[Any]:
    """For passes whose numbers are of no interest."""
    return nullcontext() if mixers.own else unread_attention(model)


def prepare(model: PreTrainedModel, mixers: Mixers, ended: Ended, steps: int) -> None:
    """Have what mixers are handed for so many tokens behind the pieces."""
    if len(ended.calls) >= steps:
        return
    with torch.no_grad(), _attending(model, mixers):
        cache = mapped(ended.cache, lambda held: held[:1].clone())  # to be written to
        ended.calls = [_recorded(model, mixers, cache, ended.length + n, 1) for n in range(steps)]


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


@contextmanager
def _noting_outputs(model: PreTrainedModel, mixers: Mixers) -> Iterator[list[tuple[Tensor, tuple[str, int]]]]:
    """Yields what mixers give beside their first output, with their names and its number."""
    noted: list[tuple[Tensor, tuple[str, int]]] = []

    def note(name: str, out: Any) -> None:
        parts = enumerate(out) if isinstance(out, tuple) else ()
        noted.extend((part, (name, n)) for n, part in parts if n and isinstance(part, Tensor))

    with ExitStack() as stack:
        for name in mixers.names:
            hook = lambda module, args, out, name=name: note(name, out)  # noqa: E731
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield noted


def _step(model: PreTrainedModel, cache: Any, length: int, ids: list[list[int]]) -> Tensor:
    """The last hidden states (rows, tokens, D) of tokens behind a cache, by which it grows."""
    tokens = torch.tensor(ids, device=input_device(model))
    places = (length + torch.arange(tokens.shape[1], device=tokens.device)).expand(len(ids), -1)
    with states_in_modules(model, cache):
        found = decoder_of(model)(input_ids=tokens, position_ids=places, past_key_values=cache, use_cache=True)
    cache.length = length + tokens.shape[1]
    states: Tensor = found.last_hidden_state
    return states
