"""Which neurons to run so that the strongest are among them, and how many of them may have been missed.

A gradient score is a good guess of an effect, and now and then a bad one. So

1. the neurons with the best and the worst guesses are run, and the most active ones;
2. the others are ordered by the better of two ranks, of the size of the guess and of activity, and cut into strata,
   each twice as large as the one before; of each a random sample is run;
3. the errors of the guess in a stratum's sample say how likely each neuron of it is among the k best or worst: as often
   as such an error was seen, or by a Pareto tail through the largest fifth of them (Hill's estimate) if that is more;
4. a sampled neuron that is among them, though its guess is less than half of what that takes, was overlooked. Once one
   was, every stratum is taken to hide more: (x + 1/2) / (m + 1) of it, where x of a sample of m were overlooked;
5. the likeliest are run, and the samples of strata that may hide more than their share are doubled, until no more than
   `miss` k are expected among the neurons that were not run.

The bound on how many were missed rests on the sample alone (Clopper and Pearson, 95 %).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..common.statistics import largest_share

FIRST = 1.1  # times k: the best and the worst guesses that are run at once
SAMPLED, BOUNDED = 0.1, 50  # of a stratum are sampled at least so large a share, or BOUNDED / k where that is less
FEWEST = 32  # neurons of a stratum's sample
TAIL = 5  # the largest fifth of the errors is the tail
STEEPEST = 3.0  # index of a Pareto tail, at most: small samples make it look steeper


class Search:
    """The search for the k best and the k worst of all neurons; `ran` are those that were run, with `values`.

    >>> search = Search(torch.tensor([3.0, -2.0, 0.1, 0.0]), torch.ones(4), k=1, miss=0.01)
    >>> ids = search.first()
    >>> search.add(ids, torch.tensor([3.0, -2.0, 0.1, 0.0])[ids])
    >>> search.next().tolist(), search.found()["stopped by"]
    ([], 'all were run')
    """

    def __init__(
        self, guess: Tensor, activity: Tensor, k: int, miss: float, budget: int | None = None, seed: int = 0
    ) -> None:
        self.k, self.miss, self.seed = k, miss, seed
        self.budget = len(guess) if budget is None else min(budget, len(guess))
        self.guess = guess.double().nan_to_num()
        self.values = torch.zeros_like(self.guess)
        self.ran = torch.zeros(len(guess), dtype=torch.bool)
        self.rounds = 0
        self.strata = self._strata(activity.double().nan_to_num())
        share = min(SAMPLED, BOUNDED / k)
        self.sampled = [min(len(ids), max(FEWEST, math.ceil(share * len(ids)))) for ids in self.strata]

    def _strata(self, activity: Tensor) -> list[Tensor]:
        """The neurons that are not run at once, the likeliest stratum first, each in a random order."""
        many = math.ceil(FIRST * self.k)
        down, loud = self.guess.argsort(descending=True, stable=True), activity.argsort(descending=True, stable=True)
        # With a small budget the k of each end come before what is run besides.
        ends = [down[: self.k], down.flip(0)[: self.k], down[self.k : many], down.flip(0)[self.k : many]]
        self._at_once = _distinct(torch.cat([*ends, loud[: self.k // 2]]))
        waiting = torch.ones(len(activity), dtype=torch.bool)
        waiting[self._at_once] = False
        ids = waiting.nonzero()[:, 0]
        better = torch.minimum(_ranks(self.guess[ids].abs()), _ranks(activity[ids]))
        ids, strata = ids[better.argsort(stable=True)], []
        while len(ids) > 4 * FEWEST:
            half = len(ids) // 2
            strata.append(ids[half:])
            ids = ids[:half]
        generator = torch.Generator().manual_seed(self.seed)
        return [some[torch.randperm(len(some), generator=generator)] for some in reversed([*strata, ids]) if len(some)]

    # ---- rounds ----

    def first(self) -> Tensor:
        """The neurons of the first round."""
        return self._in_budget(torch.cat([self._at_once, *self._samples()]))

    def add(self, ids: Tensor, values: Tensor) -> None:
        """Take in what a round measured."""
        self.values[ids] = values.double().nan_to_num()
        self.ran[ids] = True
        self.rounds += 1

    def next(self) -> Tensor:
        """The neurons of the next round, empty where the search is over."""
        while self._stopped() is None:
            chosen = [self._likeliest(), *self._grown()]
            if len(ids := self._in_budget(torch.cat(chosen))):
                return ids
        return torch.tensor([], dtype=torch.int64)

    def _likeliest(self) -> Tensor:
        """Those that are run so that the errors of the guess leave half of what is put up with."""
        order = (chances := self._chances()).argsort(descending=True, stable=True)
        left = chances[order].flip(0).cumsum(0).flip(0)  # expected from here on
        return order[: int((left > self.miss * self.k / 2).sum())]

    def _grown(self) -> list[Tensor]:
        """The samples, doubled where too many may have been overlooked."""
        for n, expected in enumerate(self._overlooked()):
            if expected > self.miss * self.k / 2 / len(self.strata):
                self.sampled[n] = min(len(self.strata[n]), 2 * self.sampled[n])
        return self._samples()

    def _samples(self) -> list[Tensor]:
        return [ids[:many] for ids, many in zip(self.strata, self.sampled, strict=True)]

    def _in_budget(self, ids: Tensor) -> Tensor:
        ids = _distinct(ids)
        ids = ids[~self.ran[ids]]
        return ids[: self.budget - int(self.ran.sum())]

    def _stopped(self) -> str | None:
        ran = int(self.ran.sum())
        if ran == len(self.values):
            return "all were run"
        if self.expected() <= self.miss * self.k:
            return "miss"
        return "budget" if ran >= self.budget else None

    # ---- what may have been missed ----

    def _ends(self) -> tuple[float, float]:
        """What a neuron must exceed to be among the best, and fall below to be among the worst; one sign each."""
        known = self.values[self.ran]
        k = min(self.k, len(known))
        return max(0.0, float(known.topk(k).values[-1])), min(0.0, float(known.topk(k, largest=False).values[-1]))

    def expected(self) -> float:
        """How many of the best and the worst are expected among the neurons that were not run."""
        return float(self._chances().sum()) + sum(self._overlooked())

    def _chances(self) -> Tensor:
        """How likely each neuron that was not run is among the best or the worst, by the errors of the guess."""
        high, low = self._ends()
        chances, ran = torch.zeros_like(self.values), self.ran
        for ids, sample in zip(self.strata, self._samples(), strict=True):
            sample = sample[ran[sample]]  # a budget may have cut it
            sample, left = sample[~self._surprising(sample)], ids[~ran[ids]]
            errors = (self.values[sample] - self.guess[sample]).abs()
            needed = torch.minimum(high - self.guess[left], self.guess[left] - low)
            chances[left] = _exceeding(errors, needed)
        return chances

    def _overlooked(self) -> list[float]:
        """How many of each stratum are expected to be strong though their guess is not."""
        ran = self.ran
        samples = [sample[ran[sample]] for sample in self._samples()]
        seen = [int(self._surprising(sample).sum()) for sample in samples]
        if not sum(seen):
            return [0.0] * len(seen)
        left = [int((~ran[ids]).sum()) for ids in self.strata]
        return [many * (x + 0.5) / (len(some) + 1) for many, x, some in zip(left, seen, samples, strict=True)]

    def _surprising(self, ids: Tensor) -> Tensor:
        """Where these are among the best or the worst though their guess is less than half of what that takes."""
        (high, low), values, guess = self._ends(), self.values[ids], self.guess[ids]
        return ((values > high) & (guess < high / 2)) | ((values < low) & (guess > low / 2))

    def bound(self) -> int:
        """How many were missed at most, at a confidence of 95 %, whatever the guess is worth.

        Every stratum counts as if it were sampled as thinly as the thinnest of those that were not run whole.
        """
        ran, (high, low) = self.ran, self._ends()
        samples = [sample[ran[sample]] for sample in self._samples()]
        shares = [
            len(sample) / len(ids) for ids, sample in zip(self.strata, samples, strict=True) if not ran[ids].all()
        ]
        if not shares:
            return 0
        among, others = (self.values > high) | (self.values < low), torch.cat(self.strata)
        seen, known = int(among[torch.cat(samples)].sum()), int(among[others].sum())
        most = largest_share(seen, int(min(shares) * len(others))) * len(others)
        return min(int((~ran).sum()), max(0, math.floor(most) - known))

    def found(self) -> dict[str, Any]:
        """What was run, and how many may have been missed, for the provenance."""
        ran = self.ran
        return {
            "k": self.k,
            "miss": self.miss,
            "budget": self.budget if self.budget < len(ran) else None,
            "seed": self.seed,
            "ran": int(ran.sum()),
            "share": float(ran.double().mean()),
            "sample": sum(int(ran[sample].sum()) for sample in self._samples()),
            "estimated_missed": self.expected(),
            "bound": self.bound(),
            "rounds": self.rounds,
            "stopped by": self._stopped(),
        }


def _exceeding(errors: Tensor, needed: Tensor) -> Tensor:
    """How likely an error is larger than each of these numbers, after what was seen of them; 1 where none was seen."""
    if len(errors) < 2:
        return torch.ones_like(needed)
    down = errors.sort(descending=True).values
    smaller = torch.searchsorted(down.flip(0), needed.clamp(min=0), right=True)
    seen = (len(down) - smaller).double() / len(down)
    begin = down[max(2, len(down) // TAIL) - 1]  # where the tail begins
    if not begin:
        return seen
    tail = down[down >= begin]
    index = min(STEEPEST, 1 / max(1e-9, float((tail / begin).log().mean())))
    beyond = len(tail) / len(down) * (begin / needed.clamp(min=float(begin))) ** index
    return torch.maximum(seen, beyond)


def _ranks(x: Tensor) -> Tensor:
    """The place of each number from the largest to the smallest."""
    return x.argsort(descending=True, stable=True).argsort()


def _distinct(ids: Tensor) -> Tensor:
    """The ids in their order, each where it comes first."""
    return torch.tensor(list(dict.fromkeys(ids.tolist())), dtype=torch.int64)
