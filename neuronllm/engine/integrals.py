"""Integrated gradients of a batch, all layers in one sweep.

Alpha scales everything that a layer's neurons hold together: the FFN of a dense block, or all experts that the token is
routed to and the shared one (the layer's own routing does not depend on h).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..model.sites import Site
from .answer_trees import of_prompts
from .borrowed import input_device
from .branch import Batch, sweep, vectors
from .head import wide

GRAPH = 3  # answer tokens without a graph that weigh as much as one whose graph is kept for the way back


def tokens_of(steps: int, blocks: int) -> int:
    """What a pass of so many alphas weighs, in answer tokens for each row of a prompt."""
    return GRAPH * (1 + steps * blocks)


def integral(batch: Batch, alphas: Tensor, weights: Tensor) -> Tensor:
    """(prompts, n_neurons): h times the weighted mean, over alphas, of dF/dh at alpha h.

    One pass has all alphas, unless that is more than a pass may hold: then it is a sum over passes.
    """
    blocks = len({site.block for site in batch.anatomy.sites})
    most = max(1, (batch.branches // GRAPH - 1) // blocks)
    passes = math.ceil(len(alphas) / most)
    parts = zip(alphas.tensor_split(passes), weights.tensor_split(passes), strict=True)
    return torch.stack([_integral(batch, *part) for part in parts]).sum(0)


def _integral(batch: Batch, alphas: Tensor, weights: Tensor) -> Tensor:
    held: dict[str, tuple[Tensor, Tensor | None]] = {}
    leaves: dict[str, Tensor] = {}
    # Once, not at every site: a copy to a GPU makes the host wait.
    alphas, weights = (part.to(input_device(batch.model)) for part in (alphas, weights))

    def join(site: Site, x: Tensor, h: Tensor) -> Tensor:
        """A branch whose h is alpha h is the clean one less (1 - alpha) of what the neurons write."""
        held[site.down] = (h, None)
        step = wide(h) @ vectors(batch.model, site)
        branches = wide(x)[:, None] - (1 - alphas.to(step))[None, :, None] * step[:, None]
        leaves[site.down] = branches.to(x).requires_grad_(True)
        return leaves[site.down]

    def scale(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
        held[site.down] = (h.detach(), routes)
        alpha = alphas.to(h).reshape(1, -1, *[1] * (h.ndim - 2))
        leaves[site.down] = (alpha * h.detach()).requires_grad_(True)
        return leaves[site.down]

    in_front = [block for block in batch.anatomy.blocks if block not in batch.plain]
    with torch.enable_grad():
        logits = sweep(
            batch,
            batch.anatomy.sites,
            copies=dict.fromkeys(in_front, len(alphas)),
            edit=scale,
            behind=dict.fromkeys(batch.plain, join),
        )
        value = batch.value(logits)[:, 1:]
        grads = dict(zip(leaves, torch.autograd.grad(value.sum(), list(leaves.values())), strict=True))
    found = {}
    for site in batch.anatomy.sites:
        h, routes = held[site.down]
        if site.block in batch.plain:
            # Upstream gradients summed over alpha first, then one product with the down projection.
            mean = torch.einsum("m,bmd->bd", weights.to(h.device), grads[site.down].double()).to(wide(h))
            score = wide(h) * (mean @ vectors(batch.model, site).T)
        else:
            score = _mean(site, wide(h) * grads[site.down].double(), routes, weights).to(wide(h))
        found[site.down] = of_prompts(score, batch.width)
    return batch.in_order(found)


def _mean(site: Site, terms: Tensor, routes: Tensor | None, weights: Tensor) -> Tensor:
    """The weighted sum of copies (rows, copies, ...) at a site's neurons, (rows, size)."""
    weights = weights.to(terms.device)
    if routes is None or bool((routes == routes[:, :1]).all()):
        routes = None if routes is None else routes[:, 0]
        return site.spread(torch.einsum("m,bm...->b...", weights, terms), routes)
    # Rounding broke a tie of the router in some copies: every copy has its own experts.
    return torch.einsum("m,bm...->b...", weights, site.spread(terms, routes))
