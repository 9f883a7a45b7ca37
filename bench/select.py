"""Selection: both ends of large arrays, beside what it costs to read them and beside what others take.

The floor is a plain vectorised maximum over the same array (`read_floor.cpp`, compiled here for this machine), with
as many threads. All sides of a case run in turn in one process. Baselines: torch.topk called once for each end;
np.argpartition at both ends at once; faiss's heaps over pieces of the array, where it is installed.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from neuronllm.select import extremes, extremes_rows

from .harness import Bar, Benchmark, Case, Check, Comparison, Setup, Side
from .record import ROOT


@dataclass(frozen=True)
class Array:
    """An array and how many of each end are selected; with rows, of each row."""

    n: int
    k: int
    dtype: str = "float32"
    kind: str = "normal"
    rows: int = 1
    floor: float | None = None  # bars: at most so many times the floor,
    topk: float | None = None  # at least so many times faster than torch.topk,
    faiss: float | None = None  # than faiss
    device_topk: float | None = None  # and than torch.topk on a GPU

    def __str__(self) -> str:
        shape = f"{self.rows} rows of {self.n:,}" if self.rows > 1 else f"{self.n:,}"
        return f"{shape} {self.kind} numbers, {self.dtype}, k = {self.k:,}"


KINDS = (
    *("rising", "falling", "constant", "half NaN", "heavy-tailed", "mostly zeros", "few distinct"),
    *("zeros of both signs", "infinities", "denormals", "sawtooth", "outliers in one block", "one side of zero"),
)
_MILLION = {"1e6": Array(10**6, 100)}
_ONE = {
    "1e8-k100": Array(10**8, 100, topk=100, faiss=2.5),
    "1e8-k1e4": Array(10**8, 10**4, floor=2, topk=100, faiss=2.5),
    "1e8-k1e6": Array(10**8, 10**6, topk=60),
    "1e8-bf16-k1e4": Array(10**8, 10**4, "bfloat16", topk=120),
    "5e8-k1e4": Array(5 * 10**8, 10**4, floor=1.25, faiss=2.5),
    "5e8-bf16-k1e4": Array(5 * 10**8, 10**4, "bfloat16", floor=1.5),
}
_ROWS = {
    "rows-k10": Array(352_256, 10, rows=500, topk=6.5),
    "rows-k100": Array(352_256, 100, rows=500, topk=6.5),
    "rows-bf16-k10": Array(352_256, 10, "bfloat16", rows=500, topk=12),
    "rows-bf16-k100": Array(352_256, 100, "bfloat16", rows=500, topk=12),
}
_KINDS = {f"1e8-{kind.replace(' ', '-')}": Array(10**8, 10**4, kind=kind, floor=1.5) for kind in KINDS}
_HALF = {"half": Array(10**8, 5 * 10**7)}
_GPU = {"1e9": Array(10**9, 10**4, floor=1.3, device_topk=5), "1e9-bf16": Array(10**9, 10**4, "bfloat16", floor=1.3)}
_SMALL = {"tiny": Array(10**5, 50), "tiny-rows": Array(9000, 20, rows=4)}
ARRAYS = _MILLION | _ONE | _ROWS | _KINDS | _HALF | _GPU | _SMALL


def made(array: Array, seed: int, device: str = "cpu") -> Tensor:
    """The numbers of a kind, made a piece at a time where they are to be."""
    generator = torch.Generator(device).manual_seed(seed)
    total = array.n * array.rows
    x = torch.empty(total, dtype=getattr(torch, array.dtype), device=device)
    for first in range(0, total, 1 << 24):
        size = min(1 << 24, total - first)
        x[first : first + size] = torch.randn(size, generator=generator, device=device)
    kind = array.kind
    if kind in ("rising", "falling"):
        x = x.sort(descending=kind == "falling").values
    elif kind == "constant":
        x.fill_(1.5)
    elif kind == "half NaN":
        x[x > 0] = math.nan
    elif kind == "heavy-tailed":
        x.cauchy_(generator=generator)
    elif kind == "mostly zeros":
        x[x.abs() < 1.64] = 0
    elif kind == "few distinct":
        x.round_()
    elif kind == "zeros of both signs":
        x.mul_(0)
    elif kind == "infinities":
        x.masked_fill_(x > 1, math.inf).masked_fill_(x < -1, -math.inf)
    elif kind == "denormals":
        x.mul_(3).round_().mul_(1e-45)
    elif kind == "sawtooth":
        x = (torch.arange(total, device=device) % 97 - 48).to(x.dtype)
    elif kind == "outliers in one block":
        x.mul_(1e-3)[total // 2 : total // 2 + (1 << 18)].mul_(1e5)
    elif kind == "one side of zero":
        x.abs_().add_(1)
    return x.view(array.rows, array.n) if array.rows > 1 else x


@functools.cache
def floor_library() -> ctypes.CDLL:
    source = Path(__file__).with_name("read_floor.cpp")
    flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
    with tempfile.TemporaryDirectory() as folder:  # what is loaded needs its file no more
        target = Path(folder) / "read_floor.so"
        subprocess.run([os.environ.get("CXX", "c++"), *flags, str(source), "-o", str(target)], check=True)
        library = ctypes.CDLL(str(target))
    library.read_floor.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.read_floor.restype = ctypes.c_int
    return library


def floor(x: Tensor, threads: int) -> None:
    if x.is_cuda:
        x.view(torch.int16 if x.element_size() == 2 else torch.int32).max()
    else:
        floor_library().read_floor(x.data_ptr(), x.numel() * x.element_size(), threads)


def topk_twice(x: Tensor, k: int) -> Any:
    return x.topk(k, dim=-1), x.topk(k, dim=-1, largest=False)


def partition_ends(x: np.ndarray[Any, Any], k: int) -> tuple[Any, Any]:
    """Places of both ends with one partition, in no order."""
    order = np.argpartition(x, (k - 1, len(x) - k))
    return order[len(x) - k :], order[:k]


def faiss_heaps(x: np.ndarray[Any, Any], k: int, threads: int) -> tuple[Any, Any]:
    """faiss's heaps for every piece, then the best of the pieces' best."""
    import faiss

    faiss.omp_set_num_threads(threads)
    pieces = 4 * threads
    rows = x[: len(x) // pieces * pieces].reshape(pieces, -1)
    found = []
    for heap, sign in ((faiss.float_minheap_array_t(), -1), (faiss.float_maxheap_array_t(), 1)):
        values, ids = np.empty((pieces, k), dtype=np.float32), np.empty((pieces, k), dtype=np.int64)
        heap.k, heap.nh, heap.val, heap.ids = k, pieces, faiss.swig_ptr(values), faiss.swig_ptr(ids)
        heap.heapify()
        heap.addn(rows.shape[1], faiss.swig_ptr(rows))
        heap.reorder()
        ids += np.arange(pieces)[:, None] * rows.shape[1]
        best = np.argsort(sign * values.ravel(), kind="stable")[:k]
        found.append((values.ravel()[best], ids.ravel()[best]))
    return found[0], found[1]


def has_faiss() -> bool:
    import importlib.util

    return importlib.util.find_spec("faiss") is not None


# How the values of each other way are read from what it returns: the largest falling, the smallest rising.
TOPK, PARTITION, PORTABLE, FAISS = "torch.topk", "np.argpartition", "portable", "faiss"
VALUES: dict[str, Callable[[Any, Any], Sequence[Any]]] = {
    TOPK: lambda x, found: [end.values for end in found],
    PARTITION: lambda x, found: [np.sort(x.numpy()[found[0]])[::-1].copy(), np.sort(x.numpy()[found[1]])],
    PORTABLE: lambda x, found: [found.largest.values, found.smallest.values],
    FAISS: lambda x, found: [values for values, _ in found],
}


def with_instructions(name: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with NEURONLLM_SELECT_ISA set."""

    def run() -> Any:
        with mock.patch.dict(os.environ, NEURONLLM_SELECT_ISA=name):
            return call()

    return run


