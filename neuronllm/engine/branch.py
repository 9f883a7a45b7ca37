"""The branch sweep: one pass of answer tokens through the layers serves the edits of every layer.

Row 0 of each prompt is the clean answer token; edited copies of it join the packed rows at the block that they are
edited in. A row attends to its prompt's prefix and to itself only, so a row IS the full forward pass with that edit, at
the price of one token through the layers from there on.

Where a block adds W h to the residual stream as it is, a row needs not run through the block at all: it joins behind
it, as the clean output plus W (h' - h). `plain_blocks` finds out by trying. In every other block (norms behind the FFN,
multipliers, experts) the copies join in front of it and their h is edited in front of the down projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..anatomy import Site
from ..steer import visiting
from .answer import answer_pass
from .attention import branch_attention
from .objective import wide
from .prefix import Prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..anatomy import Anatomy
    from ..prompts import Prompt

# (site, the rows of h that belong to its block: prompts x rows x width, their routes) -> the rows as they are to be
EditRows = Callable[[Site, Tensor, "Tensor | None"], Tensor]
# (site, clean output of its block: prompts x D, clean h: prompts x width) -> rows (prompts x rows x D) from there on
RowsBehind = Callable[[Site, Tensor, Tensor], Tensor]


def sweep(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    prefix: Prefix,
    sites: Sequence[Site],
    *,
    rows: Mapping[str, int] | None = None,
    edit: EditRows | None = None,
    behind: Mapping[str, RowsBehind] | None = None,
) -> Tensor:
    """Logits (prompts, 1 + rows, ids): the clean answer, then the rows of every block from the first to the last.

    `rows` says how many copies join in front of a block, and `edit` sees them at its sites; `behind` makes the rows
    that join behind a block. Both go by the block's name.
    """
    rows, behind = rows or {}, behind or {}
    clean: dict[str, Tensor] = {}

    def in_front(site: Site, h: Tensor, routes: Tensor | None) -> Tensor | None:
        if site.block in behind:
            clean[site.block] = h[:, 0].detach()
            return None
        count = rows[site.block]
        assert edit is not None
        edited = edit(site, h[:, -count:], None if routes is None else routes[:, -count:])
        return torch.cat([h[:, :-count], edited.to(h)], 1)

    with ExitStack() as stack:
        stack.enter_context(branch_attention(model, prefix))
        visited = [site for site in sites if rows.get(site.block) or site.block in behind]
        for block in dict.fromkeys(site.block for site in visited if site.block not in behind):
            # before `visiting`, which looks at the shape that a block is given
            stack.enter_context(_joining(model.get_submodule(block), rows[block]))
        for site in visited:
            if site.block in behind:
                make = behind[site.block]
                append = lambda x, site=site, make=make: make(site, x, clean.pop(site.block))  # noqa: E731
                stack.enter_context(joining_behind(model.get_submodule(site.block), append))
        stack.enter_context(visiting(model, visited, in_front))
        return answer_pass(model, prompts, prefix)


def clean_states(
    model: PreTrainedModel, prompts: Sequence[Prompt], prefix: Prefix, sites: Sequence[Site]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The clean answer token at every site: its block's output (prompts, D) and h (prompts, width)."""
    states: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(site: Site, x: Tensor, h: Tensor) -> Tensor:
        states[site.down] = (x, h)
        return x[:, None][:, :0]

    sweep(model, prompts, prefix, sites, behind={site.block: keep for site in sites})
    return states


def residuals(
    model: PreTrainedModel, prompts: Sequence[Prompt], prefix: Prefix, site: Site, sites: Sequence[Site], count: int,
    edit: EditRows,
) -> Tensor:  # fmt: skip
    """What `count` edited rows of the sites of one block have become right behind it, (prompts, rows, D)."""
    out: list[Tensor] = []
    with _leaving(model.get_submodule(site.block), count, out):
        sweep(model, prompts, prefix, sites, rows={site.block: count}, edit=edit)
    return out[0]


def vectors(model: PreTrainedModel, site: Site, ids: Tensor | None = None) -> Tensor:
    """What each neuron writes when its h is 1: (neurons, D), in float32 or better; all neurons without ids."""
    weight: Any = model.get_submodule(site.down).weight
    if ids is None:
        return wide(weight if site.transposed else weight.T)
    index = ids.to(weight.device)
    return wide(weight.index_select(0, index) if site.transposed else weight.index_select(1, index).T)


def plain_blocks(model: PreTrainedModel, anatomy: Anatomy, prompts: Sequence[Prompt], prefix: Prefix) -> frozenset[str]:
    """The blocks whose only site adds W h to the residual stream and nothing more, found by halving h."""
    alone = [site for site in anatomy.sites if sum(site.block == other.block for other in anatomy.sites) == 1]
    plain = set()
    clean = clean_states(model, prompts, prefix, alone)
    for site in alone:
        weight: Any = getattr(model.get_submodule(site.down), "weight", None)
        x, h = clean[site.down]
        if weight is None or not weight.is_floating_point() or weight.is_meta or h.shape[-1] != site.width:
            continue
        moved = residuals(model, prompts, prefix, site, [site], 1, lambda site, h, routes: h / 2)[:, 0]
        step = wide(h) @ vectors(model, site) / -2
        tolerance = 0.05 if torch.finfo(weight.dtype).eps > 1e-4 else 1e-4  # the block's own rounding
        if bool((wide(moved) - wide(x) - step).norm() <= tolerance * step.norm()):
            plain.add(site.block)
    return frozenset(plain)


@contextmanager
def joining_behind(block: nn.Module, make: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`make(clean row)` gives rows that join the packed rows behind a block, in their own type if it is wider."""

    def join(module: nn.Module, args: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        x = torch.cat([x, make(x[:, 0].detach()).to(x)], 1)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = block.register_forward_hook(join)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _leaving(block: nn.Module, count: int, out: list[Tensor]) -> Iterator[None]:
    """The last `count` rows leave the packed rows behind a block."""

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        out.append(x[:, -count:])
        return (x[:, :-count], *output[1:]) if isinstance(output, tuple) else x[:, :-count]

    handle = block.register_forward_hook(leave)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _joining(block: nn.Module, count: int) -> Iterator[None]:
    """`count` copies of the clean row join the rows that a block is given."""

    def join(module: nn.Module, args: Any, kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        x = torch.cat([x, x[:, :1].detach().expand(-1, count, -1)], 1)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    handle = block.register_forward_pre_hook(join, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
