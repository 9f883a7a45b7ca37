"""Integrated gradients of a batch, all layers in one sweep: with given points, or to a tolerance.

Alpha scales everything that a layer's neurons hold together: the FFN of a dense block, or all experts that the token is
routed to and the shared one (the layer's own routing does not depend on h).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.sites import Site
from .adaptive import ERROR, Looked, Refined, alphas_of
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
    # Once, not at every site: a copy to a GPU makes the host wait.
    alphas, weights = (part.to(input_device(batch.model)) for part in (alphas, weights))
    passes = _passes(batch, dict.fromkeys(batch.anatomy.blocks, alphas))
    shares = weights.tensor_split(len(passes))
    parts = zip(passes, shares, strict=True)
    return torch.stack([_summed(batch, _slopes(batch, part), share) for part, share in parts]).sum(0)


def integral_to(batch: Batch, tolerance: float) -> tuple[Tensor, list[Refined]]:
    """The same to a tolerance, relative to the norm of each prompt's scores, and what that took.

    A prompt's points depend on that prompt alone, also where others of the batch have theirs looked at beside them.
    """
    return _Refining(batch, tolerance).found()


class _Slopes(NamedTuple):
    """Of a site: h of the clean answer, its experts, and dF/dh (or dF by the block's output) at every alpha."""

    h: Tensor
    routes: Tensor | None
    grads: Tensor  # (rows, alphas, ...)

    def and_at(self, more: _Slopes) -> _Slopes:
        routes = None if self.routes is None or more.routes is None else torch.cat([self.routes, more.routes], 1)
        return _Slopes(self.h, routes, torch.cat([self.grads, more.grads], 1))

    def of_prompt(self, number: int, width: int, columns: list[int]) -> _Slopes:
        """Of one prompt's rows at some alphas."""
        rows = slice(number * width, (number + 1) * width)
        routes = None if self.routes is None else self.routes[rows][:, columns]
        return _Slopes(self.h[rows], routes, self.grads[rows][:, columns])


def _passes(batch: Batch, alphas: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The alphas of every block, in as few passes as may hold them."""
    wanted = sum(len(points) for points in alphas.values())
    most = max(1, max(1, batch.branches // GRAPH - 1) // len(alphas))  # alphas of a block
    count = math.ceil(wanted / len(alphas) / most)
    parts = {block: points.tensor_split(count) for block, points in alphas.items()}
    return [{block: part[n] for block, part in parts.items()} for n in range(count)]


def _slopes(batch: Batch, alphas: Mapping[str, Tensor]) -> dict[str, _Slopes]:
    """One pass: by site, the slopes at the alphas of its block."""
    held: dict[str, tuple[Tensor, Tensor | None]] = {}
    leaves: dict[str, Tensor] = {}
    there = input_device(batch.model)
    alphas = {block: points.to(there) for block, points in alphas.items()}

    def join(site: Site, x: Tensor, h: Tensor) -> Tensor:
        """A branch whose h is alpha h is the clean one less (1 - alpha) of what the neurons write."""
        held[site.down] = (h, None)
        step = wide(h) @ vectors(batch.model, site)
        branches = wide(x)[:, None] - (1 - alphas[site.block].to(step))[None, :, None] * step[:, None]
        leaves[site.down] = branches.to(x).requires_grad_(True)
        return leaves[site.down]

    def scale(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
        held[site.down] = (h.detach()[:, :1], routes)  # the copies are alike so far
        alpha = alphas[site.block].to(h).reshape(1, -1, *[1] * (h.ndim - 2))
        leaves[site.down] = (alpha * h.detach()).requires_grad_(True)
        return leaves[site.down]

    sites = [site for site in batch.anatomy.sites if site.block in alphas]
    with torch.enable_grad():
        logits = sweep(
            batch,
            sites,
            copies={block: len(points) for block, points in alphas.items() if block not in batch.plain},
            edit=scale,
            behind=dict.fromkeys([block for block in alphas if block in batch.plain], join),
        )
        value = batch.value(logits)[:, 1:]
        grads = dict(zip(leaves, torch.autograd.grad(value.sum(), list(leaves.values())), strict=True))
    return {down: _Slopes(*held[down], grads[down]) for down in leaves}


def _summed(batch: Batch, slopes: Mapping[str, _Slopes], weights: Tensor) -> Tensor:
    return batch.in_order({site.down: _score(batch, site, slopes[site.down], weights) for site in batch.anatomy.sites})


def _score(batch: Batch, site: Site, slopes: _Slopes, weights: Tensor) -> Tensor:
    """(prompts, size): h times the weighted sum of the slopes."""
    h, routes, grads = slopes
    weights = weights.to(h.device)
    if site.block in batch.plain:
        # Upstream gradients summed over alpha first, then one product with the down projection.
        mean = torch.einsum("m,bmd->bd", weights, grads.double()).to(wide(h))
        score = wide(h) * (mean @ vectors(batch.model, site).T)
    else:
        score = _mean(site, wide(h) * grads.double(), routes, weights).to(wide(h))
    return of_prompts(score, batch.width)


def _mean(site: Site, terms: Tensor, routes: Tensor | None, weights: Tensor) -> Tensor:
    """The weighted sum of copies (rows, copies, ...) at a site's neurons, (rows, size)."""
    if routes is None or bool((routes == routes[:, :1]).all()):
        routes = None if routes is None else routes[:, 0]
        return site.spread(torch.einsum("m,bm...->b...", weights, terms), routes)
    # Rounding broke a tie of the router in some copies: every copy has its own experts.
    return torch.einsum("m,bm...->b...", weights, site.spread(terms, routes))


# ---- to a tolerance ----


class _Refining:
    """The prompts of a batch, each with intervals of its own at every layer."""

    def __init__(self, batch: Batch, tolerance: float) -> None:
        self.batch, self.blocks = batch, list(batch.anatomy.blocks)
        self.prompts = [Refined(len(self.blocks), tolerance) for _ in batch.prompts]
        self.slopes: dict[str, _Slopes] = {}  # by site
        self.columns: list[dict[int, int]] = [{} for _ in self.blocks]  # of slopes, by point

    def found(self) -> tuple[Tensor, list[Refined]]:
        waiting = [prompt.first() for prompt in self.prompts]
        while any(waiting):
            self._ask(waiting)
            for number, new in enumerate(waiting):
                self._look(number, new)
            waiting = [prompt.split() for prompt in self.prompts]
        rows = []
        for number, prompt in enumerate(self.prompts):
            parts = [self._scores(number, layer, prompt.weights(layer)) for layer in range(len(self.blocks))]
            rows.append(torch.cat([part for of_block in parts for part in of_block]))
        return torch.stack(rows), self.prompts

    def _ask(self, waiting: list[list[Looked]]) -> None:
        """The slopes of all points that are new, block by block, whichever prompt wants them."""
        new: dict[str, list[int]] = {}
        for layer, interval in (looked for some in waiting for looked in some):
            known, points = self.columns[layer], new.setdefault(self.blocks[layer], [])
            points += [at for at in interval.points if at and at not in known and at not in points]
        alphas = {block: alphas_of(sorted(points)) for block, points in new.items() if points}
        for part in _passes(self.batch, alphas) if alphas else ():
            for down, slopes in _slopes(self.batch, {block: some for block, some in part.items() if len(some)}).items():
                self.slopes[down] = self.slopes[down].and_at(slopes) if down in self.slopes else slopes
        for layer, block in enumerate(self.blocks):
            for at in sorted(new.get(block, ())):
                self.columns[layer][at] = len(self.columns[layer])

    def _look(self, number: int, new: list[Looked]) -> None:
        """The errors of a prompt's new intervals, and the norms of their layers."""
        prompt = self.prompts[number]
        for layer, interval in new:
            prompt.errors[layer, interval] = _norm(self._scores(number, layer, interval.weights(ERROR)))
        for layer in dict(new):
            prompt.norms[layer] = _norm(self._scores(number, layer, prompt.weights(layer)))

    def _scores(self, number: int, layer: int, weights: dict[int, float]) -> list[Tensor]:
        """Of the sites of a layer, (size,) each."""
        columns = [self.columns[layer][at] for at in weights]
        rule = torch.tensor(list(weights.values()), dtype=torch.float64)
        sites = self.batch.anatomy.blocks[self.blocks[layer]]
        rows = [(site, self.slopes[site.down].of_prompt(number, self.batch.width, columns)) for site in sites]
        return [_score(self.batch, site, slopes, rule)[0].cpu() for site, slopes in rows]


def _norm(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).double().norm())
