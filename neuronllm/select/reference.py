"""The selection in plain torch: the reference of the fast back ends, and what runs where there is none.

It copies what is not NaN and asks topk for the bound, so it needs some 36 bytes of memory an element
of float32. It compares integers, so that a floating-point mode that flushes denormals changes nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .results import INTEGERS, End, Extremes, RowExtremes


def refusal(x: Any) -> str | None:
    """The reference takes every array that torch can make a tensor of."""
    return None


def extremes(x: Tensor, largest: int, smallest: int) -> Extremes:
    """Both ends of a one-dimensional tensor on any device."""
    valid = ~x.isnan()
    n_valid = int(valid.sum())
    where = valid.nonzero()[:, 0]
    kept = x[where]
    (high, high_at), (low, low_at) = _end(kept, largest, descending=True), _end(kept, smallest, descending=False)
    return Extremes(End(high, where[high_at]), End(low, where[low_at]), x.numel() - n_valid, n_valid)


def _end(x: Tensor, k: int, descending: bool) -> tuple[Tensor, Tensor]:
    """The first k of x in stable order; topk finds the bound, so that only what lies beyond it is sorted."""
    k = min(k, x.numel())
    if k == 0:
        return x[:0], torch.zeros(0, dtype=torch.int64, device=x.device)
    key = _key(x)
    bound = key.topk(k, largest=descending).values[-1]
    beyond = (key > bound if descending else key < bound).nonzero()[:, 0]
    ties = (key == bound).nonzero()[: k - len(beyond), 0]
    chosen = torch.cat([beyond, ties]).sort().values
    chosen = chosen[key[chosen].sort(descending=descending, stable=True).indices]
    return x[chosen], chosen


def _key(x: Tensor) -> Tensor:
    """Integers in the order of x without NaN, so that no floating-point mode flushes denormals; -0 equals +0."""
    if not x.is_floating_point():
        return x
    dtype = INTEGERS[x.element_size()]
    bits = x.view(dtype)
    return torch.where(bits < 0, -(bits & torch.iinfo(dtype).max), bits)


def extremes_rows(x: Tensor, largest: int, smallest: int) -> RowExtremes:
    """Both ends of every row of a two-dimensional tensor."""
    rows, columns = x.shape
    ends = []
    found = [extremes(row, largest, smallest) for row in x]
    for number, k in enumerate((min(largest, columns), min(smallest, columns))):
        values = x.new_full((rows, k), math.nan if x.is_floating_point() else 0)
        indices = torch.full((rows, k), -1, dtype=torch.int64, device=x.device)
        for row, one in enumerate(found):
            end = (one.largest, one.smallest)[number]
            values[row, : len(end.values)] = end.values
            indices[row, : len(end.indices)] = end.indices
        ends.append(End(values, indices))
    n_nan = torch.tensor([one.n_nan for one in found], dtype=torch.int64)
    return RowExtremes(ends[0], ends[1], n_nan, columns - n_nan)


class Stream:
    """The extremes of parts: those of every part join those of the earlier ones."""

    def __init__(self, dtype: torch.dtype, largest: int, smallest: int) -> None:
        self.largest, self.smallest = largest, smallest
        nothing = End(torch.zeros(0, dtype=dtype), torch.zeros(0, dtype=torch.int64))
        self.found = Extremes(nothing, nothing, 0, 0)

    def push(self, x: Tensor, base: int) -> None:
        found = extremes(x, self.largest, self.smallest)
        high, low = (End(end.values.cpu(), end.indices.cpu() + base) for end in (found.largest, found.smallest))
        self._add(Extremes(high, low, found.n_nan, found.n_valid))

    def merge(self, other: Stream) -> None:
        self._add(other.found)

    def result(self) -> Extremes:
        """A copy: the caller may write to it."""
        high, low = (End(end.values.clone(), end.indices.clone()) for end in self.found[:2])
        return self.found._replace(largest=high, smallest=low)

    def _add(self, more: Extremes) -> None:
        ends = []
        asked = ((self.largest, self.found.largest, more.largest), (self.smallest, self.found.smallest, more.smallest))
        for number, (k, one, two) in enumerate(asked):
            indices, order = torch.cat([one.indices, two.indices]).sort()
            values, at = _end(torch.cat([one.values, two.values])[order], k, descending=number == 0)
            ends.append(End(values, indices[at]))
        n_nan, n_valid = self.found.n_nan + more.n_nan, self.found.n_valid + more.n_valid
        self.found = Extremes(ends[0], ends[1], n_nan, n_valid)
