"""Which back end an operation uses, and which block sizes a kernel is launched with.

`configs.json` in a kernel's folder holds block sizes by device and type: "default" is the conservative table that every
device starts from, and further tables go by the name that torch gives the device. "wins" names the devices on which the
kernel was measured to beat torch; there, and only there, "auto" chooses it. bench/tuning.py writes both.
Sizes are never searched for at run time: another size is another order of additions, and so other bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.env import kernel_choice, triton_found
from ..common.errors import InputError
from .checks import check_name

BACKENDS = ("auto", "triton", "torch")
_asked: list[str] = []
_forced: list[dict[str, dict[str, int]]] = []


@cache
def table(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "configs.json").read_text(encoding="utf-8")))


@cache
def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def config(folder: Path, key: str, device: torch.device) -> dict[str, int]:
    """Block sizes for a key (a type, sometimes with a size), those of the device before the default ones."""
    for tables in reversed(_forced):
        if key in tables:
            return tables[key]
    entries = table(folder)
    return dict(entries.get(device_name(device), {}).get(key) or entries["default"][key])


@contextmanager
def forced(sizes: dict[str, dict[str, int]]) -> Iterator[None]:
    """Launch with the block sizes of these keys, whatever the tables say: for tuning and tests."""
    _forced.append(sizes)
    try:
        yield
    finally:
        _forced.pop()


def launched_with(sizes: dict[str, int]) -> dict[str, Any]:
    """The launch options of a table entry. Fused multiply-add is asked for by name: the default is about to change."""
    return {"num_warps": sizes["num_warps"], "num_stages": sizes["num_stages"], "enable_fp_fusion": True}


@contextmanager
def using(backend: str) -> Iterator[None]:
    """What "auto" means inside, for calls of an op and for the engine: "triton" (or an error), "torch", or "auto".

    >>> with using("torch"):
    ...     pass
    """
    check_backend(backend)
    _asked.append(backend)
    try:
        yield
    finally:
        _asked.pop()


def check_backend(backend: str) -> None:
    check_name("backend", backend, BACKENDS, "back ends")


def uses_triton(op: str, backend: str, *tensors: Tensor | None, refusal: str | None = None) -> bool:
    """The back end of a call, by name or chosen; `refusal` is why the kernel cannot do this call."""
    check_backend(backend)
    if backend == "auto" and _asked:
        backend = _asked[-1]
    if backend == "torch":
        return False
    device = next(t.device for t in tensors if t is not None)
    if backend == "auto":
        return refusal is None and device.type == "cuda" and _wins(op, device)
    refusal = refusal or triton_refusal(device)
    if refusal:
        raise InputError(f'backend="triton": {refusal}')
    return True


@cache
def _wins(op: str, device: torch.device) -> bool:
    return kernel_choice(op, device_name(device))[0] == "triton"


def triton_refusal(device: torch.device) -> str | None:
    """Why no kernel can run on a device; None if it can."""
    found, reason = triton_found()
    if not found:
        return reason
    if device.type == "cuda":
        return None
    import triton

    if triton.knobs.runtime.interpret:
        return None
    return f"{op_device(device)} tensors cannot be given to it; it needs CUDA, or TRITON_INTERPRET=1 to try it out"


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Kernels are launched on the current GPU, which is not always that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def op_device(device: torch.device) -> str:
    return "CPU" if device.type == "cpu" else device.type


def rows_together(x: Tensor) -> Tensor:
    """x with neighbouring columns side by side in memory, copied only if they are not."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()
