"""What a result is written with: the machine, the versions, the commit. And how it is read again.

A file carries a digest of all that it says, so that one whose tables, views or conditions were edited is refused. And
nothing that can be derived is believed: `read` computes medians, quantiles, rates, ratios, fits and verdicts anew, with
the functions that a run uses, from the raw times and peaks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from neuronllm.common.env import package_version
from neuronllm.common.errors import InputError

from .harness import Bar, Benchmark, Check, Comparison, Limit, Series, Setup, Side, View, seen, summary

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().with_name("results")  # what is committed, and what the page is made of
FORMAT = 1  # of the files; a report refuses those of another
DIGEST = "sha256"
GENERATED = (
    ":!bench/results",
    ":!docs/performance.md",
    ":!docs/images",
    ":!docs/leaderboard.md",
)  # what a run and a report write makes no tree dirty
ROUNDING = 1e-6  # relative: another processor fits a line with other last digits
NEEDED: dict[str, tuple[str, ...]] = {  # what a page shows; versions of libraries came later and may be absent
    **dict.fromkeys(("benchmark", "title", "shape", "device", "threads", "date", "unit", "notes"), ()),
    **{"checks": (), "pilots": (), "sides": (), "views": (), "facts": (), "settings": ("model",)},
    "machine": ("cpu", "cores", "ram_gib", "gpu"),
    "load": ("before", "after"),
    "versions": ("torch", "transformers"),
    "commit": ("id", "dirty"),
}
PACKAGES = ("torch", "transformers", "neuronllm", "numpy")
PEERS = ("captum", "transformer-lens", "nnsight", "faiss-cpu")  # what some suites compare with, where it is installed


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
        facts["gpu"] = torch.cuda.get_device_name(device)
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
    """Of Python, of what every benchmark runs on, and of those libraries to compare with that are installed.

    >>> "numpy" in versions()
    True
    """
    packages = {name: package_version(name) for name in PACKAGES}
    peers = {name: version for name in PEERS if (version := package_version(name))}
    return {"python": platform.python_version()} | packages | peers


def commit() -> dict[str, Any]:
    head = _git("rev-parse", "HEAD")
    return {"id": head, "dirty": bool(_git("status", "--porcelain", "--", ".", *GENERATED)) if head else None}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def stamp(benchmark: Benchmark, setup: Setup, began: dict[str, Any]) -> dict[str, Any]:
    """Everything about a run but its figures; `began` is what `start` found."""
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
        "load": {"before": began["load"], "after": os.getloadavg()[0]},
        "versions": versions(),
        "commit": began["commit"],
        "took": round(time.monotonic() - began["time"], 1),
    }


def start() -> dict[str, Any]:
    """What a stamp says of the beginning: the load, the commit (the tree may move on during a long run), the time."""
    return {"load": os.getloadavg()[0], "commit": commit(), "time": time.monotonic()}


def file_name(benchmark: str, setup: Setup) -> str:
    """One file for each benchmark, shape, device and number of threads: a new run takes the place of the old one."""
    return f"{benchmark}.{setup.shape}.{setup.device.split(':')[0]}.{setup.threads}.json"


def digest(result: dict[str, Any]) -> str:
    """Of everything that a result says, in whatever order it stands.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1})
    True
    """
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def write(folder: Path, name: str, result: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / name, folder / f".{name}.tmp"
    signed = result | {DIGEST: digest(result)}
    temporary.write_text(json.dumps(signed, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def read(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder, in the order of their file names, each with the figures that its raw ones give."""
    return [_sound(path) for path in sorted(folder.glob("*.json"))]


def _sound(path: Path) -> dict[str, Any]:
    again = "run that benchmark again"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): {again}") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise InputError(f"{path} was written in another format: {again}")
    if missing := _missing(result):
        raise InputError(f"{path} is incomplete, it lacks {', '.join(missing)}: {again}")
    try:
        wrong = difference(_stated(result), _derived(result))
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}): {again}") from error
    if wrong:
        raise InputError(f"{path}: {wrong} is not what the raw figures in the file give: {again}")
    if result.pop(DIGEST, None) != digest(result):
        raise InputError(f"{path} is not as it was written, its digest is another: {again}")
    return result


