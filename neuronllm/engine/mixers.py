"""Mixers: modules that carry something from token to token in a way of their own.

A recurrence, linear attention or a convolution has a state; and some families attend without the interface at which
`attention.py` takes the place of theirs. What such a module knows of the prefix is held by the model's own cache, and
an answer token is run as the model decodes it, as one token behind that cache: `rows.py` does so for all branches.

A mixer is found by trying: it is handed a cache and does not attend through the interface, or more than once, or writes
more into the cache than keys and values, as attention with an indexer does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..model.discovery import decoder_layers
from .caches import state_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .borrowed import Slot

CACHE = object()  # in the place of a cache that a mixer was handed
Place = tuple[str, "str | int", int]  # of a tensor among the arguments of a mixer: its name, the argument, where in it


@dataclass(frozen=True)
class Mixers:
    """The mixers of a model, as far as they can be known without holding it."""

    names: tuple[str, ...]
    kind: type  # of the model's own cache
    passing: frozenset[int]  # layers that attend through the interface alone
    layers: int  # that take a cache
    own: bool  # whether no layer attends through the interface: the model then keeps its attention and its masks
    shares: bool = True  # whether a piece may go on from the states of another one
    double: bool = False  # whether it all runs in DoublePrecision
    growing: frozenset[Place] = frozenset()  # arguments that are longer for more rows
    given: frozenset[tuple[str, int]] = frozenset()  # outputs behind the first that another mixer is handed
    taken: frozenset[Place] = frozenset()  # the arguments that these are
    axes: dict[str, int] = field(default_factory=dict)  # of rows, in what the cache holds otherwise than others
    slots: tuple[Slot, ...] = ()  # of states that modules keep themselves

    def empty(self, model: PreTrainedModel) -> Any:
        own: list[dict[Slot, Any]] = [{} for _ in decoder_layers(model)[1]]
        for slot in self.slots:
            own[layer_of(model, slot[0])][slot] = None
        return state_cache(model, self.kind, self.passing, self.axes, own)


class Call(NamedTuple):
    """What the model hands a mixer for one token of one row."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden(self) -> Tensor:
        """What the mixer reads, (rows, tokens, D)."""
        hidden: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return hidden

    def filled(self, name: str, cache: Any, tokens: dict[Place, Tensor], growing: frozenset[Place]) -> Call:
        """The same for as many rows as `tokens` have, with another cache."""
        rows = len(next(iter(tokens.values())))

        def part(place: Place, value: Any) -> Any:
            if value is CACHE:
                return cache
            if place in tokens:
                return tokens[place][..., : value.shape[-1]]  # without what pads those behind shorter prefixes
            if place not in growing:
                return value
            return value.expand(rows, *value.shape[1:]) if len(value) == 1 else value.repeat(rows, *[1] * value[0].ndim)

        def argument(at: str | int, value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(part((name, at, n), of) for n, of in enumerate(value))
            return part((name, at, 0), value)

        args = tuple(argument(at, value) for at, value in enumerate(self.args))
        return Call(args, {at: argument(at, value) for at, value in self.kwargs.items()})

    def of_tokens(self, name: str, taken: frozenset[Place]) -> dict[Place, Tensor]:
        """What there is of every token: first what the mixer reads, then what is like it, ids, and what is `taken`."""
        hidden, found = self.hidden, {}
        tokens = hidden.shape[:2]
        for place, x in sorted(self.tensors(name), key=lambda held: held[1] is not hidden):
            if x.shape == hidden.shape or place in taken:
                found[place] = x
            elif not x.is_floating_point() and x.shape in (tokens, (tokens[0], 1)):  # maybe before branches joined
                found[place] = x.expand(tokens)
        return found

    def tensors(self, name: str) -> Iterator[tuple[Place, Tensor]]:
        arguments: list[tuple[str | int, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        for at, value in arguments:
            for n, part in enumerate(value if isinstance(value, tuple) else (value,)):
                if isinstance(part, Tensor):
                    yield (name, at, n), part


Calls = dict[str, Call]


@dataclass
class Ended:
    """Pieces of the prefix that end at one position, and the cache behind them: a row for each."""

    pieces: Tensor
    cache: Any
    length: int  # tokens before the end
    calls: list[Calls] = field(default_factory=list)  # for the next tokens


def layer_in(name: str) -> int:
    return int(name.partition(".")[0])


def layer_of(model: PreTrainedModel, name: str) -> int:
    """The number of a mixer's layer."""
    return layer_in(name.removeprefix(f"{decoder_layers(model)[0]}."))
