"""Which benchmarks there are. A new suite is a file with a list BENCHMARKS, named here."""

from __future__ import annotations

from collections.abc import Sequence

from . import engine
from .harness import Benchmark

SUITES = (engine,)
ALL: dict[str, Benchmark] = {bench.name: bench for suite in SUITES for bench in suite.BENCHMARKS}


def chosen(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of some names: "engine.ig", a suite's name, "quick" or "all"."""
    found: dict[str, Benchmark] = {}
    for name in names:
        here = [b for b in ALL.values() if name in (b.name, b.suite, "all") or (name == "quick" and b.quick)]
        if not here:
            raise SystemExit(f"bench: no benchmark or suite called {name!r}; python -m bench list shows them")
        found |= {b.name: b for b in here}
    return list(found.values())
