"""The types of the compiled selection (csrc/bindings.cpp). Values travel as unsigned integers of the dtype's size."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_Found = tuple[NDArray[Any], NDArray[np.int64], NDArray[Any], NDArray[np.int64], int, int]

def extremes(
    x: NDArray[Any],
    dtype: str,
    largest: int,
    smallest: int,
    sorted: bool = True,
    threads: int = 1,
    block_bytes: int = ...,
) -> _Found:
    """(largest values, indices, smallest values, indices, n_nan, n_valid) of a one-dimensional buffer."""

def extremes_rows(
    x: NDArray[Any], dtype: str, largest: int, smallest: int, sorted: bool = True, threads: int = 1
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """The same for every row of a two-dimensional buffer, filled up with NaN and index -1; n_nan by row."""

def instruction_set() -> str:
    """What runs: NEURONLLM_SELECT_ISA, or the fastest."""

def instruction_sets() -> list[str]:
    """What was built and what this machine has, slowest first."""

class Stream:
    def __init__(self, dtype: str, largest: int, smallest: int) -> None: ...
    def push(self, x: NDArray[Any], base: int, threads: int = 1) -> None: ...
    def merge(self, other: Stream) -> None: ...
    def result(self, sorted: bool = True) -> _Found: ...
