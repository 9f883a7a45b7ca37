"""Branches as rows: in a pass of answer tokens, mixers run every branch as the model decodes it.

Outside a mixer a row is a node of an answer tree and a column is a branch. To a mixer every branch of every node is a
row of one token, behind the cache of its prompt's prefix; a node further down goes on from the cache of the one above.
Branches of a prompt share what that cache holds: what a module writes into it is kept apart.

States may be far larger than what goes in and comes out, so branches are run some at a time, and again on the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from .borrowed import DoublePrecision, running_instead
from .caches import mapped, rows_of, states_in_modules, tensors
from .mixers import Call, Mixers, Place, layer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .tree import End, Prefix

NUMBERS, CUDA_NUMBERS = 2**20, 2**24  # of the states of branches that are run together


@contextmanager
def branches_as_rows(model: PreTrainedModel, prefix: Prefix) -> Iterator[None]:
    """Have the model's mixers run so, where it has any."""
    modules = _modules(model, prefix.mixers)
    with running_instead({module: _Mixer(model, name, prefix) for name, module in modules.items()}):
        yield


@contextmanager
def row_by_row(model: PreTrainedModel, mixers: Mixers) -> Iterator[None]:
    """Have mixers run whole prompts a row at a time: what they are handed beside these was made for one."""

    def each(name: str, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            call = Call(args, kwargs)
            whole = {at: x for at, x in call.tensors(name) if x.ndim > 2 and len(x) == len(call.hidden)}
            tokens = {at: x.split(1) for at, x in (call.of_tokens(name, mixers.taken) | whole).items()}
            rows = [dict(zip(tokens, some, strict=True)) for some in zip(*tokens.values(), strict=True)]
            calls = [call.filled(name, None, row, frozenset()) for row in rows]
            found = [forward(*one.args, **one.kwargs) for one in calls]
            if not isinstance(found[0], tuple):
                return torch.cat(found)
            kept = [0, *(n for of, n in mixers.given if of == name)]
            return tuple(torch.cat(x) if n in kept else x[0] for n, x in enumerate(zip(*found, strict=True)))

        return run

    with running_instead({module: each(name, module) for name, module in _modules(model, mixers).items()}):
        yield


def _modules(model: PreTrainedModel, mixers: Mixers | None) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in ([] if mixers is None else mixers.names)}


