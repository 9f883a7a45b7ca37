"""Suite `engine`: every neuron at the price of asking.

Ours runs through the public way: `open_engine` and the pieces that methods use, or `nl.attribute` as a whole. Plain
inference is the floor, the plain method of plain.py the baseline. The plain side runs on a model object of its own with
the same weights, and every turn has other prompts, so that nothing can be remembered from the turn before.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.engine import open_engine
from neuronllm.engine.quadrature import quadrature

from . import plain
from .fixture import DENSE_GPU, GPU, OBJECTIVE, Bench, bar_for, spearman
from .harness import Bar, Benchmark, Case, Check, Choice, Comparison, Limit, Setup, Side, relative
from .shapes import twin

STEPS = 16
SAMPLE = 2000  # neurons of a model whose effects are compared in rank


def ig(setup: Setup) -> Case:
    """Integrated gradients of all neurons, 16 steps."""
    bench = Bench(setup)
    alphas, weights = quadrature("midpoint", STEPS)
    many = min(16, bench.count) if setup.device == "cpu" else bench.count

    def ours(turn: int, count: int = 1) -> Tensor:
        return bench.engine.integrate(bench.prompts(turn, count), OBJECTIVE, alphas, weights)

    def by_hand(turn: int) -> Tensor:
        return plain.integrated_gradients(bench.plain, *bench.tensors(turn, 1), STEPS)

    def judged(engine: Any) -> Tensor:
        return engine.integrate(bench.prompts(0, 1), OBJECTIVE, alphas, weights)

    def check() -> list[Check]:
        return bench.agreement(f"IG, {STEPS} steps", ours(0), partial(by_hand, 0), judged)

    batched = Side(f"ours, {many} prompts", partial(ours, count=many), work=many)
    floor = bench.inference(many, many)
    sides: list[Side | Choice] = [Side("plain", by_hand), Side("ours", ours, times=5), batched, floor]
    if bench.shape.moe:  # no plain way through a mixture of experts is pinned
        del sides[0]
    gpu = {shape: Bar("<=", 2.5) for shape in DENSE_GPU} | {"qwen3-30b-a3b": Bar("<=", 3.0)}
    cpu = {"small 1": Bar(">=", 60), "small 2": Bar(">=", 45)}
    views = [
        Comparison("IG, 16 steps; plain IG", "plain", "ours", bar=bar_for(setup, cpu)),
        Comparison(f"IG, 16 steps, {many} prompts at once; plain IG", "plain", batched.name),
        Comparison("IG, 16 steps; inference", floor.name, batched.name, "cost", bar=bar_for(setup, gpu)),
    ]
    bench.case.sides, bench.case.check, bench.case.views = sides, check, views
    bench.case.rounds = 2
    bench.case.peaks = [side.name for side in sides if isinstance(side, Side)]
    bench.case.settings = bench.settings(steps=STEPS, quadrature="midpoint")
    bench.case.notes = ["plain IG: one prompt; per layer one full forward and backward with all alphas in a batch"]
    return bench.case


def exact(setup: Setup) -> Case:
    """Silencing effects of all neurons, each really run."""
    bench = Bench(setup, prompts=1)
    n = bench.anatomy.n_neurons
    order = torch.randperm(n, generator=torch.Generator().manual_seed(setup.seed))

    def ours(turn: int) -> Tensor:
        return bench.engine.effects(bench.prompts(turn, 1), OBJECTIVE)

    def by_hand(turn: int, batch: int, count: int) -> Tensor:
        some = _addresses(bench, order.roll(-turn * count)[:count])
        return plain.effects(bench.plain, *bench.tensors(turn, 1), some, batch)

    def candidate(batch: int) -> Side:
        count = min(n, max(batch, 16))
        return Side(f"batch {batch}", partial(by_hand, batch=batch, count=count), work=count, times=2)

    bars = {"small": Bar(">=", 150)}
    bench.case.sides = [Choice("plain", [candidate(size) for size in bench.shape.copies]), Side("ours", ours, work=n)]
    bench.case.check = partial(_check_effects, bench, order)
    bench.case.views = [Comparison("silencing effects; plain loop", "plain", "ours", bar=bar_for(setup, bars))]
    if setup.shape in DENSE_GPU:
        bench.case.sides.append(Side("a prompt", ours))
        bench.case.views.append(Limit("silencing effects of all neurons, a prompt", "a prompt", Bar("<=", 15)))
    bench.case.unit, bench.case.rounds, bench.case.peaks = "neuron", 3, ["ours"]
    bench.case.settings = bench.settings(sample=min(SAMPLE, n))
    bench.case.notes = ["plain loop: timed on a sample of neurons at its best batch size, quoted per neuron"]
    return bench.case


def _addresses(bench: Bench, ids: Tensor) -> list[tuple[int, int]]:
    layers, _, indices = bench.anatomy.locate(ids)
    return list(zip(layers.tolist(), indices.tolist(), strict=True))


def _check_effects(bench: Bench, order: Tensor) -> list[Check]:
    """The sweep in float32 against the plain loop; and in the type that is timed, by ranks against a wider one."""
    prompts, few, more = bench.prompts(0, 1), order[:64], order[:SAMPLE]
    found = bench.engine.effects(prompts, OBJECTIVE).cpu()[:, more]
    single = bench.single()
    with open_engine(single, bench.anatomy, prompts) as engine:
        truth = engine.effects(prompts, OBJECTIVE, ids=more).cpu()
    by_hand = plain.effects(twin(single), *bench.tensors(0, 1), _addresses(bench, few), 16)[None]
    if single is bench.model:
        with open_engine(single, bench.anatomy, prompts, dtype=torch.float64) as engine:
            truth = engine.effects(prompts, OBJECTIVE, ids=more).cpu()
        by_hand, near = by_hand.cpu(), found[:, : len(few)]
    else:
        near = truth[:, : len(few)]
    return [
        Check("effects in float32: relative difference from the plain loop", relative(near, by_hand), 1e-3),
        Check("effects: Spearman with the wider type", spearman(found[0], truth[0]), 0.99, at_least=True),
    ]


def _first_order(bench: Bench, what: str, bar: Bar | None, positions: str = "answer") -> Case:
    """Gradient times activation against inference of the same prompts, and against the same by hand."""
    count, everywhere = bench.count, positions == "all"

    def ours(turn: int, n: int = count) -> Tensor:
        return bench.engine.gradients(bench.prompts(turn, n), OBJECTIVE, positions=positions)

    def whole(turn: int) -> Tensor:
        options: dict[str, Any] = {"method": "gradient", "positions": positions, "progress": False}
        return nl.attribute(bench.model, None, bench.prompts(turn, count), **options).values

    def by_hand(turn: int, n: int = count) -> Tensor:
        batch = min(8, n) if bench.setup.device == "cpu" else n
        return plain.gradient(bench.plain, *bench.tensors(turn, n), batch, everywhere)

    def check() -> list[Check]:
        few = min(8, count)

        def judged(engine: Any) -> Tensor:
            return engine.gradients(bench.prompts(0, few), OBJECTIVE, positions=positions)

        return bench.agreement(what, ours(0, few), partial(by_hand, 0, few), judged)

    sides: list[Side | Choice] = [bench.best_inference(), Side("ours", ours, work=count)]
    sides += [Side("nl.attribute", whole, work=count)]
    if not bench.shape.moe:
        sides.append(Side("plain", by_hand, work=count, every=3))
    bench.case.sides, bench.case.check = sides, check
    bench.case.views = [
        Comparison(f"{what}; inference", "inference", "ours", "cost", bar=bar),
        Comparison(f"{what}, all of nl.attribute; inference", "inference", "nl.attribute", "cost"),
        Comparison(f"{what}; plain gradient", "plain", "ours"),
    ]
    bench.case.settings = bench.settings(positions=positions)
    bench.case.notes = ["inference: no_grad, sdpa, logits of the last position, no cache, its best batch size"]
    return bench.case


def gradient(setup: Setup) -> Case:
    """Gradient times activation of all neurons at the answer position."""
    bars = {"small": Bar("<=", 1.10)} | {shape: Bar("<=", 1.05) for shape in GPU}
    return _first_order(Bench(setup), "grad x act", bar_for(setup, bars))


def gradient_shared(setup: Setup) -> Case:
    """The same, of four variants of each question: half of every prompt common to all, a sixth to a question's."""
    bench = Bench(setup, shared=True)
    return _first_order(bench, "grad x act, shared prefixes", bar_for(setup, {"small": Bar("<=", 0.5)}))


def everywhere(setup: Setup) -> Case:
    """Gradient times activation summed over all positions."""
    return _first_order(Bench(setup), "grad x act, all positions", bar_for(setup, {"small": Bar("<=", 2.4)}), "all")


ON_CPU_AND_GPU = {"cpu": ("small",), "cuda": GPU}
BENCHMARKS = [
    Benchmark("engine.ig", "integrated gradients of all neurons", ig, ON_CPU_AND_GPU),
    Benchmark("engine.exact", "silencing effects of all neurons", exact, {"cpu": ("small",), "cuda": DENSE_GPU}),
    Benchmark("engine.gradient", "grad x act at the answer position", gradient, ON_CPU_AND_GPU),
    Benchmark("engine.gradient_shared", "grad x act with shared prefixes", gradient_shared, ON_CPU_AND_GPU),
    Benchmark("engine.everywhere", "grad x act at all positions", everywhere, ON_CPU_AND_GPU),
]
