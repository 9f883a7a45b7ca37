"""The k largest and the k smallest of arrays of scores, exactly: in memory, row by row, or part by part.

Order: by value, then by lowest index. NaN is counted and never selected, -0 equals +0, a k above the number of valid
elements gives a shorter result. The result is the same, bit for bit, for every back end, number of threads and
instruction set.

Back ends, by name: "ext" is the C++ extension (CPU memory; float16, bfloat16, float32, float64; any strides), "cuda"
the CUDA library (the same types, side by side in memory), "torch" the reference, which takes whatever torch can sort.
"auto" takes the first of them that can take the array; `register` adds one. NEURONLLM_SELECT_ISA holds the extension
to one instruction set; `neuronllm env` lists them.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from . import compiled, cuda, reference
from .results import FLOATS, LARGEST_INDEX, TAKEN, End, Extremes, RowExtremes, checked_count, checked_threads

__all__ = [
    "Backend",
    "End",
    "Extremes",
    "RowExtremes",
    "Stream",
    "extension_refusal",
    "extremes",
    "extremes_rows",
    "register",
]

UNCONVERTIBLE = (ArithmeticError, AttributeError, BufferError, LookupError, RuntimeError, TypeError, ValueError)


class Backend(Protocol):
    """A way to select. `refusal` says why it cannot take a tensor or an array, None if it can.

    What the others are given is a tensor and how many of each end, no more than there are elements; they return both
    ends best first, in the order that this file's first lines promise.
    """

    def refusal(self, x: Any) -> str | None: ...

    def extremes(self, x: Tensor, largest: int, smallest: int) -> Extremes: ...

    def extremes_rows(self, x: Tensor, largest: int, smallest: int) -> RowExtremes: ...


# The extension stands apart: it takes arrays of NumPy as they are, and threads.
ON_TENSORS: dict[str, Backend] = {"cuda": cuda, "torch": reference}


def register(name: str, backend: Backend) -> None:
    """Make a back end known by a name; "auto" asks it after ours and before the reference."""
    if name in _backends() and ON_TENSORS.get(name) is not backend:
        raise InputError(f"{name!r} is another back end already: take a name of your own")
    last = ON_TENSORS.pop("torch")
    ON_TENSORS.update({name: backend, "torch": last})


def _backends() -> list[str]:
    return ["auto", "ext", *ON_TENSORS]


def extremes(
    x: Any,
    largest: int = 0,
    smallest: int = 0,
    *,
    sorted: bool = True,
    threads: int | None = None,
    backend: str = "auto",
) -> Extremes:
    """The `largest` greatest and `smallest` least elements of a one-dimensional array.

    x: a tensor, a NumPy array or memory map, anything with `__dlpack__`, or a list. Nothing is copied but the result.
    Masked elements of a NumPy array are refused: fill them.
    sorted=False gives each end in the order of its indices. threads: as many as torch uses, unless given.

    >>> extremes([3.0, 1.0, 2.0], largest=2).largest.indices.tolist()
    [0, 2]
    """
    x, largest, smallest = _given(x, largest, smallest, backend, ndim=1)
    threads = checked_threads(threads)
    largest, smallest = min(largest, len(x)), min(smallest, len(x))
    chosen = _choose(x, backend)
    if chosen == "ext":
        return compiled.extremes(x, largest, smallest, sorted, threads)
    found = ON_TENSORS[chosen].extremes(_tensor(x), largest, smallest)
    if not sorted:
        found = found._replace(largest=_by_index(found.largest), smallest=_by_index(found.smallest))
    return found if isinstance(x, Tensor) else _to_numpy(found)


def extremes_rows(
    x: Any,
    largest: int = 0,
    smallest: int = 0,
    *,
    sorted: bool = True,
    threads: int | None = None,
    backend: str = "auto",
) -> RowExtremes:
    """The same for every row of a two-dimensional array; a row with too few valid elements ends in NaN, index -1.

    >>> extremes_rows([[3.0, 1.0, 2.0], [0.0, 9.0, 4.0]], largest=1).largest.indices.tolist()
    [[0], [1]]
    """
    x, largest, smallest = _given(x, largest, smallest, backend, ndim=2)
    threads = checked_threads(threads)
    largest, smallest = min(largest, x.shape[1]), min(smallest, x.shape[1])
    chosen = _choose(x, backend)
    if chosen == "ext":
        return compiled.extremes_rows(x, largest, smallest, sorted, threads)
    found = ON_TENSORS[chosen].extremes_rows(_tensor(x), largest, smallest)
    if not sorted:
        found = found._replace(largest=_by_index(found.largest), smallest=_by_index(found.smallest))
    return found if isinstance(x, Tensor) else _to_numpy(found)


class Stream:
    """The extremes of an array that comes in parts, in any order: files, shards, ranks.

    k: how many of each end, or a pair (largest, smallest). dtype: a torch.dtype, then `result()` gives tensors, or a
    NumPy dtype, then it gives arrays. Memory: O(k).

    >>> stream = Stream(1, "float32")
    >>> stream.push(np.float32([1, 5]), base_index=0)
    >>> stream.push(np.float32([7, 2]), base_index=2)
    >>> stream.result().largest.indices.tolist()
    [2]
    """

    def __init__(
        self,
        k: int | tuple[int, int],
        dtype: torch.dtype | np.dtype[Any] | str,
        *,
        threads: int | None = None,
        backend: str = "auto",
    ) -> None:
        if isinstance(k, tuple) and len(k) == 2:
            largest, smallest = k
        elif isinstance(k, (int, np.integer)):
            largest = smallest = k
        else:
            raise InputError(f"k={k!r}: give a whole number, or two as a tuple (largest, smallest)")
        self.k = min(checked_count("k", largest), 2**48), min(checked_count("k", smallest), 2**48)
        self.gives_tensors = isinstance(dtype, torch.dtype)
        self.dtype = _torch_dtype(dtype)
        self.threads = checked_threads(threads)
        if backend not in ("auto", "ext", "torch"):
            raise InputError(f"backend={backend!r}: the back ends of a stream are auto, ext, torch")
        if backend == "ext":
            compiled.module()  # says why it is absent
        self.backend = "torch" if backend == "torch" or compiled.refusal() else "ext"
        self._lock = threading.Lock()  # the extension lets go of the GIL
        self._inner: Any = (compiled if self.backend == "ext" else reference).Stream(self.dtype, *self.k)

    def push(self, x: Any, base_index: int) -> None:
        """The elements of `x` get the indices base_index, base_index + 1, ...; no two parts may share an index."""
        x, _, _ = _given(x, 0, 0, "auto", ndim=1)
        tensor = x if self.backend == "ext" and isinstance(x, np.ndarray) and x.dtype.isnative else _tensor(x)
        if (FLOATS[tensor.dtype] if isinstance(tensor, Tensor) and tensor.dtype in FLOATS else str(tensor.dtype)) != (
            FLOATS[self.dtype]
        ):
            raise InputError(f"x: this is a stream of {FLOATS[self.dtype]}, not of {tensor.dtype}")
        base = checked_count("base_index", base_index)
        if base + len(tensor) > LARGEST_INDEX:
            raise InputError(f"base_index={base}: the indices of the {len(tensor)} elements must stay below 2**63 - 1")
        with self._lock:
            if self.backend == "ext":
                part = tensor.cpu() if isinstance(tensor, Tensor) else tensor
                self._inner.push(part, base, self.threads)
            else:
                self._inner.push(tensor, base)

    def merge(self, other: Stream) -> None:
        """Take over what another stream of the same kind has seen."""
        if other is self or not isinstance(other, Stream):
            raise InputError("other: give another stream")
        if (other.k, other.dtype, other.backend) != (self.k, self.dtype, self.backend):
            raise InputError("other: the two streams must have the same k, dtype and back end")
        with self._lock:
            self._inner.merge(other._inner)

    def result(self, *, sorted: bool = True) -> Extremes:
        """The extremes of all that came so far; more may come afterwards."""
        with self._lock:
            if self.backend == "ext":
                found = self._inner.result(sorted)
            else:
                found = self._inner.result()
                if not sorted:
                    found = found._replace(largest=_by_index(found.largest), smallest=_by_index(found.smallest))
        return found if self.gives_tensors else _to_numpy(found)


def extension_refusal(x: Any = None) -> str | None:
    """Why the extension cannot take `x` (or, without one, any array); None if it can."""
    return compiled.refusal(x)


def _given(x: Any, largest: Any, smallest: Any, backend: str, ndim: int) -> tuple[Any, int, int]:
    """The checked arguments; x as a tensor or an array."""
    if backend not in _backends():
        raise InputError(f"backend={backend!r}: known back ends are {', '.join(_backends())}")
    largest, smallest = checked_count("largest", largest), checked_count("smallest", smallest)
    x = (
        _strided(x)
        if isinstance(x, Tensor) or hasattr(x, "__dlpack__") and not isinstance(x, np.ndarray)
        else _array(x)
    )
    dtype = str(x.dtype).removeprefix("torch.") if isinstance(x, Tensor) else x.dtype.name
    if dtype not in TAKEN:
        raise InputError(
            f"x: give real numbers of one of the dtypes {', '.join(TAKEN)}, not of {dtype}: convert it first"
        )
    if x.ndim != ndim:
        words = {1: "one-dimensional", 2: "two-dimensional"}
        raise InputError(f"x: give a {words[ndim]} array, not one of shape {tuple(x.shape)}")
    return x, largest, smallest


def _strided(x: Any) -> Tensor:
    """A tensor of which every element stands in memory as it is."""
    if not isinstance(x, Tensor):
        with _converted():
            x = torch.from_dlpack(x)
    x = x.detach()
    if x.layout != torch.strided or x.is_nested:
        raise InputError(f"x: give a dense tensor, not one of layout {'nested' if x.is_nested else x.layout}")
    if x.is_meta:
        raise InputError("x: a meta tensor holds no numbers, give one on a device")
    return x.resolve_neg()


def _array(x: Any) -> np.ndarray[Any, Any]:
    if np.ma.is_masked(x):
        raise InputError("x: elements are masked: fill them, for instance x.filled(nan), and they are left out")
    with _converted():
        return np.asarray(x)


@contextmanager
def _converted() -> Iterator[None]:
    """What an object raises when it is asked for its numbers comes from code that is not ours."""
    try:
        yield
    except UNCONVERTIBLE as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"x: not an array of numbers ({why})") from error


def _choose(x: Any, backend: str) -> str:
    """The back end for this array; a reason where the one that was asked for cannot take it."""
    refusals = {"ext": compiled.refusal} | {name: known.refusal for name, known in ON_TENSORS.items()}
    if backend == "auto":
        return next(name for name, refusal in refusals.items() if refusal(x) is None)
    if reason := refusals[backend](x):
        raise InputError(f'backend="{backend}": {reason}')
    return backend


def _tensor(x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x
    array = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))  # torch knows no negative strides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of read-only memory, which is only read here
        return torch.from_numpy(array)


def _to_numpy(found: Any) -> Any:
    def array(x: Any) -> Any:
        return x.numpy() if isinstance(x, Tensor) else x

    ends = (End(array(end.values), array(end.indices)) for end in found[:2])
    return type(found)(*ends, array(found.n_nan), array(found.n_valid))


def _by_index(end: End) -> End:
    """In the order of the indices; places without an element stay last."""
    indices = end.indices
    order = torch.where(indices < 0, torch.iinfo(torch.int64).max, indices).sort(dim=-1, stable=True).indices
    return End(end.values.gather(-1, order), indices.gather(-1, order))


def _torch_dtype(dtype: Any) -> torch.dtype:
    names = {name: known for known, name in FLOATS.items()}
    if isinstance(dtype, torch.dtype) and dtype in FLOATS:
        return dtype
    try:
        name = "" if dtype is None or isinstance(dtype, torch.dtype) else np.dtype(dtype).name
    except (TypeError, ValueError, SyntaxError):
        name = ""
    if name not in names:
        raise InputError(f"dtype={dtype}: give float16, float32, float64 or torch.bfloat16")
    return names[name]
