"""The launches that are compiled ahead of time: every op with every entry of its configs.json, in every variant."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product
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


def contrastive_ce() -> Iterator[Launch]:
    from neuronllm.kernels.contrastive_ce import kernel

    def run(dtype: torch.dtype, options: int, forms: int, objective: str, bias: bool, softcap: float | None) -> Any:
        hidden, weight = torch.empty(4, 4096, dtype=dtype), torch.empty(32000, 4096, dtype=dtype)
        ids, right = torch.zeros(4, options, forms, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
        extra = torch.empty(32000, dtype=dtype) if bias else None
        kernel.normaliser_gradient = lambda hidden, *_: hidden.float()  # PyTorch's part is not compiled
        return kernel.contrastive_ce(hidden, weight, ids, right, extra, objective, 1.0, softcap)

    variants = [
        (4, 1, "logp_options", False, None),
        (4, 2, "margin", True, 30.0),
        (10, 2, "p_options", False, None),
        (26, 1, "logp_options", True, None),
        (4, 2, "logp_vocab", False, None),
        (4, 1, "p_vocab", True, 30.0),
    ]
    for device, table in tables("contrastive_ce"):
        for dtype in (name for name in DTYPES if name in table):
            for variant in variants if dtype == "bfloat16" else variants[1:5:3]:
                name = " ".join(str(part) for part in variant)
                call = with_table(table, lambda d=dtype, v=variant: run(DTYPES[d], *v))
                yield f"{device} {dtype} {name}", call


def branch_attention() -> Iterator[Launch]:
    from neuronllm.kernels.branch_attention import kernel

    def run(
        dtype: torch.dtype, backward: bool, nodes: int, widths: tuple[int, int], heads: int, levels: int, more: bool
    ) -> Any:
        groups, rows, (width, width_v) = 4, 64, widths
        query = torch.empty(2, heads * groups, rows, width, dtype=dtype)
        key, value = (
            torch.empty(2, groups, rows, width, dtype=dtype),
            torch.empty(2, groups, rows, width_v, dtype=dtype),
        )
        one = torch.ones(2, dtype=torch.int64)
        prefix = [
            [torch.empty(2, groups, 96, width, dtype=dtype)] * levels,
            [torch.empty(2, groups, 96, width_v, dtype=dtype)] * levels,
            *[[one] * levels] * 3,
        ]
        seen = torch.ones(2, nodes, nodes, dtype=torch.bool) if nodes > 1 else None
        rest = (*prefix, one, width**-0.5, 50.0 if more else None, 1024 if more else None, seen)
        if not backward:
            return kernel.branch_attention(query, key, value, *rest, torch.empty(heads * groups) if more else None)
        out = torch.empty(2, heads * groups, rows, width_v, dtype=dtype)
        return kernel.backward(out, out, torch.empty(2, heads * groups, rows), query, key, value, *rest)

    variants = [((128, 128), 8, 3, True), ((64, 64), 1, 1, False), ((256, 192), 2, 2, True)]
    for device, table in tables("branch_attention"):
        for dtype, backward, nodes in product(("bfloat16", "float16"), (False, True), (1, 8)):
            for variant in variants if dtype == "bfloat16" else variants[1:2]:
                kind = f"{'backward-' if backward else ''}{dtype}-{max(variant[0])}{'-trees' if nodes > 1 else ''}"
                call = with_table(table, lambda d=dtype, b=backward, n=nodes, v=variant: run(DTYPES[d], b, n, *v))
                yield f"{device} {kind} {variant}", call


def score_gemm() -> Iterator[Launch]:
    from neuronllm.kernels.score_gemm import kernel

    lengths, width, neurons = torch.tensor([100, 3]), 4096, 11008

    def run(dtype: torch.dtype, act: str, layout: str, weights: bool, each: bool) -> Any:
        grad, weight = torch.empty(103, width, dtype=dtype), torch.empty(width, neurons, dtype=dtype)
        gate = torch.empty(103, 2 * neurons if layout == "fused" else neurons, dtype=dtype)
        up = gate if layout in ("separate", "transposed") else None
        if layout == "transposed":
            weight = torch.empty(neurons, width, dtype=dtype).T
        factor = torch.ones(103 if each else 2, neurons) if weights else None
        return kernel.score_gemm(grad, weight, gate, up, None, None if each else lengths, factor, act, each)

    variants = [
        ("silu", "separate", False, False),
        ("gelu_erf", "fused", True, True),
        ("identity", "no gate", True, True),
        ("relu2", "transposed", True, False),
    ]
    for device, table in tables("score_gemm"):
        for dtype in (name for name in DTYPES if name in table):
            for variant in variants if dtype == "bfloat16" else variants[:2]:
                name = " ".join(str(part) for part in variant)
                yield f"{device} {dtype} {name}", with_table(table, lambda d=dtype, v=variant: run(DTYPES[d], *v))


OPS = {
    "branch_attention": branch_attention,
    "contrastive_ce": contrastive_ce,
    "glu_score": glu_score,
    "score_gemm": score_gemm,
}
