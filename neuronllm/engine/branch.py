"""The branch sweep: one pass of answer tokens through the layers serves the edits of every layer.

Row 0 of each prompt is the clean answer token. In front of a block with edits, copies of it join the packed rows, and
in front of its down projection each copy's h is edited. A row attends to its prompt's prefix and to itself only, so a
row IS the full forward pass with that edit, at the price of one token through the layers from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..anatomy import Site
from ..steer import visiting
from .attention import branch_attention
from .borrowed import check_finite, input_device
from .prefix import PrefixCache, answer_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..prompts import Prompt

# (site, its rows of h: prompts x rows x width, their routes) -> the rows as they are to be
EditRows = Callable[[Site, Tensor, "Tensor | None"], Tensor]


def answer_pass(model: PreTrainedModel, prompts: Sequence[Prompt], prefix: PrefixCache) -> Tensor:
    """Logits (prompts, rows, vocabulary) of the answer tokens, inside `branch_attention`."""
    last = torch.tensor([[p.input_ids[-1]] for p in prompts], device=input_device(model))
    logits = model(
        input_ids=last,
        position_ids=prefix.lengths[:, None].to(last.device),
        past_key_values=answer_cache(prefix),
        use_cache=True,
    ).logits
    check_finite(model, logits)
    # Some models (GPT-2) give their hidden states back in the shape of the input ids, one token a row.
    return logits.reshape(len(prompts), -1, logits.shape[-1])


def sweep(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    prefix: PrefixCache,
    sites: Sequence[Site],
    rows: Mapping[str, int],
    edit: EditRows,
) -> Tensor:
    """Logits (prompts, 1 + rows, vocabulary): the clean answer, then the rows of every site in the order of sites.

    `rows` says how many a site has, by the name of its down projection; `edit` sees a site's own rows.
    """
    edited = [site for site in sites if rows.get(site.down)]

    def in_front(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
        count = rows[site.down]
        return torch.cat([h[:, :-count], edit(site, h[:, -count:], None if routes is None else routes[:, -count:])], 1)

    with ExitStack() as stack:
        stack.enter_context(branch_attention(model, prefix))
        for site in edited:  # before `visiting`, which looks at the shape that a block is given
            stack.enter_context(_joined(model.get_submodule(site.block), rows[site.down]))
        stack.enter_context(visiting(model, edited, in_front))
        return answer_pass(model, prompts, prefix)


def residuals(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    prefix: PrefixCache,
    sites: Sequence[Site],
    rows: Mapping[str, int],
    edit: EditRows,
) -> dict[str, Tensor]:
    """What a site's edited rows have become right behind its block, (prompts, rows, D) each; they go no further."""
    out: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(_left(model.get_submodule(site.block), rows[site.down], out, site.down))
        sweep(model, prompts, prefix, sites, rows, edit)
    return out


@contextmanager
def _left(block: nn.Module, count: int, out: dict[str, Tensor], name: str) -> Iterator[None]:
    """The last `count` rows leave the packed rows behind a block."""

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        out[name], x = x[:, -count:], x[:, :-count]
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = block.register_forward_hook(leave)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _joined(block: nn.Module, count: int) -> Iterator[None]:
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
