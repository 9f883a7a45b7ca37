"""Exact effects of a batch: every neuron edited in a branch of its own, and the branch really run to the end.

Neurons of experts that none of the edited tokens is routed to do nothing, so branches are made for places only: a place
is one of the numbers that h holds at a site, counted over the experts that these tokens reach. Which neuron a place
belongs to is up to each prompt's routes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..model.sites import Site
from .branch import Batch, clean_routes, sweep, vectors
from .head import wide

Places = list[tuple[Site, Tensor]]
COPIES = 8


def effects(batch: Batch, ids: Tensor | None, factor: float, trial: bool = False) -> Tensor:
    """(prompts, ids): F(clean) - F(neuron times factor), of all neurons without ids; one pass only in a trial."""
    routes = clean_routes(batch)
    places = _places(batch, ids, routes)
    total = sum(len(at) for _, at in places)
    found: dict[str, list[Tensor]] = {site.down: [] for site, _ in places}
    most = max(1, min(total, batch.branches))
    batch.passes = math.ceil(total / most)
    for chunk in _chunks(places, most):
        if trial and found[places[0][0].down]:
            return torch.zeros(len(batch.prompts), batch.anatomy.n_neurons if ids is None else len(ids))
        values = _swept(batch, chunk, routes, factor).split([len(at) for _, at in chunk], 1)
        for (site, _), part in zip(chunk, values, strict=True):
            found[site.down].append(part)
    whole = {}
    for site, at in places:
        if not len(at):  # nobody is routed there
            continue
        part = torch.cat(found[site.down], 1)
        held = part.new_zeros(len(part), held_at(site, routes)).index_copy_(1, at, part)
        whole[site.down] = site.spread(*at_experts(site, held, routes))
    if ids is None:
        return batch.in_order(whole)
    out = torch.zeros(len(batch.prompts), len(ids), dtype=torch.promote_types(batch.model.dtype, torch.float32))
    where = batch.anatomy.site_of(ids)
    for n in where.unique().tolist():
        here, site = where == n, batch.anatomy.sites[n]
        if site.down in whole:
            out[:, here] = whole[site.down][:, ids[here] - batch.anatomy.offsets[n]]
    return out


def rounding(batch: Batch) -> float:
    """What a change of h by one rounding does to the objective: effects below it are noise."""

    def jitter(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(h.shape, generator=generator, dtype=torch.float64).to(h)
        return h * (1 + noise * torch.finfo(h.dtype).eps)

    block, sites = next(iter(batch.anatomy.blocks.items()))
    logits = sweep(batch, sites, copies={block: min(COPIES, batch.branches)}, edit=jitter)
    values = _values(batch, logits)
    return float((values[:, 1:] - values[:, :1]).abs().max())


def _swept(batch: Batch, chunk: Places, routes: dict[str, Tensor], factor: float) -> Tensor:
    """(prompts, places): F(clean) - F(edited), in the order of the chunk."""
    at = {site.down: places for site, places in chunk}
    sites = [site for site, _ in chunk]
    counts: dict[str, int] = {}
    starts = {}
    for site in sites:
        starts[site.down] = counts.get(site.block, 0)
        counts[site.block] = starts[site.down] + len(at[site.down])

    def join(site: Site, x: Tensor, h: Tensor) -> Tensor:
        columns = at[site.down].to(h.device)
        return wide(x)[:, None] + (factor - 1) * wide(h)[:, columns, None] * vectors(batch.model, site, columns)

    def multiply(site: Site, h: Tensor, now: Tensor | None) -> Tensor:
        own = slice(starts[site.down], starts[site.down] + len(at[site.down]))
        values, index = (
            h[:, own].flatten(2),
            columns_of(site, at[site.down], routes, None if now is None else now[:, own]),
        )
        index = index.to(h.device).expand(len(h), -1)[..., None]
        old = values.gather(2, index.clamp(min=0))
        # A node that is not routed to the expert, or is so no longer by rounding, has nothing to edit.
        values = values.scatter(2, index.clamp(min=0), torch.where(index < 0, old, old * factor)).reshape(
            h[:, own].shape
        )
        return torch.cat([h[:, : own.start], values, h[:, own.stop :]], 1)

    logits = sweep(
        batch,
        sites,
        copies={block: count for block, count in counts.items() if block not in batch.plain},
        edit=multiply,
        behind={site.block: join for site in sites if site.block in batch.plain},
    )
    values = _values(batch, logits)
    return (values[:, :1] - values[:, 1:]).to(wide(logits)).cpu()


def _values(batch: Batch, logits: Tensor) -> Tensor:
    """The objective of every branch, in float64: float32 would round most of a small difference of two away."""
    return batch.value(logits.double())


def columns_of(site: Site, places: Tensor, routes: dict[str, Tensor], now: Tensor | None) -> Tensor:
    """(rows, places): where in a branch's own h the neuron of each place is; -1 where its expert is missing."""
    if now is None:
        return places[None]
    wanted = routes[site.down][:, places.to(now.device) // site.width]
    wanted = wanted.repeat_interleave(len(now) // len(wanted), 0)  # of prompts -> of their nodes
    same = now == wanted[..., None]
    column = same.int().argmax(-1) * site.width + places.to(now.device) % site.width
    return torch.where(same.any(-1), column, -1)


def _places(batch: Batch, ids: Tensor | None, routes: dict[str, Tensor]) -> Places:
    """The places of every site whose neurons are asked for, by any prompt of the batch."""
    if ids is None:
        return [(site, torch.arange(held_at(site, routes))) for site in batch.anatomy.sites]
    where, found = batch.anatomy.site_of(ids), []
    for n in where.unique().tolist():
        site, within = batch.anatomy.sites[n], ids[where == n] - batch.anatomy.offsets[n]
        if site.experts:
            reached = routes[site.down].cpu()[:, :, None] == within // site.width  # prompts, K, ids
            slots = reached.any(0).nonzero()
            within = slots[:, 0] * site.width + within[slots[:, 1]] % site.width
        found.append((site, within.unique()))
    return found


def _chunks(places: Places, most: int) -> Iterator[Places]:
    """The same places in passes of so many branches."""
    chunk: Places = []
    room = most
    for site, at in places:
        while len(at):
            chunk.append((site, at[:room]))
            at, room = at[room:], room - len(at[:room])
            if not room:
                yield chunk
                chunk, room = [], most
    if chunk:
        yield chunk


def held_at(site: Site, routes: dict[str, Tensor]) -> int:
    """How many numbers h holds at a site."""
    return site.width * (routes[site.down].shape[1] if site.experts else 1)


def at_experts(site: Site, held: Tensor, routes: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    if not site.experts:
        return held, None
    reached = routes[site.down].cpu()
    values = held.unflatten(1, (-1, site.width)).masked_fill((reached < 0)[..., None], 0)
    return values, reached.clamp(min=0)
