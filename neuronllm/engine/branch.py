"""The branch sweep: one pass of answer tokens through the layers serves the edits of every layer.

The first branch of each prompt is its clean answer: its last token, and where answers have several tokens the nodes of
its answer tree, a row each. Edited copies of it join at the block that they are edited in. A branch attends to its
prompt's prefix and to itself only, so it IS the full forward pass with that edit, at the price of its nodes through the
layers from there on.

Where a block adds W h to the residual stream as it is, a branch needs not run through the block at all: it joins behind
it, as the clean output plus W (h' - h). The self-check finds out by trying. In every other block (norms behind the FFN,
multipliers, experts) the copies join in front of it and their h is edited in front of the down projection.

Where layers hand on more than the residual stream, such as what a router has seen so far or the streams of earlier
layers, a copy cannot join on the way: the branches of all blocks then run together, from the embedding on.

Rows are tokens and columns branches wherever they are handled here. A batch may run its passes the other way round.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..model.discovery import decoder_layers
from ..model.hooks import visiting
from ..model.sites import Site
from ..model.streams import as_layers_take, tokens_first
from ..model.wrapped import written
from .answer import answer_pass, answering
from .head import wide
from .tree import Prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt
    from ..model.anatomy import Anatomy

# (site, h of the copies that joined at its block: rows x copies x width, their routes) -> h as it is to be
EditCopies = Callable[[Site, Tensor, "Tensor | None"], Tensor]
# (site, clean output of its block: rows x D, clean h: rows x width) -> rows x branches x D, from there on
BranchesBehind = Callable[[Site, Tensor, Tensor], Tensor]


@dataclass
class Batch:
    """Prompts whose prefixes are there, and all that is needed to ask the model about their answer tokens."""

    axis: ClassVar[int] = 1  # of the branches, in what modules take and give

    model: PreTrainedModel
    anatomy: Anatomy
    prompts: Sequence[Prompt]
    prefix: Prefix
    plain: frozenset[str]  # blocks behind which branches may join
    value: Callable[[Tensor], Tensor]  # logits (rows, branches, ids) -> the objective (prompts, branches)
    answer_tokens: int  # answer tokens of one pass, at most
    passes: int = 1  # that it takes, as far as that is known
    together: bool = False  # whether no branch joins on the way: all run from the embedding on

    @property
    def width(self) -> int:
        """Rows of a prompt: the nodes of its answer tree."""
        return self.prefix.trees.width

    @property
    def branches(self) -> int:
        """Branches of one pass, at most."""
        return max(1, self.answer_tokens // (len(self.prompts) * self.width))

    @property
    def real(self) -> Tensor:
        """(prompts, rows of a prompt): no padding."""
        return self.prefix.trees.real

    def attending(self) -> AbstractContextManager[None]:
        """Around its passes: the attention of their tokens."""
        return answering(self.model, self.prefix)

    def logits(self, copies: int = 1) -> Tensor:
        """Those of a pass that begins with so many copies of each row, (rows that are read, branches, ids)."""
        return answer_pass(self.model, self.prefix, copies)

    def turned(self, x: Tensor) -> Tensor:
        """What a module takes or gives, as rows x branches, and back."""
        return x.transpose(0, 1) if self.axis == 0 else x

    def firsts(self, copies: Mapping[str, int]) -> dict[str, int]:
        """Where the copies of each block stand among the branches, if they run together."""
        blocks = [block for block in self.anatomy.blocks if block in copies]
        return dict(zip(blocks, accumulate((copies[block] for block in blocks), initial=1), strict=False))

    def in_order(self, found: dict[str, Tensor]) -> Tensor:
        """One column a neuron, of what was found at every site."""
        return torch.cat([found[site.down].cpu() for site in self.anatomy.sites], -1)


def sweep(
    batch: Batch,
    sites: Sequence[Site],
    *,
    copies: Mapping[str, int] | None = None,
    edit: EditCopies | None = None,
    behind: Mapping[str, BranchesBehind] | None = None,
) -> Tensor:
    """Logits (rows, 1 + branches, ids): the clean answer, then the branches of every block, first to last.

    `copies` says how many of them join in front of a block, and `edit` sees them at its sites; `behind` makes the
    branches that join behind a block. Both go by the block's name.
    """
    model, axis = batch.model, batch.axis
    copies, behind = copies or {}, behind or {}
    firsts = batch.firsts(copies)
    clean: dict[str, Tensor] = {}

    def in_front(site: Site, h: Tensor, routes: Tensor | None) -> Tensor | None:
        if site.block in behind:
            clean[site.block] = h.select(axis, 0).detach()
            return None
        count = copies[site.block]
        assert edit is not None
        first = firsts[site.block] if batch.together else h.shape[axis] - count
        before, joined, after = h.tensor_split([first, first + count], axis)
        now = None if routes is None else batch.turned(routes)[:, first : first + count]
        edited = edit(site, batch.turned(joined), now)
        return torch.cat([before, batch.turned(edited).to(h), after], axis)

    with ExitStack() as stack:
        stack.enter_context(batch.attending())
        stack.enter_context(keeping_branches(model))
        visited = [site for site in sites if copies.get(site.block) or site.block in behind]
        joining = [] if batch.together else [site.block for site in visited if site.block not in behind]
        for block in dict.fromkeys(joining):
            # before `visiting`, which looks at the shape that a block is given
            stack.enter_context(_joining(model, block, copies[block], axis))
        stack.enter_context(_telling_tokens(model))  # behind those that join
        for site in visited:
            if site.block in behind:
                make = behind[site.block]
                append = lambda x, site=site, make=make: batch.turned(make(site, x, clean.pop(site.block)))  # noqa: E731
                stack.enter_context(joining_behind(model.get_submodule(site.block), append, axis))
        stack.enter_context(visiting(model, visited, in_front))
        return batch.logits(1 + sum(copies.values()) if batch.together else 1)


def clean_states(batch: Batch, sites: Sequence[Site]) -> dict[str, tuple[Tensor, Tensor]]:
    """The clean answer at sites with a block of their own: the block's output (rows, D) and h, by `down`."""
    states: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(site: Site, x: Tensor, h: Tensor) -> Tensor:
        states[site.down] = (x, h)
        return x[:, None][:, :0]

    sweep(batch, sites, behind={site.block: keep for site in sites})
    return states


