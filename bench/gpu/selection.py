"""Stage: the CUDA selection against sorting, on hard arrays of every type; then above 2^31 elements.

Without a GPU the same source runs as C++, with the threads of a kernel one after the other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuronllm.select import cuda
from tests.selection import DISTRIBUTIONS, DTYPES, Oracle, draw, tensor_of

from .diagnosis import differences
from .worker import ROOT, Case, Setting, Skipped, Wrong

SIZES, TOY, LARGE = (1, 1000, 40_000), (1, 1000, 33_000), 3_000_001
FEW = ("noise", "half NaN", "few distinct", "outliers in one block")  # of the large ones, which take the oracle long
BEYOND = 2**31 + 12_345
Select = Callable[[Tensor, int, int], Any]


def cases(setting: Setting) -> list[Case]:
    sizes, beyond = (TOY, 100_000) if setting.pretend else (SIZES, BEYOND)
    select = emulated if setting.pretend else on_device

    def one(dtype: str) -> dict[str, Any]:
        arrays = [(name, n) for name in DISTRIBUTIONS for n in sizes]
        arrays += [] if setting.pretend else [(name, LARGE) for name in FEW]
        for name, n in arrays:
            _check(select(), name, dtype, n, setting.device)
        return {"arrays": len(arrays)}

    return [
        Case("above 2^31 elements", lambda: many(select(), beyond, setting.device)),
        Case("rows", lambda: rows(select(), setting.device)),
        *(Case(f"against sorting, {dtype}", lambda dtype=dtype: one(dtype)) for dtype in DTYPES),
    ]


@cache
def emulated() -> Select:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise Skipped("there is no C++ compiler to emulate the device with")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "libselect.so"
        flags = ["-O2", "-std=c++17", "-x", "c++", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
        source = ROOT / "csrc" / "cuda" / "select_cuda.cu"
        subprocess.run([compiler, *flags, str(source), "-o", str(target)], check=True, capture_output=True, text=True)
        library = cuda.load(target)
    return lambda x, largest, smallest: cuda.call(library, x, largest, smallest)


@cache
def on_device() -> Select:
    reason = cuda.refusal()
    if reason:
        raise Skipped(reason)
    return cuda.extremes_rows


def _check(select: Select, name: str, dtype: str, n: int, device: str) -> None:
    x = tensor_of(draw(name, n, np.random.default_rng(0)), dtype)
    oracle, there = Oracle(x), x.to(device)
    for k in sorted({1, min(100, n), min(10_000, n // 2)} - {0}):
        _same(select(there[None], k, min(7, n)), 0, oracle, k, min(7, n), f"{name}, {dtype}, n={n}, k={k}")


def _same(found: Any, row: int, oracle: Oracle, largest: int, smallest: int, what: str) -> None:
    if int(found.n_nan[row]) != oracle.n_nan:
        raise Wrong(f"{what}: {int(found.n_nan[row])} NaN counted, {oracle.n_nan} there")
    for end, order, k in ((found.largest, oracle.falling, largest), (found.smallest, oracle.rising, smallest)):
        right = torch.full((k,), -1, dtype=torch.int64)
        right[: min(k, len(order))] = torch.from_numpy(order[:k].copy())
        if not torch.equal(end.indices[row].cpu(), right):
            raise Wrong(f"{what}: wrong places\n{differences(end.indices[row], right)}")


def rows(select: Select, device: str) -> dict[str, Any]:
    """Rows of all distributions in one call."""
    for dtype in DTYPES:
        rng = np.random.default_rng(1)
        x = torch.stack([tensor_of(draw(name, 33_000, rng), dtype) for name in DISTRIBUTIONS])
        found = select(x.to(device), 100, 5)
        for row, name in enumerate(DISTRIBUTIONS):
            _same(found, row, Oracle(x[row]), 100, 5, f"row {row} ({name}), {dtype}")
    return {"rows": len(DISTRIBUTIONS) * len(DTYPES)}


def many(select: Select, n: int, device: str) -> dict[str, Any]:
    x = torch.zeros(n, dtype=torch.bfloat16, device=device)
    x[-3:] = torch.tensor([3.0, -1.0, float("nan")], device=device, dtype=torch.bfloat16)
    found = select(x[None], 2, 2)
    places = found.largest.indices[0].tolist(), found.smallest.indices[0].tolist(), int(found.n_nan[0])
    if places != ([n - 3, 0], [n - 2, 0], 1):
        raise Wrong(f"largest at {places[0]}, smallest at {places[1]}, {places[2]} NaN, of {n} elements")
    return {"elements": n, "line": f"right among {n:,} elements"}
