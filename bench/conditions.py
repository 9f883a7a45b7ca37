"""Where and how results were measured, as lines of the pages, and what has no result yet.

What is the same for several results is said once: for all of a machine, then for all of a benchmark, then for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from .shapes import SHAPES
from .suites import ALL

T = TypeVar("T")
BUSY = 1.1  # load for each core before a run, above which others must have been at work: ours leaves one at most


def place(result: dict[str, Any]) -> str:
    """The GPU, or the number of threads."""
    return result["machine"]["gpu"] or f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"


def busy(result: dict[str, Any]) -> bool:
    """Whether there was more to do than the machine has cores for when it began.

    >>> [busy({"load": {"before": load}, "machine": {"cores": 2}}) for load in (2.0, 3.1)]
    [False, True]
    """
    return bool(result["load"]["before"] > BUSY * result["machine"]["cores"])


def where(result: dict[str, Any]) -> str:
    """The shape and the place, and whether the machine was busy."""
    return f"{result['shape']}, {place(result)}" + (", busy machine" if busy(result) else "")


# ---- how ----


def conditions(results: Sequence[dict[str, Any]]) -> list[str]:
    """How each was measured: machine, versions, settings, checks, load, commit; folded up where a forge can do so."""
    lines = ["<details><summary>How it was measured</summary>", ""]
    for machine, here in grouped(results, _machine).items():
        told = {id(result): _told(result) for result in here}
        lines += [f"{'. '.join([machine, *_shared(told, here)])}.", ""]
        for name, mine in grouped(here, lambda result: f"`{result['benchmark']}`").items():
            common = _shared(told, mine)
            if len(mine) == 1:
                lines.append(f"- {name}, {where(mine[0])}: {'. '.join(told[id(mine[0])])}.")
                continue
            lines.append(f"- {name}: {'. '.join(common)}." if common else f"- {name}:")
            lines += [f"  - {where(result)}: {'. '.join(told[id(result)])}." for result in mine]
        lines.append("")
    return [*lines, "</details>", ""]


def grouped(results: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = {}
    for result in results:
        found.setdefault(key(result), []).append(result)
    return found


def _machine(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['ram_gib']} GiB; "
        f"torch {versions['torch']}, transformers {versions['transformers']}"
    )


def _shared(told: dict[int, list[str]], results: Sequence[dict[str, Any]]) -> list[str]:
    """Take out of the sentences of several results those that all of them have."""
    if len(results) < 2:
        return []
    first, *others = (told[id(result)] for result in results)
    common = [sentence for sentence in first if all(sentence in other for other in others)]
    for result in results:
        told[id(result)] = [sentence for sentence in told[id(result)] if sentence not in common]
    return common


def _told(result: dict[str, Any]) -> list[str]:
    settings, commit, load = result["settings"], result["commit"], result["load"]
    tokens = f", {settings['tokens']} tokens a prompt" if "tokens" in settings else ""
    return [
        f"{settings['model']}{tokens}",
        *(f"Checked: {c['what']} {c['value']:.1e}" for c in result["checks"]),
        *(f"{name}: {pilot['chosen']}".capitalize() for name, pilot in result["pilots"].items()),
        *result["notes"],
        *_waiting(result["machine"].get("waiting")),  # older results do not say
        f"Load {load['before']:.2f} before and {load['after']:.2f} after",
        f"Commit {(commit['id'] or 'unknown')[:12]}" + (" with changes" if commit["dirty"] else ""),
        f"Measured on {result['date']}",
    ]


def _waiting(policy: dict[str, str | None] | None) -> list[str]:
    if policy is None:
        return []
    chosen = [f"{name}={value}" for name, value in policy.items() if value is not None]
    return [f"Waiting threads: {', '.join(chosen) or 'as the libraries have it'}"]


# ---- what not ----

MISSING = """## Not measured

What `python -m bench run` can do by itself and has no result here, by the device (`python -m bench list` tells more):
"""


def missing(results: Sequence[dict[str, Any]], suites: Callable[[str], bool]) -> list[str]:
    """One line a suite: the benchmarks, shapes and numbers of threads without a result, by device."""
    there = {_key(r["benchmark"], r["device"], r["shape"], r["threads"]) for r in results}
    found: dict[str, list[str]] = {}
    for suite in sorted({bench.suite for bench in ALL.values() if suites(bench.suite)}):
        mine = [bench for bench in ALL.values() if bench.suite == suite]
        for device in ("cpu", "cuda"):
            parts = [_absent(bench, device, there) for bench in mine if bench.shapes.get(device)]
            if parts and not any(r["device"] == device and r["benchmark"].split(".")[0] == suite for r in results):
                shapes = dict.fromkeys(shape for bench in mine for shape in bench.shapes.get(device, ()))
                parts = [f"nothing of {', '.join(parts)} ({', '.join(shapes)})"]
            text = ", ".join(filter(None, parts))
            if text:
                found.setdefault(suite, []).append(f"on {device} {text}")
    lines = [f"- {suite}: {'; '.join(parts)}." for suite, parts in found.items()]
    models = SHAPES.keys() - {"toy"} - {result["shape"] for result in results}
    lines += [f"- Models without any result: {', '.join(s for s in SHAPES if s in models)}."] if models else []
    return [MISSING, *lines, ""] if lines else []


def _key(name: str, device: str, shape: str, threads: int) -> tuple[str, str, str, int]:
    return name, device, shape, threads if device == "cpu" else 0  # a GPU is one place


def _absent(bench: Any, device: str, there: set[tuple[str, str, str, int]]) -> str:
    """The name of a benchmark with nothing, the name and what is absent of one with some, "" where all is there."""
    counts = bench.threads if device == "cpu" else (1,)
    absent = {s: [n for n in counts if _key(bench.name, device, s, n) not in there] for s in bench.shapes[device]}
    absent = {shape: gone for shape, gone in absent.items() if gone}
    if all(absent.get(shape) == list(counts) for shape in bench.shapes[device]):
        return f"`{bench.name}`"
    said = [s if gone == list(counts) else f"{s} at {', '.join(map(str, gone))}" for s, gone in absent.items()]
    return f"`{bench.name}` ({'; '.join(said)})" if said else ""
