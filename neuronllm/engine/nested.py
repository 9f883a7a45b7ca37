"""Integrals over alpha to a tolerance: nested points, an error estimate, and as many points as a layer takes.

On a trained model most layers are smooth in alpha, and one or two are not: near alpha = 0 the norms behind a layer see
almost nothing of it. So points lie dense there (Clenshaw-Curtis in t, alpha = t ** POWER), those of a level are half of
those of the next, and a layer of a prompt goes a level up while its error may matter to that prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

POWER = 2
FIRST, LAST = 2, 6  # levels: 4 points, and 64 at most


class Integrals(NamedTuple):
    """Of prompts: scores (prompts, n_neurons), estimated errors beside their norm, and points a layer on average."""

    scores: Tensor
    errors: Tensor
    points: Tensor


def points_of(level: int) -> int:
    """How many points a level has; the one at alpha = 0 has no weight and is never asked for.

    >>> points_of(3)
    8
    """
    return 2**level


@cache
def alphas_of(level: int) -> Tensor:
    """The points of a level in float64, in the order in which they are asked for: first those of the level before it.

    >>> alphas_of(1).tolist()
    [1.0, 0.25]
    """
    return _placed(level)[0]


@cache
def weights_of(level: int) -> Tensor:
    """Their weights, which sum to 1.

    >>> round(float(weights_of(3).sum()), 12)
    1.0
    """
    return _placed(level)[1]


def _placed(level: int) -> tuple[Tensor, Tensor]:
    count = 2**level
    place = torch.arange(1, count + 1, dtype=torch.float64)
    t = (1 - torch.cos(math.pi * place / count)) / 2
    weight = _clenshaw_curtis(count)[1:] * POWER * t ** (POWER - 1)
    # the level at which a place is new: odd places of the finest one last
    new_at = [level - min(level, (n & -n).bit_length() - 1) for n in range(1, count + 1)]
    order = sorted(range(count), key=lambda n: (new_at[n], n))
    return (t**POWER)[order], weight[order]


def _clenshaw_curtis(count: int) -> Tensor:
    """The weights of count + 1 points on [0, 1]."""
    if count == 1:
        return torch.full((2,), 0.5, dtype=torch.float64)
    place = torch.arange(count + 1, dtype=torch.float64)
    weights = torch.ones(count + 1, dtype=torch.float64)
    for m in range(1, count // 2 + 1):
        share = (1 if 2 * m == count else 2) / (4 * m * m - 1)
        weights -= share * torch.cos(2 * math.pi * m * place / count)
    weights *= 1 / count
    weights[[0, -1]] /= 2
    return weights


def error_of(before: Tensor, last: Tensor) -> Tensor:
    """What is left of an error, of the last two differences between levels: they shrink about evenly.

    >>> error_of(torch.tensor([1.0]), torch.tensor([0.1])).tolist()
    [0.010000000707805157]
    """
    return last * (last / before.clamp(min=torch.finfo(last.dtype).tiny)).clamp(max=1)


def refined(
    layers: Sequence[str], score: Callable[[str, int], Tensor], tolerance: float
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A single prompt's scores by layer, its points and its error, out of `score(layer, level)`: nothing clever."""
    level = dict.fromkeys(layers, FIRST)
    found: dict[str, Tensor] = {}
    norms, errors = torch.zeros(1, len(layers), dtype=torch.float64), torch.zeros(1, len(layers), dtype=torch.float64)
    waiting = list(layers)
    while waiting:
        for layer in waiting:
            first, before, last = (score(layer, level[layer] - less).double() for less in (2, 1, 0))
            n, found[layer] = layers.index(layer), last
            norms[0, n], errors[0, n] = last.norm(), error_of((before - first).norm(), (last - before).norm())
        wider = open_layers(errors, norms.norm(dim=1), tolerance)[0].tolist()
        waiting = [layer for layer, is_open in zip(layers, wider, strict=True) if is_open and level[layer] < LAST]
        level |= {layer: level[layer] + 1 for layer in waiting}
    points = torch.tensor([points_of(level[layer]) for layer in layers], dtype=torch.float64).mean()
    return found, points[None], errors.norm(dim=1) / norms.norm(dim=1).clamp(min=torch.finfo(norms.dtype).tiny)


def open_layers(errors: Tensor, norms: Tensor, tolerance: float) -> Tensor:
    """(prompts, layers): those with the largest errors, so many that the others together stay within the tolerance.

    `errors` (prompts, layers) and `norms` (prompts,), of all scores of a prompt, are in the scores' own units.

    >>> open_layers(torch.tensor([[3.0, 4.0, 0.1]]), torch.tensor([10.0]), 0.35).tolist()
    [[False, True, False]]
    """
    order = errors.argsort(dim=1)  # the smallest first
    together = errors.gather(1, order).square().cumsum(1).sqrt()
    within = together <= tolerance * norms[:, None]
    return torch.zeros_like(within).scatter(1, order, ~within)
