"""How far neuron sets of several tasks are the same, beside what chance would make of that.

Chance draws as many neurons in every block, and of every expert, as a set has there, like the random sets that edits
are compared with: sets that keep to the same few layers share more than others by that alone. In one block the number
that two such sets share is hypergeometric; over blocks the distributions are convolved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.statistics import hypergeometric
from ..model.anatomy import Anatomy
from ..model.random_sets import blocks_of
from .factors import ROLES
from .neurons import NeuronSet


class Overlap(NamedTuple):
    """Neurons that two sets share, of those in either; what random sets would, and how likely these share as many."""

    shared: int
    jaccard: float
    chance: float
    p: float

    @classmethod
    def of(cls, one: Tensor, other: Tensor, anatomy: Anatomy) -> Overlap:
        """That of two sets of flat ids; sets without a neuron have nothing in common."""
        either = len(one) + len(other)
        shared = int(torch.isin(one, other).sum())
        if not either:
            return cls(0, 0.0, 0.0, 1.0)
        likely = shared_by_chance(one, other, anatomy)
        counts = np.arange(len(likely))
        jaccard = float((likely * counts / (either - counts)).sum())
        return cls(shared, shared / (either - shared), jaccard, min(1.0, float(likely[shared:].sum())))


def shared_by_chance(one: Tensor, other: Tensor, anatomy: Anatomy) -> np.ndarray:
    """How likely random sets, as large as these in every block and expert, share 0, 1, ... neurons."""
    theirs = {start: int(here.sum()) for start, _, here in blocks_of(other, anatomy)}
    likely = np.ones(1)
    for start, width, here in blocks_of(one, anatomy):
        likely = np.convolve(likely, hypergeometric(width, int(here.sum()), theirs.get(start, 0)))
    return likely


def overlaps(sets: Mapping[str, NeuronSet]) -> dict[str, Any]:
    """Every pair of sets, as matrices of plain data: good with good neurons, bad with bad, and good (row) with bad.

    >>> overlaps({"a": a, "b": b})["good"][0][1]["jaccard"]   # doctest: +SKIP
    """
    anatomy = same_anatomy(sets)

    def matrix(row: str, column: str) -> list[list[dict[str, Any]]]:
        return [
            [Overlap.of(ids_of(a, row), ids_of(b, column), anatomy)._asdict() for b in sets.values()]
            for a in sets.values()
        ]

    good, bad = ROLES
    return {"names": list(sets), "good": matrix(good, good), "bad": matrix(bad, bad), "good_bad": matrix(good, bad)}


def two_faced(sets: Mapping[str, NeuronSet]) -> list[dict[str, Any]]:
    """Neurons that are good in one set and bad in another, those of most sets first: address, and in which they are."""
    anatomy = same_anatomy(sets)
    where: dict[int, dict[str, list[str]]] = {}
    for name, neurons in sets.items():
        for number, role in zip(neurons.ids.tolist(), neurons.role.tolist(), strict=True):
            where.setdefault(number, {each: [] for each in ROLES})[role].append(name)
    both = [number for number, roles in where.items() if all(roles.values())]
    both.sort(key=lambda number: (-sum(map(len, where[number].values())), number))
    places = zip(*(part.tolist() for part in anatomy.locate(both)), strict=True) if both else ()
    return [
        {"id": number, "layer": layer, "expert": expert, "index": index, **where[number]}
        for number, (layer, expert, index) in zip(both, places, strict=True)
    ]


def by_layer(neurons: NeuronSet) -> dict[str, list[int]]:
    """How many good and how many bad neurons there are in every decoder layer."""
    layers = max(site.layer for site in neurons.anatomy.sites) + 1
    counted = neurons.layer.numpy()
    return {role: np.bincount(counted[neurons.role == role], minlength=layers).tolist() for role in ROLES}


def ids_of(neurons: NeuronSet, role: str) -> Tensor:
    return neurons.ids[torch.from_numpy(neurons.role == role)]


def same_anatomy(sets: Mapping[str, NeuronSet]) -> Anatomy:
    """That of all sets, which must be of one model."""
    if not isinstance(sets, Mapping) or not sets:
        raise InputError("neurons: give neuron sets by the names of their tasks, {name: set}")
    for name, neurons in sets.items():
        if not isinstance(neurons, NeuronSet):
            raise InputError(f"neurons: {name!r} is no neuron set but {type(neurons).__name__}")
    first, *others = (neurons.anatomy for neurons in sets.values())
    for name, other in zip(list(sets)[1:], others, strict=True):
        if not first.same_layout(other):
            raise InputError(f"neurons: {name!r} is of a {other.describe()}, and the first of a {first.describe()}")
    return first
