"""Stage: every kernel at the shapes of Llama-2-7B beside a copy of as many bytes, eager PyTorch and torch.compile.

The comparisons with torch.compile come last, since they take it longest. With no GPU the sizes are toys.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from bench.harness import Setup
from bench.kernels import WORKS, Work, checks
from bench.tuning import inputs_of, seconds

from .worker import Case, Setting, Skipped, Wrong


def cases(setting: Setting) -> list[Case]:
    setup = Setup(setting.device, 1, "toy" if setting.pretend else "llama-2-7b")
    works = [(op, work) for op, some in WORKS.items() for work in some]
    named = [(work.__name__, lambda work=work: work(setup)) for _, work in works]
    eager = [
        Case(f"{name}, eager", lambda name=name, make=make: beside_eager(name, make(), setup)) for name, make in named
    ]
    compiled = [
        Case(f"{name}, compiled", lambda name=name, make=make: beside_compiled(name, make(), setup))
        for name, make in named
    ]
    return [*eager, *compiled]


def beside_eager(name: str, work: Work, setup: Setup) -> dict[str, Any]:
    given = inputs_of(work, setup)
    wrong = [check for check in checks(given, work) if not check.fine]
    if wrong:
        raise Wrong("; ".join(f"{c.what}: {c.value:.2e}, limit {c.limit:.2e}" for c in wrong))
    half = torch.empty(max(1, work.moved // 2), dtype=torch.uint8, device=setup.device)
    target, few = torch.empty_like(half), setup.device == "cpu"
    figures = beside(work, given, {"copy": lambda: target.copy_(half), "eager": lambda: work.eager(*given)}, few)
    share, faster = figures["copy over ours"], figures["eager over ours"]
    figures |= {"bytes": work.moved, "sizes": work.settings, "bytes a second": work.moved / figures["ours"]}
    return figures | {"line": f"{name} {share:.2f} of a copy, {faster:.2f}x eager"}


def beside_compiled(name: str, work: Work, setup: Setup) -> dict[str, Any]:
    if setup.device == "cpu":
        fused: Callable[..., Any] = work.eager  # torch.compile would take a C++ compiler, and minutes
    else:
        fused = torch.compile(work.eager, dynamic=False)
    given = inputs_of(work, setup)
    start = time.monotonic()
    fused(*given)
    figures = beside(work, given, {"compiled": lambda: fused(*given)}, setup.device == "cpu")
    figures["compiling"] = time.monotonic() - start
    return figures | {"line": f"{name} {figures['compiled over ours']:.2f}x torch.compile"}


def beside(work: Work, given: Any, others: dict[str, Callable[[], Any]], few: bool) -> dict[str, Any]:
    """Median seconds of a call of ours and of others, and their ratios to ours."""
    if work.moved <= 0:
        raise Skipped("nothing is moved at this size")
    ours = seconds(lambda: work.ours(*given), few)
    found = {name: seconds(call, few) for name, call in others.items()}
    return {"ours": ours} | found | {f"{name} over ours": took / ours for name, took in found.items()}
