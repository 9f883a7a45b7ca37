"""Streaming statistics over questions, in float64 and O(neurons) memory; what is gathered can be saved and merged."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from ..common.errors import InputError

S = TypeVar("S", bound="Streaming")


class Streaming:
    """Gathers along a stream of questions, in tensors, so that a run can be saved, taken up again, and shared out.

    Tensors, and members that are Streaming themselves, are what was gathered; any other attribute is an option, given
    once to `__init__`. Merging adds sums and joins marks (bool); a subclass that gathers anything else says how.
    """

    def state(self) -> dict[str, Tensor]:
        """Everything gathered so far, by name: the tensors themselves, not copies.

        >>> stats = Statistics(1)
        >>> stats.add(torch.tensor([2.0]))
        >>> stats.state()["_mean"].tolist()
        [2.0]
        """
        found: dict[str, Tensor] = {}
        for name, value in vars(self).items():
            if isinstance(value, Streaming):
                found |= {f"{name}.{key}": tensor for key, tensor in value.state().items()}
            elif isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, (list, dict, set)):
                raise InputError(
                    f"{type(self).__name__}.{name} is a {type(value).__name__}: what a collector gathers must be "
                    "tensors or Statistics, so that it can be saved and merged"
                )
        return found

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` of another one was; raises KeyError or RuntimeError if it was of another kind."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def merge(self: S, other: S) -> None:
        """Take in what `other` has gathered from other questions."""
        for name, mine in vars(self).items():
            theirs = vars(other)[name]
            if isinstance(mine, Streaming):
                mine.merge(theirs)
            elif isinstance(mine, Tensor):
                mine.logical_or_(theirs) if mine.dtype == torch.bool else mine.add_(theirs)


class Statistics(Streaming):
    """Mean, standard error and sign counts of question scores, one question at a time.

    A question's score is the mean over its variants, so that ten options do not outweigh two.

    >>> stats = Statistics(1)
    >>> for score in (1.0, 3.0):
    ...     stats.add(torch.tensor([score]))
    >>> stats.mean.item(), stats.stderr.item(), stats.sign_consistency.item()
    (2.0, 1.0, 1.0)
    """

    def __init__(self, n_neurons: int) -> None:
        self._count = torch.zeros((), dtype=torch.int64)
        self._mean = torch.zeros(n_neurons, dtype=torch.float64)
        self._squares = torch.zeros(n_neurons, dtype=torch.float64)  # sum of squared distances from the mean
        self._positive = torch.zeros(n_neurons, dtype=torch.int32)
        self._negative = torch.zeros(n_neurons, dtype=torch.int32)

    @property
    def count(self) -> int:
        return int(self._count)

    def add(self, score: Tensor) -> None:
        """Take in one question's score (n_neurons,). Welford's update: no cancellation of large sums."""
        score = score.double()
        self._count += 1
        distance = score - self._mean
        self._mean += distance / self.count
        self._squares.addcmul_(distance, score - self._mean)
        self._positive += score > 0
        self._negative += score < 0

    def merge(self, other: Statistics) -> None:
        """The statistics of both streams (Chan's formula), whichever of them saw nothing."""
        if not other.count:
            return
        share = other.count / (self.count + other.count)
        distance = other._mean - self._mean
        self._squares += other._squares + distance**2 * (self.count * share)
        self._mean += distance * share
        self._count += other._count
        self._positive += other._positive
        self._negative += other._negative

    @property
    def mean(self) -> Tensor:
        return self._mean.clone()

    @property
    def stderr(self) -> Tensor:
        """Standard error of the mean over questions; NaN with a single question."""
        if self.count < 2:
            return torch.full_like(self._mean, float("nan"))
        return (self._squares / (self.count - 1) / self.count).clamp(min=0).sqrt()

    @property
    def sign_consistency(self) -> Tensor:
        """Share of the questions whose score has the sign of the mean; 0 where the mean is 0."""
        same = torch.where(self._mean > 0, self._positive, self._negative)
        return torch.where(self._mean == 0, 0.0, same.double() / max(1, self.count))
