"""Where an integral over alpha takes points: the adaptive rule of Simpson, for many layers of a prompt together.

On a trained model the slope of most layers is smooth in alpha, and that of the first ones is not: it turns where an
attention or a norm behind the layer does, at some alpha of the prompt's own. So an interval is halved where its error
may matter, again and again, and only there. Its ends and its middle are used again. alpha = t ** 2, so that points lie
denser where little of the layer is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

FINEST = 2**12  # points on [0, 1]; an interval has five of them
BOOLE = (7 / 90, 32 / 90, 12 / 90, 32 / 90, 7 / 90)  # Simpson's rule of both halves, extrapolated
# Simpson's rule of both halves less that of the whole: a bound where an interval is short, for Boole's is closer.
ERROR = (-1 / 12, 4 / 12, -6 / 12, 4 / 12, -1 / 12)


class Interval(NamedTuple):
    """A piece of [0, 1] in t, as numbers of points."""

    start: int = 0
    width: int = FINEST

    @property
    def points(self) -> tuple[int, ...]:
        return tuple(self.start + n * self.width // 4 for n in range(5))

    @property
    def halves(self) -> tuple[Interval, Interval]:
        half = self.width // 2
        return Interval(self.start, half), Interval(self.start + half, half)

    def weights(self, rule: tuple[float, ...]) -> dict[int, float]:
        """Of each point; the one at alpha = 0 has none, since d alpha / dt is 0 there.

        >>> round(sum(Interval().weights(BOOLE).values()), 12)
        1.0
        """
        share = self.width / FINEST
        return {at: share * own * 2 * at / FINEST for at, own in zip(self.points, rule, strict=True) if at}


def alphas_of(points: list[int]) -> Tensor:
    """Where in alpha the numbered points lie, in float64.

    >>> alphas_of([FINEST // 2, FINEST]).tolist()
    [0.25, 1.0]
    """
    return (torch.tensor(points, dtype=torch.float64) / FINEST) ** 2


def attainable(tolerance: float, dtype: torch.dtype) -> float:
    """Below this, rules differ by rounding."""
    return max(tolerance, 4 * torch.finfo(dtype).eps)


Looked = tuple[int, Interval]  # the number of a layer, and a piece of it


@dataclass
class Refined:
    """The intervals of a prompt, layer by layer, and what is known of them.

    Round by round a caller takes those that are new (`first`, `split`), and sets `errors` of each and `norms` of their
    layers, until none is left.
    """

    layers: int
    tolerance: float
    errors: dict[Looked, float] = field(default_factory=dict)
    norms: dict[int, float] = field(default_factory=dict)  # of the scores of a layer

    def first(self) -> list[Looked]:
        return [(layer, Interval()) for layer in range(self.layers)]

    def split(self) -> list[Looked]:
        """Halves of those with the largest errors, so many that the others together stay within the tolerance."""
        allowed, together, halves = (self.tolerance * self.norm) ** 2, 0.0, list[Looked]()
        for (layer, interval), error in sorted(self.errors.items(), key=lambda item: (item[1], item[0])):
            together += error**2
            if together > allowed and interval.width > 4:
                del self.errors[layer, interval]
                halves += [(layer, half) for half in interval.halves]
        return halves

    @property
    def norm(self) -> float:
        return sum(norm**2 for norm in self.norms.values()) ** 0.5

    @property
    def error(self) -> float:
        """The estimated one, relative."""
        found = sum(error**2 for error in self.errors.values()) ** 0.5
        return found / self.norm if self.norm else 0.0

    @property
    def points(self) -> float:
        """Of a layer, on average."""
        return sum(len(self.weights(layer)) for layer in range(self.layers)) / self.layers

    def weights(self, layer: int) -> dict[int, float]:
        """Of all points of a layer."""
        found: dict[int, float] = {}
        for own, interval in self.errors:
            if own == layer:
                for at, weight in interval.weights(BOOLE).items():
                    found[at] = found.get(at, 0.0) + weight
        return dict(sorted(found.items()))
