"""The launches that are compiled ahead of time: every op with every entry of its configs.json, in every variant."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuronllm.kernels.launch import forced

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
Launch = tuple[str, Callable[[], Any]]  # a name that can be recorded, and the call
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def tables(op: str) -> Iterator[tuple[str, dict[str, dict[str, int]]]]:
    """The tables of configs.json by device, "default" first."""
    found = json.loads((KERNELS / op / "configs.json").read_text(encoding="utf-8"))
    yield from ((name, table) for name, table in found.items() if name != "wins")


def with_table(table: dict[str, dict[str, int]], call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with forced(table):
            return call()

    return run


def glu_score() -> Iterator[Launch]:
    from neuronllm.kernels.glu_score import kernel

    lengths, width = torch.tensor([100, 3]), 11008

    def run(dtype: torch.dtype, act: str, layout: str, split: bool, gradients: bool, weights: bool, into: bool) -> Any:
        x: Tensor = torch.zeros(103, width, dtype=dtype)
        gate, up = (torch.zeros(103, 2 * width, dtype=dtype), None) if layout == "fused" else (x, x)
        w = torch.ones(2, width) if weights else None
        sums = torch.zeros(2 if split else 1, width) if into else None
        return kernel.glu_score(
            gate, None if layout == "no gate" else up, x, None, lengths, w, act, split, gradients, sums
        )

    variants = [
        ("silu", "separate", False, True, False, False),
        ("silu", "fused", True, True, True, True),
        ("silu", "separate", True, True, True, False),
        ("identity", "no gate", False, False, False, True),
        *((act, "separate", True, True, False, False) for act in ("gelu_tanh", "gelu_erf", "relu", "relu2")),
    ]
    for device, table in tables("glu_score"):
        for dtype in (name for name in DTYPES if name in table):
            for variant in variants if dtype == "bfloat16" else variants[:3]:
                name = " ".join(str(part) for part in variant)
                yield f"{device} {dtype} {name}", with_table(table, lambda d=dtype, v=variant: run(DTYPES[d], *v))


OPS = {"glu_score": glu_score}
