"""Streaming statistics over questions, in float64 and O(neurons) memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Statistics:
    """Mean, standard error and sign counts of question scores, one question at a time.

    A question's score is the mean over its variants, so that ten options do not outweigh two.

    >>> stats = Statistics(1)
    >>> for score in (1.0, 3.0):
    ...     stats.add(torch.tensor([score]))
    >>> stats.mean.item(), stats.stderr.item(), stats.sign_consistency.item()
    (2.0, 1.0, 1.0)
    """

    def __init__(self, n_neurons: int) -> None:
        self.count = 0
        self._mean = torch.zeros(n_neurons, dtype=torch.float64)
        self._squares = torch.zeros(n_neurons, dtype=torch.float64)  # sum of squared distances from the mean
        self._positive = torch.zeros(n_neurons, dtype=torch.int64)
        self._negative = torch.zeros(n_neurons, dtype=torch.int64)

    def add(self, score: Tensor) -> None:
        """Take in one question's score (n_neurons,). Welford's update: no cancellation of large sums."""
        score = score.double()
        self.count += 1
        distance = score - self._mean
        self._mean += distance / self.count
        self._squares += distance * (score - self._mean)
        self._positive += score > 0
        self._negative += score < 0

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
