"""Stage: what the machine is, and the two rates that everything else is held against."""

from __future__ import annotations

import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import torch

from bench.harness import clocked
from bench.record import commit, machine, versions
from neuronllm.common.env import package_version

from .worker import Case, Setting, Wrong

PACKAGES = ("triton", "pytest", "pytest-xdist", "pytest-benchmark", "hypothesis", "tqdm", "rich")
SIZES = {"copied": 4 * 2**30, "matrix": 8192}
TOY = {"copied": 2**16, "matrix": 64}


def cases(setting: Setting) -> list[Case]:
    sizes = TOY if setting.pretend else SIZES
    return [
        Case("facts", facts),
        Case("copy", lambda: copy(sizes["copied"])),
        Case("matrix product", lambda: matrix(sizes["matrix"])),
    ]


def facts() -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise Wrong(f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no CUDA device: {_refusal()}")
    free, total = torch.cuda.mem_get_info()
    found: dict[str, Any] = {"machine": machine("cuda"), "versions": versions() | _versions(), "python": _python()} | {
        "commit": commit()
    }
    found |= {"capability": torch.cuda.get_device_capability(), "memory": total, "free": free}
    found |= {"driver": _output("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv")}
    found |= {"nvcc": _output("nvcc", "--version"), "cuda of torch": torch.version.cuda}
    name = torch.cuda.get_device_name()
    found["line"] = f"{name}, {total / 2**30:.0f} GiB; torch {torch.__version__}, triton {package_version('triton')}"
    return found


def _refusal() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "no reason is given"


def _versions() -> dict[str, str | None]:
    return {name: package_version(name) for name in PACKAGES}


def _python() -> str:
    return f"{platform.python_version()} on {platform.platform()}"


def _output(program: str, *arguments: str) -> str | None:
    """What a program prints, None where it is not there."""
    path = shutil.which(program) or shutil.which(program, path="/usr/local/cuda/bin")
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return "no answer in 20 s"
    return (done.stdout or done.stderr).strip()


def copy(size: int) -> dict[str, Any]:
    """Bytes read and written a second."""
    source = torch.zeros(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    rate = 2 * size / median(lambda: target.copy_(source))
    return {"bytes a second": rate, "line": f"copies {rate / 1e12:.2f} TB/s"}


def matrix(size: int) -> dict[str, Any]:
    """FLOP/s of a product of squares of random bfloat16 numbers."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    rate = 2 * size**3 / median(lambda: a @ b)
    return {"FLOP a second": rate, "line": f"multiplies {rate / 1e12:.0f} TFLOP/s"}


def median(call: Callable[[], Any], rounds: int = 5, times: int = 5) -> float:
    """Seconds of one call: the median of some rounds, each of some calls that are waited for together."""
    clocked(call, times, "cuda")
    return statistics.median(clocked(call, times, "cuda") for _ in range(rounds))
