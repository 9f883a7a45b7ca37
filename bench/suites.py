"""Which benchmarks there are, and the pages made of their results.

A new one is a file with a list BENCHMARKS, named here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neuronllm.errors import InputError

from . import end_to_end, engine, footprint, kernels, leaderboard, methods, peers, quality, report, scaling, select
from .harness import Benchmark
from .shapes import SHAPES

FILES = (engine, methods, footprint, kernels, peers, scaling, select, end_to_end, quality)
ALL: dict[str, Benchmark] = {bench.name: bench for file in FILES for bench in file.BENCHMARKS}
PAGES = {"performance.md": report.page, "leaderboard.md": leaderboard.page}  # in docs/, each from all results


def chosen(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of some names: "engine.ig", a suite's name, "quick" or "all"."""
    found: dict[str, Benchmark] = {}
    for name in names:
        here = [b for b in ALL.values() if name in (b.name, b.suite, "all") or (name == "quick" and b.quick)]
        if not here:
            raise InputError(f"no benchmark or suite called {name!r}; list shows them")
        found |= {b.name: b for b in here}
    return list(found.values())


def check_shapes(names: Iterable[str]) -> None:
    """Refuse what is neither a model nor an array nor another size that a benchmark runs at."""
    known = SHAPES.keys() | select.ARRAYS.keys() | {s for b in ALL.values() for some in b.shapes.values() for s in some}
    for name in names:
        if name not in known:
            raise InputError(f"--shape {name}: known are {', '.join(sorted(known))}")
