"""Random neurons to compare chosen ones with: as many in every block, and of every expert, as the chosen ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .anatomy import Anatomy

NEAREST = 16  # in rank, of which one is drawn


def random_like(ids: Tensor, anatomy: Anatomy, generator: torch.Generator) -> Tensor:
    """As many random neurons in each block, and of each expert, as `ids` has there, in the same order of blocks."""
    drawn = torch.empty_like(ids)
    for start, width, here in blocks_of(ids, anatomy):
        drawn[here] = start + torch.randperm(width, generator=generator)[: int(here.sum())]
    return drawn


def matched_like(ids: Tensor, strength: Tensor, anatomy: Anatomy, generator: torch.Generator) -> Tensor:
    """Random neurons of the same blocks, and of the same experts, each about as strong as the one in its place.

    A neuron of `ids` is matched with one of the 16 that come nearest in rank by `strength` (n_neurons,) in its block;
    none is drawn twice, and none of `ids` while the block has others.
    """
    drawn = torch.empty_like(ids)
    for start, width, here in blocks_of(ids, anatomy):
        rank = strength[start : start + width].argsort(stable=True).argsort()
        own = ids[here] - start
        others, left = torch.ones(2, width, dtype=torch.bool)
        others[own] = False
        found = []
        for place in own.tolist():
            pool = left & others if bool((left & others).any()) else left
            far = (rank - rank[place]).abs().masked_fill(~pool, width)
            near = far.argsort(stable=True)[: min(NEAREST, int(pool.sum()))]
            found.append(int(near[torch.randint(len(near), (1,), generator=generator)]))
            left[found[-1]] = False
        drawn[here] = start + torch.tensor(found)
    return drawn


def blocks_of(ids: Tensor, anatomy: Anatomy) -> Iterator[tuple[int, int, Tensor]]:
    """Of every block, or expert, that holds some of `ids`: its first neuron, its width, and which of them lie there."""
    where = anatomy.site_of(ids)
    widths = torch.tensor([site.width for site in anatomy.sites])[where]
    first = ids - (ids - anatomy.offsets[where]) % widths
    for start in first.unique().tolist():
        here = first == start
        yield start, int(widths[here][0]), here
