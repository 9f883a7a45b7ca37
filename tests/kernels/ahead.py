"""Compile a launch for a GPU that is not there: the real launchers run on CPU tensors under a stand-in driver.

`compiling(target)` turns every launch inside into a compilation for the target, specialised as for a real launch; what
it found is a list of `Compiled`, with registers and spills read from the bundled tools.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.jit import KernelInterface

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}


@dataclass(frozen=True)
class Compiled:
    """What a compiled kernel takes. Spills are bytes on NVIDIA, registers on AMD; both must be 0."""

    kernel: str
    registers: int
    spills: int
    shared: int
    atomics: int


class _Driver:
    """As much of a driver as a compilation asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def is_active(self) -> bool:
        return True


@contextmanager
def compiling(name: str) -> Iterator[list[Compiled]]:
    drivers, launch = triton.runtime.driver, KernelInterface.__getitem__
    own, used, found = drivers._active, {}, []
    read: dict[str, Compiled] = {}

    def compile_only(kernel: Any, grid: Any) -> Any:
        def compiled(*args: Any, **kwargs: Any) -> None:
            if id(kernel) not in used:
                kernel.device_caches.clear()  # it may hold what was compiled for another target
                used[id(kernel)] = kernel
            done = kernel.warmup(*args, grid=grid, **kwargs)
            done = done.result() if hasattr(done, "result") else done
            if done.hash not in read:
                read[done.hash] = _read(kernel.fn.__name__, done)
            found.append(read[done.hash])

        return compiled

    drivers.set_active(_Driver(TARGETS[name]))
    KernelInterface.__getitem__ = compile_only  # type: ignore[method-assign]
    try:
        yield found
    finally:
        KernelInterface.__getitem__ = launch  # type: ignore[method-assign]
        drivers._active = own
        for kernel in used.values():
            kernel.device_caches.clear()


def _read(name: str, kernel: Any) -> Compiled:
    if kernel.metadata.target.backend == "hip":
        text = kernel.asm["amdgcn"]
        registers, spills = (_number(rf"\.{key}:\s+(\d+)", text) for key in ("vgpr_count", "vgpr_spill_count"))
        atomics = len(re.findall(r"\b(?:global|flat|buffer)_atomic", text))
        return Compiled(name, registers, spills, kernel.metadata.shared, atomics)
    text = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        used = _output(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
    spills = _spills(text, kernel.metadata.target.arch) if _number(r"STACK:(\d+)", used) else 0
    atomics = len(re.findall(r"^\s*(?:@%?\w+\s+)?(?:atom|red)\.", text, re.MULTILINE))
    return Compiled(name, _number(r"REG:(\d+)", used), spills, kernel.metadata.shared, atomics)


def _spills(ptx: str, arch: int) -> int:
    """Bytes stored and loaded back, as the assembler counts them; without a stack there are none."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        gpu = f"--gpu-name=sm_{arch}{'a' if arch >= 90 else ''}"
        done = _output(get_ptxas(arch).path, "-v", gpu, file.name, "-o", "/dev/null")
    return _number(r"(\d+) bytes spill stores", done) + _number(r"(\d+) bytes spill loads", done)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in the tools' output"
    return int(found[1])