def _missing(result: dict[str, Any]) -> list[str]:
    """What a page needs and the file lacks."""
    missing = [name for name in NEEDED if name not in result]
    for name, parts in NEEDED.items():
        found = result.get(name)
        missing += [f"{name}.{part}" for part in parts if isinstance(found, dict) and part not in found]
        missing += [f"{name}.*" for _ in parts[:1] if name in result and not isinstance(found, dict)]
    return missing


def _stated(result: dict[str, Any]) -> dict[str, Any]:
    """What a file says of itself beside its raw figures, in the form of `_derived`."""
    widths = [len(row) for row in result["facts"].get("rows", [])]
    chosen = {name: pilot["chosen"] for name, pilot in result["pilots"].items()}
    return {"sides": result["sides"], "views": result["views"], "pilots": chosen, "facts": widths, "checks": []}


def _derived(result: dict[str, Any]) -> dict[str, Any]:
    """The same from the raw figures: times and peaks of the sides, times of the pilots, values of the checks."""
    sides = {name: _side(side) for name, side in result["sides"].items()}
    views = [seen(_view(view), sides) for view in result["views"]]
    chosen = {name: min(pilot["per_unit"], key=pilot["per_unit"].get) for name, pilot in result["pilots"].items()}
    widths = [len(result["facts"]["columns"]) for _ in result["facts"].get("rows", [])]
    failed = [check["what"] for check in result["checks"] if not Check(**check).fine]
    derived = {"sides": sides, "views": views, "pilots": chosen, "facts": widths, "checks": failed}
    return dict(json.loads(json.dumps(derived)))  # lists for tuples, as in the file


def _side(stored: dict[str, Any]) -> dict[str, Any]:
    found = {"peak": stored["peak"]} if "peak" in stored else {}
    if found and not math.isfinite(found["peak"]) or not all(map(math.isfinite, stored.get("times", []))):
        raise ValueError("a time or a peak that is no number")
    if "times" not in stored:
        return found
    # Files of before the bytes were kept hold the rate only: it cannot be derived, and counts as raw.
    reads = stored.get("reads") or stored.get("rate", 0) * statistics.median(stored["times"])
    side = Side("", lambda turn: (), lambda: None, stored["work"], reads=reads)
    figures = summary(stored["times"], side)
    if "reads" not in stored:
        figures.pop("reads", None)
    return figures | found


def _view(stored: dict[str, Any]) -> View:
    """The view whose figures are stored: its own fields stand among them."""
    kind = {"comparison": Comparison, "series": Series, "limit": Limit}[stored["view"]]
    fields = {field.name: stored[field.name] for field in dataclasses.fields(kind)}
    view: View = kind(**fields | {"bar": Bar(**stored["bar"]) if stored["bar"] else None})
    return view


def difference(stated: Any, derived: Any, where: str = "") -> str:
    """The place of the first figure that two results do not share, but for rounding; empty where there is none.

    >>> difference({"ours": {"median": 1.0, "p20": 0.9}}, {"ours": {"median": 1.0, "p20": 0.8}})
    'ours, p20'
    """
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(stated, dict) and isinstance(derived, dict) and stated.keys() == derived.keys():
        pairs = [(key, stated[key], derived[key]) for key in derived]
    elif isinstance(stated, list) and isinstance(derived, list) and len(stated) == len(derived):
        pairs = [(number, *pair) for number, pair in enumerate(zip(stated, derived, strict=True), 1)]
    elif type(stated) is float and isinstance(derived, (int, float)):
        return "" if math.isclose(stated, derived, rel_tol=ROUNDING, abs_tol=ROUNDING**2) else where
    else:
        return "" if stated == derived and isinstance(stated, bool) == isinstance(derived, bool) else where
    found = (difference(one, other, f"{where}, {key}" if where else str(key)) for key, one, other in pairs)
    return next(filter(None, found), "")
