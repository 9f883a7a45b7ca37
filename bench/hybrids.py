"""Hybrid models of suite `engine`: states of linear attention beside keys and values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

import neuronllm as nl
from neuronllm.engine.quadrature import quadrature

from . import plain
from .fixture import OBJECTIVE, Bench
from .harness import Bar, Case, Comparison, Setup

STEPS = 16


def ig_hybrid(setup: Setup) -> Case:
    """Integrated gradients of a hybrid, and what they hold in memory beside those of a dense model of its size."""
    bench = Bench(setup)
    dense = Bench(replace(setup, shape="small"), prompts=bench.count)
    alphas, weights = quadrature("midpoint", STEPS)

    def by_engine(prompts: list[nl.Prompt], engine: Any = None) -> Tensor:
        return (engine or bench.engine).integrate(prompts, OBJECTIVE, alphas, weights)

    def of_dense(prompts: list[nl.Prompt]) -> Tensor:
        return dense.engine.integrate(prompts, OBJECTIVE, alphas, weights)

    def by_hand(ids: Tensor, options: Tensor, answers: Tensor) -> Tensor:
        return plain.integrated_gradients(bench.plain, ids, options, answers, STEPS)

    many = bench.ours("ours, 16 prompts", by_engine, 16)
    beside = dense.ours("ours, a dense model, 16 prompts", of_dense, 16)
    bench.case.sides = [bench.by_hand("plain", by_hand, 1), bench.ours("ours", by_engine, 1, times=5), many, beside]
    bench.case.check = lambda: bench.agreement(f"IG, {STEPS} steps", by_engine, by_hand, count=1)
    bench.case.views = [
        Comparison("IG, 16 steps", "plain IG", "plain", "ours", bar=Bar(">=", 20)),
        Comparison("IG, 16 steps, 16 prompts at once", "plain IG", "plain", many.name),
        Comparison("IG, 16 steps, 16 prompts at once", "a dense model of its size", beside.name, many.name, "cost"),
    ]
    bench.case.stack.push(dense.case.stack.pop_all())
    bench.case.rounds, bench.case.peaks = 3, [many.name, beside.name]
    bench.case.settings = bench.settings(steps=STEPS, quadrature="midpoint")
    bench.case.notes = ["Plain IG: one prompt; per layer one full forward and backward with all alphas in a batch"]
    return bench.case
