"""Stage: both ends of 1e9 scores beside one read of them and beside torch.topk."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.harness import clocked
from bench.select import ARRAYS, Array, floor, made, topk_twice
from neuronllm.select import cuda, extremes

from .diagnosis import differences
from .worker import Case, Setting, Skipped, Wrong

ROUNDS, LARGE, TOY = 5, ("1e9", "1e9-bf16"), ("tiny",)


def cases(setting: Setting) -> list[Case]:
    names = TOY if setting.pretend else LARGE
    return [Case(str(ARRAYS[name]), lambda name=name: ends(ARRAYS[name], setting)) for name in names]


def ends(array: Array, setting: Setting) -> dict[str, Any]:
    if not setting.pretend and (reason := cuda.refusal()):
        raise Skipped(reason)
    x = made(array, 0, setting.device)
    backend = "torch" if setting.pretend else "cuda"
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: extremes(x, array.k, array.k, backend=backend),
        "read": lambda: floor(x, 1) if x.is_cuda else x.max(),
        "topk": lambda: topk_twice(x, array.k),
    }
    _check(sides["ours"](), sides["topk"](), x)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, call in sides.items():
            times[name].append(clocked(call, 1, setting.device))
    middle = {name: statistics.median(found) for name, found in times.items()}
    reads, faster = middle["ours"] / middle["read"], middle["topk"] / middle["ours"]
    rate = x.numel() * x.element_size() / middle["ours"]
    figures = {"seconds": times, "ours over a read": reads, "topk over ours": faster, "bytes a second": rate}
    return figures | {"line": f"{array.dtype}: {reads:.2f}x a read, {faster:.1f}x faster than torch.topk"}


def _check(found: Any, other: Any, x: Tensor) -> None:
    for end, right in zip((found.largest, found.smallest), other, strict=True):
        if not torch.equal(end.values, right.values) or not torch.equal(x[end.indices], end.values):
            raise Wrong(f"not what torch.topk finds\n{differences(end.values, right.values)}")
