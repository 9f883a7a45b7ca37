"""Stage: the extension and the CUDA selection compile here, how long that takes, and what ptxas says of the kernels."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

from neuronllm.common import env

from .worker import ROOT, Case, Setting, Skipped, Wrong, ran

USED = re.compile(r"Used (\d+) registers")
SPILLED = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def cases(setting: Setting) -> list[Case]:
    return [
        Case("compile", compile_all),
        Case("extension", lambda: built("EXT", env.build_record(), "ninja-*")),
        Case("CUDA selection", lambda: built("CUDA", env.build_record().get("cuda", {}), "cuda-*")),
        Case("loading", loading),
    ]


def compile_all() -> dict[str, Any]:
    """As an installation does it; what is compiled already is not compiled again."""
    start = time.monotonic()
    switches = {"NEURONLLM_BUILD_EXT": "", "NEURONLLM_BUILD_CUDA": ""}
    code, printed = ran([sys.executable, "setup.py", "build_ext", "--inplace"], switches)
    if code:
        raise Wrong(f"setup.py ended with {code}\n{printed}")
    return {"seconds": time.monotonic() - start}


def built(what: str, record: dict[str, Any], folder: str) -> dict[str, Any]:
    """What the record says was built, the seconds that ninja noted, registers and spills of CUDA kernels."""
    if not record.get("built"):
        reason = str(record.get("reason", "the build left no record"))
        if "no nvcc" in reason:
            raise Skipped(reason)
        raise Wrong(reason)
    newest = max(ROOT.glob(f"build/{folder}"), key=lambda path: path.stat().st_mtime, default=None)
    seconds = compiling(newest) if newest else None
    figures: dict[str, Any] = {"compiler": record.get("compiler"), "seconds": seconds}
    logs = "".join(path.read_text("utf-8") for path in newest.glob("*.log")) if newest else ""
    if logs:
        spills = sum(int(n) for pair in SPILLED.findall(logs) for n in pair)
        figures |= {"kernels": len(USED.findall(logs)), "spilled bytes": spills}
        figures["most registers"] = max(map(int, USED.findall(logs)), default=0)
        if spills:
            raise Wrong(f"kernels spill {spills} bytes:\n{logs}")
    took = "" if seconds is None else f" in {seconds:.0f} s"
    return figures | {"line": f"{'extension' if what == 'EXT' else 'CUDA selection'} built{took}"}


def compiling(folder: Path) -> float | None:
    """From the first start to the last end of what ninja ran, in the run that took longest."""
    path = folder / ".ninja_log"
    if not path.exists():
        return None
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    return max((int(row[1]) for row in rows), default=0) / 1000


def loading() -> dict[str, Any]:
    """The extension selects, and the CUDA library loads beside the driver of this machine."""
    from neuronllm.select import cuda, extremes

    found = extremes([0.5, -2.0, 3.0], 1, 1, backend="ext")
    if (found.largest.indices.tolist(), found.smallest.indices.tolist()) != ([2], [1]):
        raise Wrong(f"the extension selects {found}")
    if not cuda.LIBRARY.exists():
        return {"CUDA library": "not built"}
    return {"CUDA library": "loaded", "devices": cuda.load(cuda.LIBRARY).neuronllm_cuda_devices()}
