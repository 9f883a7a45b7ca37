"""The types of the compiled selection (csrc/bindings.cpp)."""

import numpy as np
from numpy.typing import NDArray

def extremes(
    x: NDArray[np.float32], largest: int, smallest: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], int, int]:
    """(largest values, indices, smallest values, indices, n_nan, n_valid) of a contiguous one-dimensional buffer."""
