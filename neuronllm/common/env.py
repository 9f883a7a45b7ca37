"""What was built, what was found, and why a fast path is off: the facts behind `neuronllm env`.

setup.py leaves `_build.json` in the package's folder: what it built, with which compiler, or why not. `extension()` is
the one place that decides whether the compiled selection is there; everything that may use it asks here, so the report
cannot disagree with what runs. Importing this module is light: torch is imported by `report()` only.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("torch", "transformers", "triton", "numpy", "safetensors", "tokenizers", "pybind11", "ninja")
PACKAGE = Path(__file__).resolve().parents[1]
KERNELS = PACKAGE / "kernels"
OPS = ("glu_score", "score_gemm", "contrastive_ce", "branch_attention")
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun puts into the environment
BUILD_RECORD = PACKAGE / "_build.json"


def package_version(name: str) -> str | None:
    """The installed version of a package, or None: `package_version("torch")`."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def source_commit() -> str | None:
    """The commit of the sources that this package lies in; None where it was installed without them."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PACKAGE.parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def build_record() -> dict[str, Any]:
    """What the installation built: `{"built": bool, "reason" or "compiler" and "flags"}`; empty without a record."""
    if not BUILD_RECORD.exists():
        return {}
    return dict(json.loads(BUILD_RECORD.read_text(encoding="utf-8")))


def extension() -> tuple[ModuleType | None, str]:
    """The compiled module `neuronllm._select` and what it is, or None and the reason why it is absent.

    >>> module, reason = extension()
    >>> (module is None) or callable(module.extremes)
    True
    """
    record = build_record()
    try:
        module = importlib.import_module("neuronllm._select")
    except ImportError as error:
        if record.get("built"):
            return None, f"neuronllm._select was built, but does not load: {error}"
        return None, f"neuronllm._select was not built: {record.get('reason', 'the installation left no record')}"
    return module, f"neuronllm._select, built with {record.get('compiler', 'an unrecorded compiler')}"


def triton_found() -> tuple[bool, str]:
    """Whether triton is installed, and its version or the reason why not. It is not imported."""
    version = package_version("triton")
    if version is None or importlib.util.find_spec("triton") is None:
        return False, "triton is not installed (it exists for Linux)"
    return True, f"triton {version}"


def kernel_choice(op: str, device: str | None) -> tuple[str, str]:
    """What backend="auto" takes for an operation on a device (its name; None: there is none), and why.

    >>> kernel_choice("glu_score", None)[0]
    'torch'
    """
    found, reason = triton_found()
    if not found or device is None:
        return "torch", reason if not found else "torch finds no CUDA device"
    for folder in (KERNELS, KERNELS.parents[1] / "kernels"):
        path = folder / op / "configs.json"
        if path.exists():
            wins = json.loads(path.read_text(encoding="utf-8"))["wins"]
            if device in wins:
                return "triton", f"{reason}; {wins[device]}"
    return "torch", f'the kernel was not measured to win on {device}; backend="triton" asks for it'


def instruction_set() -> str:
    """What the compiled selection runs with, and what else this machine has; empty without it."""
    module, _ = extension()
    if module is None:
        return ""
    known = ", ".join(module.instruction_sets())
    try:
        return f"{module.instruction_set()} of {known}"
    except ValueError as error:
        return str(error)


def cuda_library() -> str:
    """What became of the selection's CUDA library."""
    record = build_record().get("cuda", {})
    if record.get("built"):
        return f"neuronllm/_select_cuda.so, built with {record.get('compiler', 'an unrecorded compiler')}"
    return f"torch (the CUDA library was not built: {record.get('reason', 'the installation left no record')})"


def launched() -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return all(name in os.environ for name in LAUNCHED) and os.environ["WORLD_SIZE"] != "1"


def first_process() -> bool:
    """False in all but one of the processes that a launcher started: one of them speaks for all."""
    return not launched() or os.environ["RANK"] == "0"


def report() -> dict[str, Any]:
    """The facts as plain data, ready for JSON.

    >>> report()["select"]["backend"] in ("ext", "torch")
    True
    """
    import torch

    module, reason = extension()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "neuronllm": package_version("neuronllm"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cpu_threads": torch.get_num_threads(),
        "build": build_record(),
        "select": {
            "backend": "torch" if module is None else "ext",
            "reason": reason,
            "instruction_set": instruction_set(),
            "cuda": cuda_library(),
        },
        "kernels": {op: dict(zip(("backend", "reason"), kernel_choice(op, gpu), strict=True)) for op in OPS},
        "engine": {"name": "fast", "reason": "a model that fails its self-check is left to the reference engine"},
    }


def describe() -> str:
    """The report as lines to print: `print(describe())`."""
    facts = report()
    rows = {"neuronllm": facts["neuronllm"] or "not installed", "python": f"{facts['python']} on {facts['platform']}"}
    rows |= {name: version or "not installed" for name, version in facts["packages"].items()}
    rows["CUDA devices"] = ", ".join(facts["cuda"]) or "none found"
    rows["CPU threads"] = str(facts["cpu_threads"])
    rows["select"] = f"{facts['select']['backend']} ({facts['select']['reason']})"
    rows["instructions"] = facts["select"]["instruction_set"] or "those of torch"
    rows["CUDA select"] = facts["select"]["cuda"]
    rows |= {op: f"{found['backend']} ({found['reason']})" for op, found in facts["kernels"].items()}
    rows["engine"] = f"{facts['engine']['name']} ({facts['engine']['reason']})"
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
