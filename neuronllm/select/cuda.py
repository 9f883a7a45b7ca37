"""The CUDA library, loaded by ctypes: plain C on device pointers, so it is tied to no version of Python or torch.

csrc/cuda/select_cuda.h is its interface. Workspace and results are torch's; the work runs on the current stream.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.env import cuda_library
from ..common.errors import InputError
from .results import FLOATS, End, Extremes, RowExtremes

LIBRARY = Path(__file__).resolve().parents[1] / "_select_cuda.so"
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}


def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.neuronllm_select_cuda.argtypes = [
        *(pointer, ctypes.c_int, number, number, number, number, number),
        *(pointer, pointer, pointer, pointer, pointer, pointer, ctypes.POINTER(ctypes.c_size_t), pointer),
    ]
    library.neuronllm_cuda_error.restype = ctypes.c_char_p
    return library


@functools.cache
def library() -> ctypes.CDLL | None:
    """None where it was not built, or where the machine has no device."""
    if not LIBRARY.exists():
        return None
    found = load(LIBRARY)
    return found if found.neuronllm_cuda_devices() > 0 else None


def refusal(x: Any = None) -> str | None:
    """Why the library cannot take `x` (or, without one, any array); None if it can."""
    if isinstance(x, Tensor) and x.is_cuda and x.dtype not in DTYPES:
        return f"the CUDA library takes {', '.join(FLOATS.values())}, not {str(x.dtype).removeprefix('torch.')}"
    if x is not None and not (isinstance(x, Tensor) and x.is_cuda):
        return "the CUDA library takes tensors on a CUDA device"
    if not LIBRARY.exists():
        return f"neuronllm/_select_cuda.so is not there: {cuda_library()}"
    return None if library() is not None else "this machine has no CUDA device"


def extremes(x: Tensor, largest: int, smallest: int) -> Extremes:
    found = extremes_rows(x[None], largest, smallest)
    n_nan = int(found.n_nan)
    high, low = (
        End(end.values[0, : len(x) - n_nan], end.indices[0, : len(x) - n_nan])
        for end in (found.largest, found.smallest)
    )
    return Extremes(high, low, n_nan, len(x) - n_nan)


def extremes_rows(x: Tensor, largest: int, smallest: int) -> RowExtremes:
    found = library()
    assert found is not None  # refusal has asked
    return call(found, x, largest, smallest)


def call(found: ctypes.CDLL, x: Tensor, largest: int, smallest: int) -> RowExtremes:
    """Both ends of every row; the elements of a row are copied first unless they lie side by side."""
    rows, columns = x.shape
    ends = [
        End(x.new_empty((rows, k)), torch.empty((rows, k), dtype=torch.int64, device=x.device))
        for k in (largest, smallest)
    ]
    n_nan = torch.zeros(rows, dtype=torch.int64)
    if rows and columns:
        if columns > 1 and x.stride(1) != 1 or rows > 1 and x.stride(0) < 0:
            x = x.contiguous()
        size = ctypes.c_size_t()
        stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else None

        def run(workspace: int | None) -> None:
            outputs = [part.data_ptr() for end in ends for part in end]
            with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
                error = found.neuronllm_select_cuda(
                    *(x.data_ptr(), DTYPES[x.dtype], rows, columns, x.stride(0), largest, smallest),
                    *(*outputs, n_nan.data_ptr(), workspace, ctypes.byref(size), stream),
                )
            if error:
                raise InputError(f'backend="cuda": {found.neuronllm_cuda_error(error).decode()}')

        run(None)
        workspace = torch.empty(size.value, dtype=torch.uint8, device=x.device)
        run(workspace.data_ptr())
    return RowExtremes(ends[0], ends[1], n_nan, columns - n_nan)