class _Mixer:
    """In the place of a mixer's forward."""

    def __init__(self, model: PreTrainedModel, name: str, prefix: Prefix) -> None:
        assert prefix.mixers is not None
        self.model, self.prefix, self.mixers = model, prefix, prefix.mixers
        self.name, self.layer = name, layer_of(model, name)
        module = model.get_submodule(name)
        self.forward: Callable[..., Any] = module.forward
        self.limit: Any = getattr(module, "time_step_limit", None)
        # of its outputs, those that there are for every token: the first, and what another mixer is handed
        self.kept = [0, *sorted(n for of, n in self.mixers.given if of == name)]
        self.outputs: tuple[Any, ...] | None = None  # all of one run, if it gives a tuple

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.prefix.attended.add(self.layer)
        call, width = Call(args, kwargs), self.prefix.trees.width
        every = call.of_tokens(self.name, self.mixers.taken)
        tokens = {at: x.unflatten(0, (-1, width)) for at, x in every.items()}
        ends = [self._behind(end, tokens) for end in self.prefix.ends]
        order = self.prefix.ended_order
        kept = [_joined(parts)[order.to(parts[0].device)].flatten(0, 1) for parts in zip(*ends, strict=True)]
        if self.outputs is None:
            return kept[0]
        whole = dict(enumerate(self.outputs)) | dict(zip(self.kept, kept, strict=True))
        return tuple(whole.values())

    def _behind(self, end: End, tokens: dict[Place, Tensor]) -> Sequence[Tensor]:
        """(prompts, nodes, branches, ...) of prompts whose prefixes end together: what is kept of the outputs."""
        places = end.prompts.to(next(iter(tokens.values())).device)
        parts = [x[places] for x in tokens.values()]
        prompts, width, branches = parts[0].shape[:3]
        numbers = sum(held[0].numel() for held in tensors(end.ended.cache, self.layer))
        room = CUDA_NUMBERS if places.device.type == "cuda" else NUMBERS
        most = max(1, room // max(1, numbers * width))
        if prompts * branches <= most:
            return self._steps(end, list(tokens), list(range(prompts)), parts)
        whole = []
        for n in range(prompts):
            pieces = [self._steps(end, list(tokens), [n], some) for some in _split(parts, n, most)]
            whole.append([torch.cat(some, 2) for some in zip(*pieces, strict=True)])
        return [_joined(some) for some in zip(*whole, strict=True)]

    def _steps(self, end: End, names: list[Place], prompts: list[int], parts: Sequence[Tensor]) -> Sequence[Tensor]:
        run = partial(self._run, end, names, prompts)
        if not (torch.is_grad_enabled() and any(part.requires_grad for part in parts)):
            return run(*parts)
        again = partial(_there_and_back, self.mixers.double)
        found: Sequence[Tensor] = checkpoint(
            run, *parts, use_reentrant=False, preserve_rng_state=False, context_fn=again
        )
        return found

    def _run(self, end: End, names: list[Place], prompts: list[int], *parts: Tensor) -> Sequence[Tensor]:
        """Node by node from the cache of the prefix on, all nodes of one depth together."""
        width, branches = parts[0].shape[1:3]
        cache, at, found = end.ended.cache, [], []
        for depth, nodes in enumerate(self.prefix.trees.by_depth(end.prompts[prompts].tolist())):
            above = end.rows[prompts] if depth == 0 else nodes.above * branches
            rows = above[:, None] + (torch.arange(branches) if depth else torch.zeros(branches, dtype=torch.int64))
            some = [part[nodes.prompts, nodes.nodes].flatten(0, 1)[:, None] for part in parts]
            call = end.ended.calls[depth][self.name]
            cache = rows_of(cache, rows.flatten(), self.layer, shared=True)
            states = states_in_modules(self.model, cache, self.layer)
            with states, _Decoding(tensors(cache, self.layer), self.limit) as decoding:
                filled = call.filled(self.name, cache, dict(zip(names, some, strict=True)), self.mixers.growing)
                outputs = self.forward(*filled.args, **filled.kwargs)
            cache = mapped(cache, decoding.now, self.layer)
            self.outputs = outputs if isinstance(outputs, tuple) else None
            each = self.outputs or (outputs,)
            at.append(nodes.prompts * width + nodes.nodes)
            found.append([each[n][:, 0].unflatten(0, (-1, branches)) for n in self.kept])
        return [_placed(len(prompts), width, torch.cat(at), _joined(x)) for x in zip(*found, strict=True)]


def _placed(prompts: int, width: int, at: Tensor, nodes: Tensor) -> Tensor:
    """Nodes at their places among those of all prompts: (prompts, width, ...), of which there may be more."""
    whole = nodes.new_zeros(prompts * width, *nodes.shape[1:])
    return whole.index_put((at.to(nodes.device),), nodes).unflatten(0, (prompts, width))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts in one, the others padded to the longest: there may be more to say behind a longer prefix."""
    longest = max(part.shape[-1] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, longest - part.shape[-1])) for part in parts])


def _split(parts: Sequence[Tensor], prompt: int, branches: int) -> Iterator[tuple[Tensor, ...]]:
    """One prompt's parts, so many branches at a time."""
    yield from zip(*(part[prompt : prompt + 1].split(branches, 2) for part in parts), strict=True)


def _there_and_back(double: bool) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), DoublePrecision() if double else nullcontext()


class _Decoding(TorchFunctionMode):
    """Around a mixer that runs one token, so that it does as it does in a text.

    What it writes into a state is kept apart, and the state stays as it is: so rows may share it, and gradients pass by
    what reads it before it is written. Time steps stay within the limits of the module, which transformers leaves out
    when it decodes (Nemotron-H).
    """

    def __init__(self, states: list[Tensor], limit: tuple[float, float] | None) -> None:
        super().__init__()
        self.limit = limit
        self.states = {id(state): state for state in states}  # as they would be by now

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.copy_ and id(args[0]) in self.states:
            self.states[id(args[0])] = args[1]
            return args[1]
        found = func(*args, **(kwargs or {}))
        return found.clamp(*self.limit) if self.limit and func is torch.nn.functional.softplus else found

    def now(self, held: Tensor) -> Tensor:
        """What a tensor was to become."""
        return self.states.get(id(held), held)