def wrong(x: Tensor, found: Any, end: str) -> float:
    """How much speaks against the k elements found at an end of an array, or of every row of a matrix.

    They are right if each stands where it is said to stand, in order of value and then of place, if as many elements
    lie beyond the last one's value as were found there, and if those of this very value are the first of their kind.
    There have to be k elements that are no NaN.
    """
    rows = zip(*(t.reshape(-1, t.shape[-1]) for t in (x, found.values, found.indices)), strict=True)
    return sum(_wrong_row(*row, torch.gt if end == "largest" else torch.lt) for row in rows)


def _wrong_row(x: Tensor, values: Tensor, places: Tensor, beyond: Callable[[Any, Any], Tensor]) -> float:
    last = values[-1]
    ties = places[values == last]
    before, after, same = values[:-1], values[1:], values[:-1] == values[1:]
    return float(
        int((x[places] != values).sum())
        + int((beyond(after, before) | (same & (places[1:] <= places[:-1]))).sum())
        + abs(int(beyond(x, last).sum()) - int(beyond(values, last).sum()))
        + int(not torch.equal((x == last).nonzero()[: len(ties), 0], ties))
    )


def _side(name: str, run: Callable[[], Any], **more: Any) -> Side:
    return Side(name, lambda turn: (), run, **more)