def clean_routes(batch: Batch) -> dict[str, Tensor]:
    """The experts that each prompt's answer reaches, (prompts, K), padded with -1, by the routed site's `down`."""
    found: dict[str, Tensor] = {}

    def look(site: Site, h: Tensor, routes: Tensor | None) -> None:
        assert routes is not None
        found[site.down] = _reached(routes.select(batch.axis, 0), batch.real)

    routed = [site for site in batch.anatomy.sites if site.experts]
    if not routed:
        return found
    with visiting(batch.model, routed, look), batch.attending():
        batch.logits()
    return found


def _reached(routes: Tensor, real: Tensor) -> Tensor:
    """Routes (prompts x nodes, K) -> the experts of all nodes of each prompt, once each, in the order of the nodes."""
    if real.shape[1] == 1:
        return routes
    pairs = zip(routes.unflatten(0, real.shape), real.to(routes.device), strict=True)
    rows = [list(dict.fromkeys(some[at].flatten().tolist())) for some, at in pairs]
    most = max(len(row) for row in rows)
    return torch.tensor([row + [-1] * (most - len(row)) for row in rows], device=routes.device)


def residuals(batch: Batch, sites: Sequence[Site], count: int, edit: EditCopies) -> Tensor:
    """What `count` edited copies of the sites of one block have become right behind it, (rows, copies, D)."""
    out: list[Tensor] = []
    with leaving(batch.model, sites[0].block, 0 if batch.together else count, out):
        sweep(batch, sites, copies={sites[0].block: count}, edit=edit)
    return out[0][:, -count:]


