"""Passes of answer tokens: those of a batch run forward, and backward where asked, against their cached prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..model.hooks import visiting
from ..model.sites import Site
from .attention import branch_attention
from .borrowed import check_finite, input_device
from .caches import passing_cache
from .rows import branches_as_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .tree import Prefix

# (site, h, dF/dh, routes): what to do with the gradient of a site as soon as the backward pass has it
Keep = Callable[[Site, Tensor, Tensor, "Tensor | None"], None]


@contextmanager
def answering(model: PreTrainedModel, prefix: Prefix, *, constant_patterns: bool = False) -> Iterator[None]:
    """Around passes of answer tokens: they see `prefix` and what is above them in their own trees."""
    with branch_attention(model, prefix, constant_patterns=constant_patterns), branches_as_rows(model, prefix):
        yield


def answer_pass(model: PreTrainedModel, prefix: Prefix, copies: int = 1) -> Tensor:
    """Logits (prompts x nodes, copies, ids) of the answer tokens, inside `answering`."""
    tokens = prefix.trees.tokens.reshape(-1, 1).expand(-1, copies).to(input_device(model))
    positions = (prefix.lengths[:, None] + prefix.trees.depth).reshape(-1, 1).expand(-1, copies)
    made = () if prefix.mixers is None else (prefix.mixers.kind, model)
    logits = model(
        input_ids=tokens,
        position_ids=positions.to(tokens.device),
        past_key_values=passing_cache(int(prefix.lengths.max()), *made),
        use_cache=True,
    ).logits
    check_finite(model, logits)
    # Some models (GPT-2) give their hidden states back in the shape of the input ids, one token a row.
    return logits.reshape(len(tokens), -1, logits.shape[-1])


class _Watched(torch.autograd.Function):
    """h itself; on the way back its gradient is handed over, so that no layer's gradients wait for another's."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, anchor: Tensor, keep: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.keep = keep
        ctx.save_for_backward(h)
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (h,), grad = ctx.saved_tensors, grads[0]
        ctx.keep(h.detach(), grad)
        return (grad if ctx.needs_input_grad[0] else None), grad.new_zeros(()), None


@contextmanager
def watching_gradients(model: PreTrainedModel, sites: Sequence[Site], keep: Keep) -> Iterator[Tensor]:
    """Yields the anchor: `torch.autograd.grad(value, anchor)` gives `keep` the gradient at every site's h, last first.

    Parameters may stay frozen; what grows the graph is the anchor, a zero that every site depends on.
    """
    anchor = torch.zeros((), device=input_device(model), requires_grad=True)  # elsewhere every site would wait for it

    def watch(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
        return _Watched.apply(h, anchor.to(h), lambda h, grad: keep(site, h, grad, routes))

    with visiting(model, sites, watch), torch.enable_grad():
        yield anchor
