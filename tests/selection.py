"""Arrays that are hard to select from, and the oracle of the selection, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]
DTYPES = ("float16", "bfloat16", "float32", "float64")
DISTRIBUTIONS = (
    "noise",
    "rising",
    "falling",
    "constant",
    "half NaN",
    "heavy-tailed",
    "mostly zeros",
    "few distinct",
    "zeros of both signs",
    "infinities",
    "denormals",
    "sawtooth",
    "outliers in one block",
    "one side of zero",
    "all NaN",
)


def draw(name: str, n: int, rng: np.random.Generator) -> Array:
    """n float64 numbers of a distribution."""
    x = rng.standard_normal(n)
    if name in ("rising", "falling"):
        x.sort()
        return x if name == "rising" else x[::-1].copy()
    if name == "constant":
        return np.full(n, -1.5)
    if name == "half NaN":
        x[rng.random(n) < 0.5] = np.nan
        return np.copysign(x, rng.standard_normal(n))  # NaNs of both signs
    if name == "heavy-tailed":
        return rng.standard_cauchy(n) * 1e-3
    if name == "mostly zeros":
        return np.where(rng.random(n) < 0.9, 0.0, x)
    if name == "few distinct":
        return rng.integers(-3, 4, n).astype(np.float64)
    if name == "zeros of both signs":
        return np.copysign(np.where(rng.random(n) < 0.01, 1.0, 0.0), x)
    if name == "infinities":
        return np.where(np.abs(x) > 1, np.copysign(np.inf, x), x)
    if name == "denormals":
        return rng.integers(-3, 4, n) * 2.0**-149
    if name == "sawtooth":
        return np.arange(n) % 97 - 48.0
    if name == "outliers in one block":
        x *= 1e-3
        x[n // 2 : n // 2 + 64] *= 1e5
        return x
    if name == "one side of zero":
        return np.abs(x) + 1
    if name == "all NaN":
        return np.full(n, np.nan)
    return x


def tensor_of(x: Array, dtype: str) -> torch.Tensor:
    """In another dtype; what is subnormal in float32 is so there, too."""
    if len(x) and np.abs(x[~np.isnan(x)]).max(initial=0) < 1e-40:
        x = x * 2.0 ** {"float16": 125, "bfloat16": 16, "float32": 0, "float64": -925}[dtype]
    return torch.from_numpy(x).to(getattr(torch, dtype))


class Oracle:
    """The order of an array's elements: by value, then by lowest index, NaN left out."""

    def __init__(self, x: torch.Tensor) -> None:
        values = x.to(torch.float64).numpy()  # exact
        self.n_nan = int(np.isnan(values).sum())
        self.n_valid = len(values) - self.n_nan
        where = np.flatnonzero(~np.isnan(values))
        kept = values[where]
        self.falling = where[np.argsort(-kept, kind="stable")]
        self.rising = where[np.argsort(kept, kind="stable")]

    def check(self, found: Any, x: torch.Tensor, largest: int, smallest: int, sorted: bool = True) -> None:
        assert (found.n_nan, found.n_valid) == (self.n_nan, self.n_valid)
        for end, order, k in ((found.largest, self.falling, largest), (found.smallest, self.rising, smallest)):
            expected = order[:k] if sorted else np.sort(order[:k])
            assert np.array_equal(np.asarray(end.indices), expected)
            assert bits(end.values) == bits(x[torch.from_numpy(expected)])  # -0 and NaN payloads too


def bits(x: Any) -> bytes:
    x = torch.as_tensor(x)
    return x.contiguous().view(torch.uint8).numpy().tobytes() if x.numel() else b""