def vectors(model: PreTrainedModel, site: Site, ids: Tensor | None = None) -> Tensor:
    """What each neuron of a dense site writes when its h is 1: (neurons, D), in float32 or better; all without ids."""
    return wide(written(model.get_submodule(site.down), site.transposed, ids))


@contextmanager
def joining_behind(block: nn.Module, make: Callable[[Tensor], Tensor], axis: int) -> Iterator[None]:
    """`make(clean branch)` gives branches that join the others behind a block, in their own type if it is wider."""

    def join(module: nn.Module, args: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, (list, tuple)) else output
        more = make(x.select(axis, 0).detach()).to(x)
        count = more.shape[axis]
        both = torch.cat([x, more], axis)
        return (
            (both, *(_grown(part, x, count, axis) for part in output[1:]))
            if isinstance(output, (list, tuple))
            else both
        )

    handle = block.register_forward_hook(join)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def leaving(model: PreTrainedModel, block: str, count: int, out: list[Tensor]) -> Iterator[None]:
    """The last `count` branches leave the others behind a block, after `out` was given all of them."""

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        first, *others = output if isinstance(output, (list, tuple)) else (output,)
        states = tokens_first(model, first)
        out.append(states)
        stay = slice(states.shape[1] - count)
        kept = as_layers_take(model, states[:, stay])
        left = (kept, *(part[:, stay] if _of_tokens(part, states) else part for part in others))
        return left if isinstance(output, (list, tuple)) else kept

    handle = model.get_submodule(block).register_forward_hook(leave)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def keeping_branches(model: PreTrainedModel) -> Iterator[None]:
    """Models that at last bring hidden states into the shape of what they were given (GPT-BigCode) leave them so."""
    layers = decoder_layers(model)[1]
    with ExitStack() as stack:
        last = layers[len(layers) - 1]
        handle = last.register_forward_hook(lambda module, args, output: stack.enter_context(_OwnShape()) and None)
        stack.callback(handle.remove)
        yield


@contextmanager
def _telling_tokens(model: PreTrainedModel) -> Iterator[None]:
    """Layers that are told the ids of their tokens, as for experts chosen by them, are told those of all branches."""

    def tell(module: nn.Module, args: Any, kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        return args, {**kwargs, "input_ids": kwargs["input_ids"].expand(x.shape[:2])}

    with ExitStack() as stack:
        for layer in decoder_layers(model)[1]:
            if "input_ids" in inspect.signature(layer.forward).parameters:
                stack.callback(layer.register_forward_pre_hook(tell, with_kwargs=True).remove)
        yield


class _OwnShape(TorchFunctionMode):
    """A tensor that does not fit the shape that it is to be seen in keeps its own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError:
            if func is not Tensor.view:
                raise
            return args[0]


@contextmanager
def _joining(model: PreTrainedModel, block: str, count: int, axis: int) -> Iterator[None]:
    """`count` copies of the clean branch join those that a block is given."""

    def join(module: nn.Module, args: Any, kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        states = tokens_first(model, x)

        def joined(part: Any) -> Any:
            grown = _grown(states if part is x else part, states, count, axis)
            return as_layers_take(model, grown) if part is x else grown

        return tuple(map(joined, args)), {name: joined(value) for name, value in kwargs.items()}

    handle = model.get_submodule(block).register_forward_pre_hook(join, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _of_tokens(part: Any, hidden: Tensor) -> bool:
    """Whether it says something of every token, as the hidden states of a block do; positions are as good for all."""
    return isinstance(part, Tensor) and 3 <= part.ndim <= hidden.ndim and part.shape[:2] == hidden.shape[:2]


def _grown(part: Any, hidden: Tensor, count: int, axis: int) -> Any:
    """With so many copies of the clean branch more, of what there is for every token."""
    if not _of_tokens(part, hidden):
        return part
    return torch.cat([part, part.narrow(axis, 0, 1).detach().repeat_interleave(count, axis)], axis)