def ends(setup: Setup) -> Case:
    """Both ends of one array, or of rows."""
    array = ARRAYS[setup.shape]
    x = made(array, setup.seed, setup.device)
    select = extremes_rows if array.rows > 1 else extremes
    backend = "cuda" if x.is_cuda else "ext"

    def ours() -> Any:
        return select(x, array.k, array.k, threads=setup.threads, backend=backend)

    # torch's reference of the largest arrays would take longer than everything else, and more memory than there is.
    compare = array.kind == "normal" and (x.is_cuda or x.numel() < 2 * 10**8)
    size = x.numel() * x.element_size()
    read = _side("floor", lambda: floor(x, setup.threads), times=3, reads=size)
    sides = [read, _side("ours", ours, times=3, reads=size)]
    views: list[Any] = [_cost("both ends", "one read", "floor", "ours", array.floor)]
    others: dict[str, Callable[[], Any]] = {}
    if compare:
        others[TOPK] = lambda: topk_twice(x, array.k)
        bar = array.device_topk if x.is_cuda else array.topk
        views.append(Comparison("both ends", "torch.topk, twice", TOPK, "ours", bar=bar and Bar(">=", bar)))
    if compare and not x.is_cuda and array.rows == 1 and array.dtype == "float32":
        others[PARTITION] = functools.partial(partition_ends, x.numpy(), array.k)
        views.append(Comparison("both ends", "np.argpartition, unsorted", PARTITION, "ours"))
    if backend == "ext" and array.kind == "normal" and array.rows == 1:
        others[PORTABLE] = with_instructions("portable", ours)
        views.append(_cost("portable build", "all instructions", "ours", PORTABLE, 1.7))
    if array.faiss and backend == "ext" and has_faiss():
        others[FAISS] = functools.partial(faiss_heaps, x.numpy(), array.k, setup.threads)
        views.append(Comparison("both ends", "faiss", FAISS, "ours", bar=Bar(">=", array.faiss)))
    sides += [_side(name, call, times=3 if name == PORTABLE else 1) for name, call in others.items()]

    def check() -> list[Check]:
        found = ours()
        ends = {end: getattr(found, end) for end in ("largest", "smallest")}
        checks = [Check(f"{end}: elements out of place", wrong(x, some, end), 0) for end, some in ends.items()]
        for name, call in others.items():
            pairs = zip(ends.values(), VALUES[name](x, call()), strict=True)
            other = sum(int((mine.values != torch.as_tensor(theirs)).sum()) for mine, theirs in pairs)
            checks.append(Check(f"values that {name} has otherwise", float(other), 0))
        return checks

    settings = {"model": str(array), "bytes": size}
    notes = [f"{name} runs on one thread" for name in (TOPK, PARTITION) if name in others and array.rows == 1]
    if size < 10**8:
        notes.append("So small an array is read in less time than it takes to wake threads, the floor's too")
    return Case(sides, check, views, unit="call", rounds=5, settings=settings, notes=[] if x.is_cuda else notes)


def _cost(what: str, against: str, baseline: str, ours: str, bar: float | None) -> Comparison:
    return Comparison(what, against, baseline, ours, "cost", bar=None if bar is None else Bar("<=", bar))


def unlike(x: np.ndarray[Any, Any], found: Any, right: np.ndarray[Any, Any]) -> float:
    """How much speaks against elements found in no order; `right` are their values in order.

    They are right if no place comes twice, each stands where it is said to stand, and their values are these.
    """
    values, places = np.asarray(found.values), np.asarray(found.indices)
    if values.shape != right.shape:
        return math.inf
    twice = len(places) - len(np.unique(places))
    return float(twice + (x[places] != values).sum() + (np.sort(values) != right).sum())


