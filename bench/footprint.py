"""Peak memory: of answer-only methods beside inference of the same batch, and beside the plan's own estimate.

Inference is shown twice: as the model is called by default, which returns the keys and values of every token, and
without that cache. Answer-only methods need the keys and values too, so the first is the bar.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

import neuronllm as nl
from neuronllm.anatomy import Anatomy
from neuronllm.engine.batching import Plan, make_plan
from neuronllm.engine.quadrature import quadrature

from . import plain
from .fixture import GPU, OBJECTIVE, Bench
from .harness import Bar, Benchmark, Case, Check, Comparison, Setup, Side
from .shapes import SHAPES, random_model, random_prompts

STEPS = 16


def memory(setup: Setup) -> Case:
    """Peak memory of one batch."""
    count = 16 if setup.device == "cpu" else SHAPES[setup.shape].prompts
    bench = Bench(setup, prompts=count, batch_size=count)
    engine, rule = bench.engine, quadrature("midpoint", STEPS)

    def gradient(prompts: list[nl.Prompt], engine: Any = engine, positions: str = "answer") -> Tensor:
        return engine.gradients(prompts, OBJECTIVE, positions=positions)

    def by_hand(ids: Tensor, options: Tensor, answers: Tensor, everywhere: bool = False) -> Tensor:
        return plain.gradient(bench.plain, ids, options, answers, count, everywhere)

    def check() -> list[Check]:
        return bench.agreement("grad x act", gradient, by_hand, count=min(8, count))

    sides = [
        bench.inference("inference", count, count, use_cache=True),
        bench.inference("inference without cache", count, count),
        bench.ours("gradient", gradient, count),
        bench.ours("IG", lambda prompts: engine.integrate(prompts, OBJECTIVE, *rule), count),
        bench.ours("all positions", partial(gradient, positions="all"), count),
    ]
    if setup.device == "cpu":  # the whole graph of a large model fits on no device
        sides.append(bench.by_hand("plain, all positions", partial(by_hand, everywhere=True), count))
    bench.case.sides, bench.case.check, bench.case.timed = [*sides], check, False
    bench.case.peaks = [side.name for side in sides]
    cost = partial(Comparison, kind="cost", of="peak")
    bench.case.views = [
        cost("grad x act", "inference", "inference", "gradient", bar=Bar("<=", 1.15)),
        cost("grad x act", "inference without cache", "inference without cache", "gradient"),
        cost("IG, 16 steps", "inference", "inference", "IG"),
        cost("grad x act, all positions", "plain", "plain, all positions", "all positions"),
    ]
    bench.case.settings = bench.settings(batch=count)
    return bench.case


# What is run, how many prompts, of how many tokens; on a GPU twice the tokens and the same prompts.
RUNS: list[tuple[str, dict[str, Any], int, int]] = [
    ("gradient", {"method": "gradient"}, 64, 120),
    ("gradient, long prompts", {"method": "gradient"}, 8, 480),
    ("gradient, all positions", {"method": "gradient", "positions": "all"}, 32, 120),
    ("ace", {"method": "ace"}, 16, 120),
    ("exact", {"method": "exact"}, 1, 120),
]


def estimate(setup: Setup) -> Case:
    """The memory estimate of a plan beside the measured peak of the run."""
    shape = SHAPES[setup.shape]
    model = random_model(shape, setup.device, setup.seed)
    anatomy = Anatomy.of(model)
    longer = max(1, shape.tokens // 120) if shape.tokens >= 120 else shape.tokens / 120
    sizes = [(name, asked, count, max(4, int(tokens * longer))) for name, asked, count, tokens in RUNS]
    plans: dict[str, Plan] = {}
    sides = []
    for name, asked, count, tokens in sizes:
        prompts = random_prompts(shape, count, setup.seed + 1, tokens)
        plans[name] = make_plan(model, anatomy, prompts)
        run = partial(nl.attribute, model, None, prompts, progress=False, **asked)
        sides.append(Side(name, lambda turn: (), run, work=count))

    def facts(peaks: dict[str, int]) -> dict[str, Any]:
        """Estimates are taken from the plan as it stands; a plan without one leaves n/a."""
        rows = []
        for name, asked, count, tokens in sizes:
            value = estimated(plans[name], asked)
            near = None if value is None or name not in peaks else value / peaks[name]
            rows.append([name, f"{count} x {tokens} tokens", value, peaks.get(name), near])
        columns = {"run": "text", "prompts": "text", "estimate": "size", "measured": "size", "of it": "ratio"}
        return {"columns": columns, "rows": rows}

    case = Case(sides=[*sides], check=list, views=[], timed=False, peaks=[side.name for side in sides], facts=facts)
    case.settings = {"model": str(shape), "neurons": anatomy.n_neurons, "plans": {n: str(p) for n, p in plans.items()}}
    return case


def estimated(plan: Plan, asked: dict[str, Any]) -> int | None:
    """The peak that a plan foresees; None if it foresees nothing."""
    return sum(plan.estimate.values()) if plan.estimate else None


BENCHMARKS = [
    Benchmark("engine.memory", "peak memory of a batch", memory, {"cpu": ("small",), "cuda": GPU}),
    Benchmark("engine.estimate", "estimated and measured peak memory", estimate, {"cpu": ("small",), "cuda": GPU[:1]}),
]
