"""Which benchmarks there are.

A new one is a file with a list BENCHMARKS, named here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neuronllm.common.errors import InputError

from . import (
    end_to_end,
    engine,
    footprint,
    integrals,
    kernels,
    learning,
    methods,
    peers,
    quality,
    scaling,
    select,
    strongest,
    texts,
)
from .harness import Benchmark
from .shapes import SHAPES

FILES = (
    engine,
    integrals,
    strongest,
    texts,
    learning,
    methods,
    footprint,
    kernels,
    peers,
    scaling,
    select,
    end_to_end,
    quality,
)
ALL: dict[str, Benchmark] = {bench.name: bench for file in FILES for bench in file.BENCHMARKS}


def chosen(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of some names: "engine.ig", a suite's name, "quick" or "all"."""
    found: dict[str, Benchmark] = {}
    for name in names:
        here = [b for b in ALL.values() if name in (b.name, b.suite, "all") or (name == "quick" and b.quick)]
        if not here:
            raise InputError(f"no benchmark or suite called {name!r}; list shows them")
        found |= {b.name: b for b in here}
    return list(found.values())


def one(name: str) -> Benchmark:
    """The benchmark of a name.

    >>> one("engine.ig").suite
    'engine'
    """
    if name not in ALL:
        raise InputError(f"no benchmark called {name!r}; list shows them")
    return ALL[name]


def shapes_for(bench: Benchmark) -> set[str]:
    """What a benchmark can take: what it lists, and all models or all arrays where it lists one of them.

    >>> "toy" in shapes_for(one("engine.ig")), "toy" in shapes_for(one("select.million"))
    (True, False)
    """
    listed = {shape for some in bench.shapes.values() for shape in some}
    kinds = [known.keys() for known in (SHAPES, select.ARRAYS) if listed & known.keys()]
    return listed.union(*kinds)


def check_shapes(benches: Iterable[Benchmark], names: Iterable[str]) -> None:
    """Refuse what is unknown, and what one of the benchmarks cannot take."""
    known = set().union(*map(shapes_for, ALL.values()))
    benches = list(benches)
    for name in names:
        if name not in known:
            raise InputError(f"--shape {name}: known are {', '.join(sorted(known))}")
        for bench in benches:
            if name not in (taken := shapes_for(bench)):
                raise InputError(f"--shape {name}: {bench.name} takes {', '.join(sorted(taken))} only")
