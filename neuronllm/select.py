"""The k largest and the k smallest of an array of scores, exactly.

Order: by value, then by lowest index. NaN is counted and never selected, -0 equals +0, a k above the number of valid
elements gives a shorter result. The torch version here is the reference; the C++ extension gives the same result.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .env import extension
from .errors import InputError

BACKENDS = ("auto", "ext", "torch")


class End(NamedTuple):
    """One end of an array, best first; indices are int64."""

    values: Any
    indices: Any


class Extremes(NamedTuple):
    """Both ends of an array. Tensors for a tensor, NumPy arrays for anything else."""

    largest: End
    smallest: End
    n_nan: int
    n_valid: int


def extremes(x: Any, largest: int = 0, smallest: int = 0, *, sorted: bool = True, backend: str = "auto") -> Extremes:
    """The `largest` greatest and `smallest` least elements of a one-dimensional array.

    backend: "ext" (C++), "torch", or "auto" for the best that can take this array. sorted=False leaves the order of the
    result open; the back ends of today sort it all the same.

    >>> extremes([3.0, 1.0, 2.0], largest=2).largest.indices.tolist()
    [0, 2]
    """
    if backend not in BACKENDS:
        raise InputError(f"backend={backend!r}: known back ends are {', '.join(BACKENDS)}")
    for name, k in (("largest", largest), ("smallest", smallest)):
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0:
            raise InputError(f"{name}={k!r}: give a whole number, 0 or more")
    tensor = x.detach() if isinstance(x, Tensor) else _from_numpy(x)
    if tensor.ndim != 1:
        raise InputError(f"x: give a one-dimensional array, not one of shape {tuple(tensor.shape)}")
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(f"x: give real numbers, not {str(tensor.dtype).removeprefix('torch.')}")
    largest, smallest = min(int(largest), len(tensor)), min(int(smallest), len(tensor))
    reason = extension_refusal(tensor)
    if backend == "ext" and reason:
        raise InputError(f'backend="ext": {reason}')
    found = _torch(tensor, largest, smallest) if backend == "torch" or reason else _ext(tensor, largest, smallest)
    if isinstance(x, Tensor):
        return found
    largest_end, smallest_end = (End(end.values.numpy(), end.indices.numpy()) for end in found[:2])
    return Extremes(largest_end, smallest_end, found.n_nan, found.n_valid)


def _from_numpy(x: Any) -> Tensor:
    array = np.ascontiguousarray(x)
    if array.dtype.kind not in "fiubc":
        raise InputError(f"x: give an array of numbers, not of {array.dtype}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of read-only memory, which is only read here
        return torch.from_numpy(array)


def extension_refusal(x: Tensor | None = None) -> str | None:
    """Why the extension cannot take `x` (or, without one, any array); None if it can."""
    module, reason = extension()
    if module is None:
        return reason
    if x is not None and (x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous()):
        return "the extension takes contiguous float32 arrays in CPU memory"
    return None


def _ext(x: Tensor, largest: int, smallest: int) -> Extremes:
    module, _ = extension()
    assert module is not None  # extension_refusal has asked
    values, indices, low_values, low_indices, n_nan, n_valid = module.extremes(x.detach().numpy(), largest, smallest)
    high = End(torch.from_numpy(values), torch.from_numpy(indices))
    low = End(torch.from_numpy(low_values), torch.from_numpy(low_indices))
    return Extremes(high, low, n_nan, n_valid)


def _torch(x: Tensor, largest: int, smallest: int) -> Extremes:
    valid = ~x.isnan()
    n_valid = int(valid.sum())
    where = valid.nonzero()[:, 0]
    kept = x[where]
    (high, high_at), (low, low_at) = _end(kept, largest, descending=True), _end(kept, smallest, descending=False)
    return Extremes(End(high, where[high_at]), End(low, where[low_at]), x.numel() - n_valid, n_valid)


def _end(x: Tensor, k: int, descending: bool) -> tuple[Tensor, Tensor]:
    """The first k of x in stable order; topk finds the bound, so that only what lies beyond it is sorted."""
    k = min(int(k), x.numel())
    if k == 0:
        return x[:0], torch.zeros(0, dtype=torch.int64, device=x.device)
    key = x + 0.0 if x.is_floating_point() else x  # -0 becomes +0
    bound = key.topk(k, largest=descending).values[-1]
    beyond = (key > bound if descending else key < bound).nonzero()[:, 0]
    ties = (key == bound).nonzero()[: k - len(beyond), 0]
    chosen = torch.cat([beyond, ties]).sort().values
    chosen = chosen[key[chosen].sort(descending=descending, stable=True).indices]
    return x[chosen], chosen
