"""The C++ extension as seen from torch and NumPy: arrays go in as they lie in memory, without a copy.

The extension reads bits. NumPy has no bfloat16, so every array is handed over as integers of the same size, with the
name of its dtype beside it, and values come back the same way.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.env import extension
from ..common.errors import InputError
from .results import FLOATS, INTEGERS, End, Extremes, RowExtremes


def module() -> ModuleType:
    found, reason = extension()
    if found is None:
        raise InputError(f'backend="ext": {reason}')
    return found


def refusal(x: Any = None) -> str | None:
    """Why the extension cannot take `x` (or, without one, any array); None if it can."""
    found, reason = extension()
    if found is None:
        return reason
    if isinstance(x, Tensor):
        if x.device.type != "cpu":
            return f"the extension takes arrays in CPU memory, not on {x.device}"
        if x.dtype not in FLOATS:
            return f"the extension takes {', '.join(FLOATS.values())}, not {str(x.dtype).removeprefix('torch.')}"
    elif isinstance(x, np.ndarray) and (x.dtype.name not in FLOATS.values() or not x.dtype.isnative):
        return f"the extension takes {', '.join(FLOATS.values())} in the machine's byte order, not {x.dtype}"
    return None


def _bits(x: Tensor | np.ndarray[Any, Any]) -> tuple[Any, str]:
    """The same memory as integers, and the name of the dtype."""
    if isinstance(x, Tensor):
        return x.detach().view(INTEGERS[x.element_size()]).numpy(), FLOATS[x.dtype]
    return x.view(f"i{x.itemsize}"), x.dtype.name


def _values(bits: np.ndarray[Any, Any], like: Tensor | np.ndarray[Any, Any] | torch.dtype | np.dtype[Any]) -> Any:
    dtype = like if isinstance(like, (torch.dtype, np.dtype)) else like.dtype
    if isinstance(dtype, torch.dtype):
        return torch.from_numpy(bits.view(f"i{bits.itemsize}")).view(dtype)
    return bits.view(dtype)


def _end(values: Any, indices: Any, like: Any) -> End:
    given = _values(values, like)
    return End(given, torch.from_numpy(indices) if isinstance(given, Tensor) else indices)


def _called(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except ValueError as error:  # NEURONLLM_SELECT_ISA names what is not there
        raise InputError(str(error)) from error


def extremes(x: Tensor | np.ndarray[Any, Any], largest: int, smallest: int, sorted: bool, threads: int) -> Extremes:
    bits, dtype = _bits(x)
    high, high_at, low, low_at, n_nan, n_valid = _called(
        module().extremes, bits, dtype, largest, smallest, sorted, threads
    )
    return Extremes(_end(high, high_at, x), _end(low, low_at, x), n_nan, n_valid)


def extremes_rows(
    x: Tensor | np.ndarray[Any, Any], largest: int, smallest: int, sorted: bool, threads: int
) -> RowExtremes:
    bits, dtype = _bits(x)
    high, high_at, low, low_at, n_nan = _called(module().extremes_rows, bits, dtype, largest, smallest, sorted, threads)
    if isinstance(x, Tensor):
        n_nan = torch.from_numpy(n_nan)
    return RowExtremes(_end(high, high_at, x), _end(low, low_at, x), n_nan, x.shape[1] - n_nan)


class Stream:
    """The stream of the extension, in torch's and NumPy's terms."""

    def __init__(self, dtype: torch.dtype, largest: int, smallest: int) -> None:
        self.dtype = dtype
        self.inner = module().Stream(FLOATS[dtype], largest, smallest)

    def push(self, x: Tensor, base: int, threads: int) -> None:
        _called(self.inner.push, _bits(x)[0], base, threads)

    def merge(self, other: Stream) -> None:
        self.inner.merge(other.inner)

    def result(self, sorted: bool) -> Extremes:
        high, high_at, low, low_at, n_nan, n_valid = self.inner.result(sorted)
        return Extremes(_end(high, high_at, self.dtype), _end(low, low_at, self.dtype), n_nan, n_valid)
