"""What a selection returns, and the checks of what it is asked for."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import torch

from ..common.errors import InputError

FLOATS = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # of the same size

TAKEN = (*FLOATS.values(), "int8", "int16", "int32", "int64", "uint8")
LARGEST_INDEX = 2**63 - 1


class End(NamedTuple):
    """One end of an array, best first; indices are int64. `extremes_rows`: one row a row."""

    values: Any
    indices: Any


class Extremes(NamedTuple):
    """Both ends of an array. Tensors for a tensor, NumPy arrays for anything else."""

    largest: End
    smallest: End
    n_nan: int
    n_valid: int


class RowExtremes(NamedTuple):
    """Both ends of every row: (rows, k) each. Places that a row has no elements for hold NaN and index -1."""

    largest: End
    smallest: End
    n_nan: Any  # (rows,), int64
    n_valid: Any


def printable(name: str, encoding: str = "utf-8") -> str:
    """A name out of a file so that it stays in its line, whatever it holds and whatever the terminal can show.

    >>> printable("a\\nb")
    'a\\\\nb'
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def checked_count(name: str, k: Any) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0:
        raise InputError(f"{name}={k!r}: give a whole number, 0 or more")
    return int(k)


def checked_threads(threads: Any) -> int:
    """None: as many as torch uses, so that OMP_NUM_THREADS holds here too."""
    if threads is None:
        return max(1, torch.get_num_threads())
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or threads < 1:
        raise InputError(f"threads={threads!r}: give a whole number, 1 or more")
    return min(int(threads), 4 * (os.cpu_count() or 1) + 16)
