"""The CUDA library, loaded by ctypes: plain C on device pointers, so it is tied to no version of Python or torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .results import Extremes, RowExtremes


def refusal(x: Any = None) -> str | None:
    """Why the library cannot take `x` (or, without one, any array); None if it can."""
    return "not there yet"


def extremes(x: Tensor, largest: int, smallest: int) -> Extremes:
    raise NotImplementedError


def extremes_rows(x: Tensor, largest: int, smallest: int) -> RowExtremes:
    raise NotImplementedError
