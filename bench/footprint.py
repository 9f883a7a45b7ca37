"""Peak memory: of answer-only methods beside inference of the same batch, and beside the plan's own estimate.

Inference is shown twice: as the model is called by default, which returns the keys and values of every token, and
without that cache. Answer-only methods need the keys and values too, so the first is the bar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

import neuronllm as nl
from neuronllm.engine import open_engine
from neuronllm.engine.quadrature import quadrature
from neuronllm.model.anatomy import Anatomy

from . import plain
from .fixture import GPU, OBJECTIVE, Bench
from .harness import Bar, Benchmark, Case, Check, Comparison, Setup, Side
from .shapes import SHAPES, random_model, random_prompts

STEPS = 16
PEAK = "peak above the weights"  # what a plan calls it


def memory(setup: Setup) -> Case:
    """Peak memory of one batch."""
    count = 16 if setup.device == "cpu" else SHAPES[setup.shape].prompts
    bench = Bench(setup, prompts=count, batch_size=count)
    engine, rule = bench.engine, quadrature("midpoint", STEPS)

    def gradient(prompts: list[nl.Prompt], engine: Any = engine, positions: str = "answer") -> Tensor:
        return engine.gradients(prompts, OBJECTIVE, positions=positions)

    def by_hand(ids: Tensor, options: Tensor, answers: Tensor, everywhere: bool = False) -> Tensor:
        return plain.gradient(bench.plain, ids, options, answers, count, everywhere)

    def integrate(prompts: list[nl.Prompt], engine: Any = engine) -> Tensor:
        return engine.integrate(prompts, OBJECTIVE, *rule)

    def check() -> list[Check]:
        few = min(8, count)
        found = bench.agreement("grad x act", gradient, by_hand, count=few)
        everywhere = partial(gradient, positions="all"), partial(by_hand, everywhere=True)
        found += bench.agreement("grad x act, all positions", *everywhere, count=few)
        return found + bench.agreement(f"IG, {STEPS} steps", integrate, partial(_integral, bench), count=1)

    sides = [
        bench.inference("inference, with cache", count, count, use_cache=True),
        bench.inference("inference without cache", count, count),
        bench.ours("gradient", gradient, count),
        bench.ours("IG", integrate, count),
        bench.ours("all positions", partial(gradient, positions="all"), count),
    ]
    if setup.device == "cpu":  # the whole graph of a large model fits on no device
        sides.append(bench.by_hand("plain, all positions", partial(by_hand, everywhere=True), count))
    bench.case.sides, bench.case.check, bench.case.timed = [*sides], check, False
    bench.case.peaks = [side.name for side in sides]
    cost = partial(Comparison, kind="cost", of="peak")
    bench.case.views = [
        cost("grad x act", "inference, with cache", "inference, with cache", "gradient", bar=Bar("<=", 1.15)),
        cost("grad x act", "inference without cache", "inference without cache", "gradient"),
        cost("IG, 16 steps", "inference, with cache", "inference, with cache", "IG", bar=Bar("<=", 1.15)),
        cost("grad x act, all positions", "plain", "plain, all positions", "all positions"),
    ]
    bench.case.settings = bench.settings(batch=count)
    return bench.case


def _integral(bench: Bench, ids: Tensor, options: Tensor, answers: Tensor) -> Tensor:
    return plain.integrated_gradients(bench.plain, ids, options, answers, STEPS, cached=True)


Work = Callable[[Any, Sequence[nl.Prompt]], Tensor]


def _runs(tokens: int) -> list[tuple[str, int, int, Work]]:
    """What is estimated: name, prompts, tokens of a prompt, work."""
    rule = quadrature("midpoint", STEPS)
    return [
        ("gradient", 64, tokens, lambda engine, some: engine.gradients(some, OBJECTIVE)),
        ("gradient, long prompts", 16, 4 * tokens, lambda engine, some: engine.gradients(some, OBJECTIVE)),
        ("all positions", 32, tokens, lambda engine, some: engine.gradients(some, OBJECTIVE, positions="all")),
        ("IG, 16 steps", 32, tokens, lambda engine, some: engine.integrate(some, OBJECTIVE, *rule)),
        ("effects", 2, tokens, lambda engine, some: engine.effects(some, OBJECTIVE)),
    ]


def estimate(setup: Setup) -> Case:
    """The memory that a plan foresees beside the measured peak of the run."""
    shape = SHAPES[setup.shape]
    model = random_model(shape, setup.device, setup.seed)
    anatomy = Anatomy.of(model)
    runs, estimates = _runs(shape.tokens), {}
    case = Case(sides=[], check=list, views=[], timed=False, peaks=[name for name, *_ in runs])
    held: list[Any] = [model]  # emptied when memory is measured elsewhere

    def planned(turn: int, count: int, tokens: int, work: Work) -> tuple[Any, ...]:
        """An engine whose plan is made for these prompts, and the prompts."""
        prompts = random_prompts(replace(shape, tokens=tokens), count, setup.seed + 1 + turn)
        engine = case.stack.enter_context(open_engine(held[0], anatomy, prompts))
        engine.fit(lambda some: work(engine, some), prompts, always=True)
        return engine, prompts

    def foresee() -> list[Check]:
        for name, count, tokens, work in runs:
            engine, _ = planned(0, count, tokens, work)
            estimates[name] = engine.plan.estimate[PEAK]
        held.clear()
        return []

    def facts(peaks: dict[str, int]) -> dict[str, Any]:
        rows = []
        for name, count, tokens, _ in runs:
            share = estimates[name] / peaks[name] if name in peaks else None
            verdict = "n/a" if share is None else f"0.75x to 1.25x, {'met' if 0.75 <= share <= 1.25 else 'not met'}"
            rows.append([name, f"{count} of {tokens} tokens", estimates[name], peaks.get(name), share, verdict])
        kinds = {"run": "text", "prompts": "text", "estimate": "size", "measured": "size", "of it": "ratio"}
        return {"columns": kinds | {"bar": "text"}, "rows": rows}

    for name, count, tokens, work in runs:
        inputs = partial(planned, count=count, tokens=tokens, work=work)
        case.sides.append(Side(name, inputs, work, work=count))
    case.check, case.facts = foresee, facts
    case.settings = {"model": str(shape), "neurons": anatomy.n_neurons}
    case.notes = ["The estimate comes from trials with one and two prompts, made before the start"]
    return case


BENCHMARKS = [
    Benchmark("engine.memory", "peak memory of a batch", memory, {"cpu": ("small",), "cuda": GPU}, quick=False),
    Benchmark(
        "engine.estimate",
        "estimated and measured peak memory",
        estimate,
        {"cpu": ("small",), "cuda": GPU[:1]},
        quick=False,
    ),
]
