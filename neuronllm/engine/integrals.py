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
from .answer_trees import of_prompts
from .borrowed import input_device
from .branch import Batch, sweep, vectors
from .head import wide
from .nested import FIRST, LAST, Integrals, alphas_of, error_of, open_layers, points_of, weights_of

GRAPH = 3  # answer tokens without a graph that weigh as much as one whose graph is kept for the way back


def tokens_of(steps: int, blocks: int) -> int:
    """What a pass of so many alphas weighs, in answer tokens for each row of a prompt."""
    return GRAPH * (1 + steps * blocks)


def integral(batch: Batch, alphas: Tensor, weights: Tensor) -> Tensor:
    """(prompts, n_neurons): h times the weighted mean, over alphas, of dF/dh at alpha h.

    One pass has all alphas, unless that is more than a pass may hold: then it is a sum over passes.
    """
    passes = _passes(batch, dict.fromkeys(batch.anatomy.blocks, alphas))
    shares = weights.tensor_split(len(passes))
    parts = zip(passes, shares, strict=True)
    return torch.stack([_summed(batch, _slopes(batch, part), share) for part, share in parts]).sum(0)


def integral_to(batch: Batch, tolerance: float) -> Integrals:
    """The same to a tolerance, relative to the norm of each prompt's scores; a layer takes as many points as it takes.

    A prompt's points depend on that prompt alone.
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

    def first(self, count: int) -> _Slopes:
        return _Slopes(self.h, None if self.routes is None else self.routes[:, :count], self.grads[:, :count])


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
    # Once, not at every site: a copy to a GPU makes the host wait.
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
        held[site.down] = (h.detach(), routes)
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
    """The layers of a batch, each prompt with a level of its own at every layer."""

    def __init__(self, batch: Batch, tolerance: float) -> None:
        self.batch, self.tolerance = batch, tolerance
        self.blocks = list(batch.anatomy.blocks)
        self.slopes: dict[str, _Slopes] = {}
        self.asked = dict.fromkeys(self.blocks, 0)  # points so far
        shape = len(batch.prompts), len(self.blocks)
        self.level = torch.full(shape, FIRST)
        self.errors, self.norms = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        self.scores: dict[str, Tensor] = {}

    def found(self) -> Integrals:
        self._look(torch.ones_like(self.level, dtype=torch.bool))
        while bool((wider := self._open()).any()):
            self.level += wider
            self._look(wider)
        norms = self.norms.square().sum(1).sqrt()
        errors = self.errors.square().sum(1).sqrt() / norms.clamp(min=torch.finfo(norms.dtype).tiny)
        points = (2.0**self.level).mean(1)
        return Integrals(self.batch.in_order(self.scores), errors, points)

    def _open(self) -> Tensor:
        norms = self.norms.square().sum(1).sqrt()
        return open_layers(self.errors, norms, self.tolerance) & (self.level < LAST)

    def _look(self, wanted: Tensor) -> None:
        """Scores and errors of these prompts at these layers, at their levels."""
        here = [n for n in range(len(self.blocks)) if bool(wanted[:, n].any())]
        self._ask({self.blocks[n]: int(self.level[wanted[:, n], n].max()) for n in here})
        for n in here:
            for level in self.level[wanted[:, n], n].unique().tolist():
                self._take(n, level, wanted[:, n] & (self.level[:, n] == level))

    def _ask(self, levels: Mapping[str, int]) -> None:
        """The slopes of blocks at all points up to a level that were not asked for yet."""
        new = {block: alphas_of(level)[self.asked[block] :] for block, level in levels.items()}
        new = {block: points for block, points in new.items() if len(points)}
        for part in _passes(self.batch, new) if new else []:
            for down, slopes in _slopes(self.batch, {b: points for b, points in part.items() if len(points)}).items():
                self.slopes[down] = self.slopes[down].and_at(slopes) if down in self.slopes else slopes
        for block, points in new.items():
            self.asked[block] += len(points)

    def _take(self, n: int, level: int, mine: Tensor) -> None:
        """A block's scores of some prompts, and the errors by the two levels before."""
        squares = torch.zeros(3, len(mine), dtype=torch.float64)  # of the scores, of the last differences
        for site in self.batch.anatomy.blocks[self.blocks[n]]:
            slopes = self.slopes[site.down]
            last, before, first = (
                _score(self.batch, site, slopes.first(points_of(at)), weights_of(at))
                for at in (level, level - 1, level - 2)
            )
            own = self.scores.setdefault(site.down, torch.zeros_like(last))
            own[mine.to(own.device)] = last[mine.to(last.device)]
            for row, part in enumerate((last, last - before, before - first)):
                squares[row] += part.double().square().sum(1).cpu()
        norm, second, third = squares.sqrt()
        self.norms[mine, n], self.errors[mine, n] = norm[mine], error_of(third, second)[mine]