def half(setup: Setup) -> Case:
    """Half of an array, unsorted, beside np.argpartition, which gives one end."""
    array = ARRAYS[setup.shape]
    x = made(array, setup.seed).numpy()

    def ours(smallest: int = 0) -> Any:
        return extremes(x, array.k, smallest, sorted=False, threads=setup.threads, backend="ext")

    def check() -> list[Check]:
        found, ordered = ours(array.k), np.sort(x)
        ends = {"largest": (found.largest, ordered[-array.k :]), "smallest": (found.smallest, ordered[: array.k])}
        return [Check(f"{end}: elements out of place", unlike(x, *pair), 0) for end, pair in ends.items()]

    sides = [
        _side("argpartition", lambda: np.argpartition(x, len(x) - array.k)[len(x) - array.k :]),
        _side("ours", ours),
        _side("both ends", lambda: ours(array.k)),
    ]
    views = [
        Comparison("half of an array", "np.argpartition", "argpartition", "ours", bar=Bar(">=", 3)),
        Comparison("both halves", "np.argpartition of one", "argpartition", "both ends"),
    ]
    notes = ["np.argpartition runs on one thread"]
    return Case(sides, check, list(views), unit="call", rounds=3, settings={"model": str(array)}, notes=notes)


PEAK = """
import sys, numpy as np, neuronllm.select as select
from neuronllm.select.files import extremes_of_files, parts_of
def resident(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what)) * 1024
kind, size, k, threads = sys.argv[1], int(float(sys.argv[2])), int(float(sys.argv[3])), int(sys.argv[4])
if kind == "file":
    parts = parts_of(sys.argv[5])
    call = lambda: extremes_of_files(parts, k, k, threads=threads)
else:
    x = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    call = lambda: select.extremes(x, k, k, threads=threads, backend="ext")
    select.extremes(x[:100], 1, 1)
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
call()
print(resident("VmHWM") - before, resident("VmHWM"))
"""


def memory(setup: Setup) -> Case:
    """What a selection adds to the resident memory of a process of its own, and that of one over a 6 GB file."""
    k = 10**4

    def measured(kind: str, size: float, path: str = "") -> tuple[int, int]:
        command = [sys.executable, "-c", PEAK, kind, str(size), str(k), str(setup.threads), path]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        added, total = map(int, done.stdout.split())
        return added, total

    def facts(peaks: dict[str, int]) -> dict[str, Any]:
        rows = [[f"{n:,.0f} numbers, k = {k:,}", *measured("array", n)] for n in (1e7, 1e8, 5e8)]
        with tempfile.TemporaryDirectory(dir=ROOT / "build" if (ROOT / "build").is_dir() else None) as folder:
            path = Path(folder) / "large.npy"
            with open(path, "wb") as file:  # zeros, as holes that take no room on the disk, and some noise
                header = {"descr": "<f4", "fortran_order": False, "shape": (15 * 10**8,)}
                np.lib.format.write_array_header_1_0(file, header)
                start = file.tell()
                file.truncate(start + 6 * 10**9)
                for at in range(0, 6 * 10**9, 10**9):
                    file.seek(start + at)
                    file.write(np.random.default_rng(at).standard_normal(10**6, dtype=np.float32).tobytes())
            rows.append([f"a file of 6 GB, k = {k:,}", *measured("file", 0, str(path))])
        return {"columns": {"selected from": "text", "added": "size", "in all": "size"}, "rows": rows}

    case = Case([], list, [], timed=False, settings={"model": "normal numbers, float32"})
    case.facts = facts
    return case


TWO: dict[str, Any] = {"quick": False, "threads": (2,)}
BENCHMARKS = [
    Benchmark("select.million", "both ends of a million", ends, {"cpu": tuple(_MILLION)}, threads=(2,)),
    Benchmark("select.ends", "the k largest and smallest", ends, {"cpu": tuple(_ONE), "cuda": tuple(_GPU)}, **TWO),
    Benchmark("select.rows", "of every row", ends, {"cpu": tuple(_ROWS)}, **TWO),
    Benchmark("select.kinds", "hard distributions", ends, {"cpu": tuple(_KINDS)}, **TWO),
    Benchmark("select.half", "half of an array", half, {"cpu": tuple(_HALF)}, **TWO),
    Benchmark("select.memory", "memory beside the array", memory, {"cpu": ("tiny",)}, **TWO),
]
