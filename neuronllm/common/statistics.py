"""The few statistics that reports need, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def bootstrap_interval(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling the values.

    >>> bootstrap_interval(np.ones(10))
    (1.0, 1.0)
    """
    generator = np.random.default_rng(seed)
    means = [generator.choice(values, len(values)).mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p-value of McNemar's test: of the items that changed, is losing as likely as winning?

    >>> mcnemar(0, 6)
    0.03125
    """
    changed = lost + won
    if changed == 0:
        return 1.0
    tail = sum(math.comb(changed, n) for n in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2**changed)


def holm(p_values: Sequence[float]) -> list[float]:
    """The same p-values corrected for how many stand side by side, in their order (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, n in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[n]))
        corrected[n] = least
    return corrected


def largest_share(seen: int, drawn: int, confidence: float = 0.95) -> float:
    """The share of a whole that is exceeded with no more than 1 - confidence, by a sample (Clopper and Pearson).

    >>> round(largest_share(0, 10), 4)
    0.2589
    """
    if seen >= drawn:
        return 1.0
    low, high = seen / drawn, 1.0
    for _ in range(60):  # halvings: below the rounding of a float
        share = (low + high) / 2
        if _so_few(seen, drawn, share) > 1 - confidence:
            low = share
        else:
            high = share
    return high


def _so_few(seen: int, drawn: int, share: float) -> float:
    """How likely a sample holds no more than so many of what is such a share of the whole."""
    logs = [
        math.lgamma(drawn + 1)
        - math.lgamma(n + 1)
        - math.lgamma(drawn - n + 1)
        + n * math.log(share)
        + (drawn - n) * math.log1p(-share)
        for n in range(seen + 1)
    ]
    return math.fsum(map(math.exp, logs))


def relative_change(before: float, after: float) -> float | None:
    """(after - before) / before, signed; None if there was nothing before."""
    return (after - before) / before if before else None


def percent_of(drawn: Sequence[float], value: float) -> float:
    """Percentile of a value among drawn ones, ties counting half.

    >>> percent_of([1.0, 2.0, 3.0, 4.0], 2.5)
    50.0
    """
    array = np.asarray(drawn)
    return float(100 * ((array < value).mean() + (array == value).mean() / 2))


def hypergeometric(population: int, marked: int, drawn: int) -> np.ndarray:
    """How likely 0, 1, ... of the marked ones are among those drawn without putting any back.

    >>> hypergeometric(4, 2, 1).tolist()
    [0.5, 0.5]
    """
    total = math.comb(population, drawn)
    return np.array(
        [
            math.comb(marked, k) * math.comb(population - marked, drawn - k) / total
            for k in range(min(marked, drawn) + 1)
        ]
    )


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; NaN if one side is constant."""
    rx, ry = _ranks(np.asarray(x)), _ranks(np.asarray(y))
    if rx.std() == 0 or ry.std() == 0:
        return float("nan")
    return float(np.corrcoef(rx, ry)[0, 1])


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """How likely a positive one has the larger value, ties counting half; NaN where all are of one kind.

    >>> auroc(np.array([1.0, 2.0, 3.0]), np.array([False, True, True]))
    1.0
    """
    many, few = int(positive.sum()), int((~positive).sum())
    if not many or not few:
        return float("nan")
    return float((_ranks(np.asarray(values))[positive].sum() - many * (many + 1) / 2) / (many * few))


def _ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
