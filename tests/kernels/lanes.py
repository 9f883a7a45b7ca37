"""What the kernel tests share: devices, the error budget, and what the interpreter can watch while a kernel runs.

`watched()` checks every address that a program loads or stores: inside its tensors, written by one program only, read
by no program that did not write it, no atomics. Together that means that a result cannot depend on the order in which a
GPU runs the programs; `order(seed)` shuffles it all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.pretend import mend_interpreter

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
only_interpreted = pytest.mark.skipif(not INTERPRETED, reason="the interpreter's own checks")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OF_THE_SURVEY = pytest.mark.survey  # in the interpreter these run in `make test-all` only; on a GPU always
FEWER = (torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=OF_THE_SURVEY))

# A kernel may be off by this much of the largest value, beside what PyTorch is off in the same type: half a unit in the
# last place of the result for types that round, and a few units of float32 where sums are ordered in another way.
ROUNDING = {torch.float32: 4e-6, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
FACTOR = 2.0


def within_budget(found: Tensor, plain: Tensor, right: Tensor, more: float = 1.0) -> None:
    """error(kernel) <= 2 error(PyTorch, same type) + rounding, relative to the largest; NaN and inf as PyTorch."""
    rounding = ROUNDING[found.dtype]
    assert found.shape == plain.shape == right.shape and found.dtype == plain.dtype
    odd = ~plain.isfinite()
    assert torch.equal(found[odd].nan_to_num(7.0), plain[odd].nan_to_num(7.0))
    assert bool(found[~odd].isfinite().all())
    if not (~odd).any():
        return
    found, plain, exact = (x[~odd].double().cpu() for x in (found, plain, right))
    size = max(float(exact.abs().max()), 1e-30)
    error, base = (float((x - exact).abs().max()) / size for x in (found, plain))
    budget = FACTOR * base + more * rounding
    assert error <= budget, f"error {error:.2e}, budget {budget:.2e} (PyTorch: {base:.2e})"


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is handed out is full of NaN, so that what a kernel forgets to write is seen."""
    own = {name: getattr(torch, name) for name in ("empty", "empty_like")}
    new = torch.Tensor.new_empty

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            x = make(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return made

    try:
        for name, make in own.items():
            setattr(torch, name, poison(make))
        torch.Tensor.new_empty = poison(new)  # type: ignore[method-assign]
        yield
    finally:
        for name, make in own.items():
            setattr(torch, name, make)
        torch.Tensor.new_empty = new  # type: ignore[method-assign]


def bits(tensors: Any) -> list[Tensor]:
    return [t.clone().contiguous().view(torch.uint8) for t in tensors if t is not None]


def same_bits(call: Callable[[], Any]) -> None:
    """Three orders of the programs (on a GPU: three runs) give the same bits."""
    first = bits(call())
    for seed in range(3):
        with order(seed):
            again = bits(call())
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# ---- what the interpreter is asked to do beside its work ----


@dataclass
class Seen:
    """Addresses of one launch, with the number of the program that used them."""

    kernel: str
    ranges: list[tuple[int, int]]
    loads: list[tuple[np.ndarray, int]] = field(default_factory=list)
    stores: list[tuple[np.ndarray, int]] = field(default_factory=list)
    atomics: int = 0

    def check(self) -> None:
        assert self.atomics == 0, f"{self.kernel}: {self.atomics} atomic operations"
        (load, loader), (store, writer) = _flat(self.loads), _flat(self.stores)
        unique, where = np.unique(store, return_inverse=True)
        owner = np.full(len(unique), -1)
        owner[where] = writer
        assert (owner[where] == writer).all(), f"{self.kernel}: two programs write one address"
        if len(unique) and len(load):
            at = np.searchsorted(unique, load).clip(max=len(unique) - 1)
            foreign = (unique[at] == load) & (owner[at] != loader)
            assert not foreign.any(), f"{self.kernel}: a program reads what another one writes"


def _flat(parts: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    if not parts:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    return np.concatenate([p for p, _ in parts]), np.concatenate([np.full(len(p), n) for p, n in parts])


_seen: list[list[Seen]] = []
_seed: list[int] = []
_running: list[Seen] = []


@contextmanager
def watched() -> Iterator[list[Seen]]:
    """The launches inside, checked as they end."""
    _seen.append([])
    try:
        yield _seen[-1]
    finally:
        _seen.pop()


@contextmanager
def order(seed: int) -> Iterator[None]:
    """Programs run in another order (of one thread, so this says nothing about races: `watched` does)."""
    _seed.append(seed)
    try:
        yield
    finally:
        _seed.pop()


def _note(builder: Any, pointers: Any, mask: Any, kind: str) -> None:
    if not _running:
        return
    seen = _running[-1]
    address = np.asarray(pointers.data).astype(np.uint64)
    keep = np.ones(address.shape, bool) if mask is None else np.broadcast_to(np.asarray(mask.data), address.shape)
    address = address[keep]
    size = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
    inside = np.zeros(address.shape, bool)
    for low, high in seen.ranges:
        inside |= (address >= np.uint64(low)) & (address + size <= np.uint64(high))
    assert inside.all(), f"{seen.kernel}: a {kind} outside its tensors"
    (x, y, z), (_, ny, nz) = builder.grid_idx, builder.grid_dim
    if kind == "atomic":
        seen.atomics += address.size
    elif address.size:
        (seen.loads if kind == "load" else seen.stores).append((address, (x * ny + y) * nz + z))


def install() -> None:
    """Teach the interpreter to be watched."""
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor

    def noting(name: str, kind: str, mask_at: int | None) -> None:
        own = getattr(builder, name)

        def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
            _note(self, args[1 if name == "create_atomic_rmw" else 0], mask_at and args[mask_at], kind)
            return own(self, *args, **kwargs)

        setattr(builder, name, noted)

    noting("create_masked_load", "load", 1)
    noting("create_masked_store", "store", 2)
    noting("create_atomic_rmw", "atomic", 3)
    noting("create_atomic_cas", "atomic", None)

    place, call = builder.set_grid_idx, executor.__call__

    def placed(self: Any, x: int, y: int, z: int) -> None:
        if _seed:
            nx, ny, nz = self.grid_dim
            shuffled = np.random.default_rng(_seed[-1]).permutation(nx * ny * nz)
            number = int(shuffled[(x * ny + y) * nz + z])
            x, y, z = number // (ny * nz), number // nz % ny, number % nz
        place(self, x, y, z)

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        if not _seen:
            return call(self, *args, **kwargs)
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        spans = [(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in tensors]
        _running.append(Seen(self.fn.__name__, [(low, low + size) for low, size in spans]))
        try:
            call(self, *args, **kwargs)
        finally:
            seen = _running.pop()
        seen.check()
        _seen[-1].append(seen)

    builder.set_grid_idx, executor.__call__ = placed, launched
    mend_interpreter()


if INTERPRETED:
    install()
