"""What a result is written with: the machine, the versions, the commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from neuronllm.env import package_version

from .harness import Benchmark, Setup

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().with_name("results")  # what is committed, and what the page is made of
FORMAT = 1  # of the files; a report refuses those of another
GENERATED = (
    ":!bench/results",
    ":!docs/performance.md",
    ":!docs/images",
    ":!docs/leaderboard.md",
)  # what a run and a report write makes no tree dirty


def machine(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "ram_gib": memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        # sleeping threads wake late
        "waiting": {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")},
        "gpu": None,
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def versions() -> dict[str, Any]:
    packages = {name: package_version(name) for name in ("torch", "transformers", "neuronllm")}
    return {"python": platform.python_version()} | packages


def commit() -> dict[str, Any]:
    head = _git("rev-parse", "HEAD")
    return {"id": head, "dirty": bool(_git("status", "--porcelain", "--", ".", *GENERATED)) if head else None}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def stamp(benchmark: Benchmark, setup: Setup, started: float, head: dict[str, Any] | None = None) -> dict[str, Any]:
    """Everything about a run but its figures; `started` is the load of the machine, `head` the commit, as it began."""
    return {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "shape": setup.shape,
        "device": setup.device.split(":")[0],
        "threads": setup.threads,
        "seed": setup.seed,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(setup.device),
        "load": {"before": started, "after": os.getloadavg()[0]},
        "versions": versions(),
        "commit": head or commit(),
    }


def file_name(benchmark: str, setup: Setup) -> str:
    """One file for each benchmark, shape, device and number of threads: a new run takes the place of the old one."""
    return f"{benchmark}.{setup.shape}.{setup.device.split(':')[0]}.{setup.threads}.json"


def write(folder: Path, name: str, result: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / name, folder / f".{name}.tmp"
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def read(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder, in the order of their file names."""
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    for path, result in found.items():
        if result.get("format") != FORMAT:
            raise SystemExit(f"bench: {path} was written in another format: run that benchmark again")
    return list(found.values())
