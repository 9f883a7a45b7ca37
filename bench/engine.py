"""Suite `engine`: every neuron at the price of asking.

Ours runs through the public way: `open_engine` and the pieces that methods use, or `nl.attribute` as a whole. Plain
inference is the floor, the plain method of plain.py the baseline. The plain side runs on a model object of its own with
the same weights, and every turn has other prompts, so that nothing can be remembered from the turn before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.common.statistics import spearman
from neuronllm.engine import open_engine
from neuronllm.engine.quadrature import TOLERANCES, quadrature

from . import plain
from .fixture import DENSE_GPU, GPU, OBJECTIVE, Bench, bar_for
from .harness import Bar, Benchmark, Case, Check, Choice, Comparison, Limit, Setup, Side, relative
from .hybrids import ig_hybrid
from .shapes import twin

STEPS = 16
CACHED = "prefix cached by hand"
SAMPLE, FEW = 2000, 16  # neurons of a model whose effects are compared in rank, and in value
TRIED = 512  # neurons whose effects at all positions are measured: as many as four times 64 of each role


def ig(setup: Setup) -> Case:
    """Integrated gradients of all neurons, 16 steps."""
    bench = Bench(setup)
    alphas, weights = quadrature("midpoint", STEPS)
    many = min(16, bench.count) if setup.device == "cpu" else bench.count

    def by_engine(prompts: list[nl.Prompt], engine: Any = None) -> Tensor:
        return (engine or bench.engine).integrate(prompts, OBJECTIVE, alphas, weights)

    layers, n_layers = bench.shape.sampled_layers, bench.shape.config["num_hidden_layers"]

    def by_hand(ids: Tensor, options: Tensor, answers: Tensor) -> Tensor:
        return plain.integrated_gradients(bench.plain, ids, options, answers, STEPS, layers)

    def on_prefix(ids: Tensor, options: Tensor, answers: Tensor) -> Tensor:
        return plain.integrated_gradients(bench.plain, ids, options, answers, STEPS, cached=True)

    def of_layers(prompts: list[nl.Prompt], engine: Any = None) -> Tensor:
        scores = by_engine(prompts, engine)
        return scores.unflatten(1, (n_layers, -1))[:, layers].flatten(1) if layers else scores

    def check() -> list[Check]:
        found = bench.agreement(f"IG, {STEPS} steps", of_layers, by_hand, count=1)
        if bench.shape.moe:  # no plain way through a mixture of experts is pinned
            return found
        return found + bench.agreement(f"IG, {STEPS} steps, {CACHED}", by_engine, on_prefix, count=1 if layers else 2)

    def to(tolerance: float) -> Callable[[list[nl.Prompt]], Tensor]:
        return lambda prompts: bench.engine.integrate_to(prompts, OBJECTIVE, tolerance)

    batched = bench.ours(f"ours, {many} prompts", by_engine, many)
    to_tolerance = {
        100 * tolerance: bench.ours(f"{rule}, {many} prompts", to(tolerance), many)
        for rule, tolerance in TOLERANCES.items()
    }
    share = len(layers) / n_layers if layers else 1
    ours = [bench.ours("ours", by_engine, 1, times=5), batched, *to_tolerance.values()]
    plainly = bench.by_hand("plain", by_hand, 1, work=share, every=2 if layers else 1)
    kept = bench.by_hand(CACHED, on_prefix, 1, times=1 if layers else 3)
    sides = ours if bench.shape.moe else [plainly, kept, *ours]
    gpu = {shape: Bar("<=", 2.5) for shape in DENSE_GPU} | {"qwen3-30b-a3b": Bar("<=", 3.0)}
    cpu = {"small 1": Bar(">=", 60), "small 2": Bar(">=", 45)}
    bench.case.sides, bench.case.check = [*sides, bench.best_inference(many)], check
    bench.case.views = [
        Comparison("IG, 16 steps", "plain IG", "plain", "ours", bar=bar_for(setup, cpu)),
        Comparison("IG, 16 steps", f"plain IG, {CACHED}", CACHED, "ours"),
        Comparison(f"IG, 16 steps, {many} prompts at once", "plain IG", "plain", batched.name),
        Comparison(
            f"IG, 16 steps, {many} prompts at once",
            "inference",
            "inference",
            batched.name,
            "cost",
            bar=bar_for(setup, gpu),
        ),
        *(
            Comparison(f"IG to {percent:.0f} %, {many} prompts at once", "16 steps", batched.name, side.name, "cost")
            for percent, side in to_tolerance.items()
        ),
    ]
    bench.case.rounds, bench.case.peaks = 3, [side.name for side in sides if not (layers and side is plainly)]
    bench.case.settings = bench.settings(steps=STEPS, quadrature="midpoint")
    bench.case.notes = [
        "Plain IG: one prompt; per layer one full forward and backward with all alphas in a batch",
        f"Inference: {many} prompts, no_grad, sdpa, logits of the last position, no cache, its best batch size",
    ]
    if layers:
        bench.case.notes.append(
            f"Plain IG: timed on layers {' and '.join(map(str, layers))} of {n_layers}, quoted for all"
        )
    return bench.case


def exact(setup: Setup) -> Case:
    """Silencing effects of all neurons, each really run."""
    bench = Bench(setup, prompts=1, dense=True)
    n = bench.anatomy.n_neurons
    order = torch.randperm(n, generator=torch.Generator().manual_seed(setup.seed))
    sample = order[: bench.shape.sampled_neurons] if bench.shape.sampled_neurons else None
    done = n if sample is None else len(sample)

    def ours(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.effects(prompts, OBJECTIVE, ids=sample)

    def candidate(batch: int, cached: bool = False) -> Side:
        count = min(n, max(batch, 128 if cached else 16))

        def inputs(turn: int) -> tuple[Any, ...]:
            asked = bench.tensors(turn, 1)
            neurons = _addresses(bench, order.roll(-turn * count)[:count])
            return *asked, neurons, batch, plain.once(bench.plain, *asked, cached)

        return Side(f"batch {batch}", inputs, partial(plain.effects, bench.plain), work=count, times=2)

    loop = Choice("plain", [candidate(size) for size in bench.shape.copies])
    kept = Choice(CACHED, [candidate(size, cached=True) for size in bench.shape.rows])
    bench.case.sides = [loop, kept, bench.ours("ours", ours, 1, work=done)]
    bench.case.check = partial(_check_effects, bench, order, ours)
    bar = bar_for(setup, {"small": Bar(">=", 150)})
    bench.case.views = [
        Comparison("silencing effects of all neurons", "plain loop", "plain", "ours", bar=bar),
        Comparison("silencing effects of all neurons", f"plain loop, {CACHED}", CACHED, "ours"),
    ]
    if setup.shape in DENSE_GPU:
        bench.case.views.append(Limit("silencing effects of all neurons of a prompt", "ours", n, Bar("<=", 15)))
    bench.case.unit, bench.case.peaks = "neuron", ["ours"]
    bench.case.settings = bench.settings(sample=min(SAMPLE, n))
    bench.case.notes = [
        "Plain loop: timed on a sample of neurons at its best batch size, quoted per neuron; the clean answer and the "
        "keys and values of the prefix, needed once a prompt, are at hand and not in its time; ours has all in it"
    ]
    if sample is not None:
        bench.case.notes.append(f"Ours: timed on {done:,} neurons of all layers")
    return bench.case


def exact_everywhere(setup: Setup) -> Case:
    """Silencing effects of some neurons at all positions, each really run."""
    bench = Bench(setup, prompts=1, dense=True)
    order = torch.randperm(bench.anatomy.n_neurons, generator=torch.Generator().manual_seed(setup.seed))

    def ours(prompts: list[nl.Prompt], ids: Tensor = order[:TRIED]) -> Tensor:
        return bench.engine.effects(prompts, OBJECTIVE, ids=ids, positions="all")

    def by_hand(turn: int, ids: Tensor, batch: int) -> tuple[Any, ...]:
        asked = bench.tensors(turn, 1)
        return *asked, _addresses(bench, ids), batch, plain.once(bench.plain, *asked), True

    def candidate(batch: int) -> Side:
        count = max(batch, FEW)
        inputs = lambda turn: by_hand(turn, order.roll(-turn * count)[:count], batch)  # noqa: E731
        return Side(f"batch {batch}", inputs, partial(plain.effects, bench.plain), work=count)

    def check() -> list[Check]:
        few = order[:FEW]
        right = plain.effects(bench.plain, *by_hand(1, few, FEW))[None]
        off = relative(ours(bench.prompts(1, 1), few), right)
        return [Check("effects at all positions: relative difference from the plain loop", off, 1e-2)]

    bench.case.sides = [
        Choice("plain", [candidate(size) for size in bench.shape.copies]),
        bench.ours("ours", ours, 1, work=len(order[:TRIED])),
    ]
    bench.case.check = check
    bench.case.views = [Comparison("silencing effects at all positions", "plain loop", "plain", "ours")]
    bench.case.unit, bench.case.peaks, bench.case.rounds = "neuron", ["ours"], 3
    bench.case.settings = bench.settings(neurons_tried=TRIED)
    return bench.case


def _addresses(bench: Bench, ids: Tensor) -> list[tuple[int, int]]:
    layers, _, indices = bench.anatomy.locate(ids)
    return list(zip(layers.tolist(), indices.tolist(), strict=True))


def _check_effects(bench: Bench, order: Tensor, ours: Any) -> list[Check]:
    """The sweep and the plain loops beside the reference engine; in the type that is timed, ranks beside a wider one.

    An effect is a small difference of large numbers: beside float64 ours may be off by twice what the loops are. A
    model in less than float32 is compared in float32, where the loops are the plain way.
    """
    prompts = bench.prompts(0, 1)
    found = ours(prompts).cpu()  # of all neurons, or of the first in this order
    more = order[: min(SAMPLE, found.shape[1])]
    few = more[:FEW]
    found = found[:, more] if found.shape[1] == len(order) else found[:, : len(more)]
    single = bench.single()
    plain_model, asked, neurons = twin(single), bench.tensors(0, 1), _addresses(bench, few)
    loops = [
        plain.effects(plain_model, *asked, neurons, FEW, plain.once(plain_model, *asked, cached))[None].cpu()
        for cached in (False, True)
    ]
    wider = torch.float64 if single is bench.model else None

    def judge(ids: Tensor, backend: str = "fast") -> Tensor:  # the engine, a wide copy of the weights, ends with it
        with open_engine(single, bench.anatomy, prompts, backend, dtype=wider) as engine:
            return engine.effects(prompts, OBJECTIVE, ids=ids).cpu()

    truth = judge(more)
    same = spearman(*(effects[0].double().numpy() for effects in (found, truth)))
    ranks = Check("effects: Spearman with the wider type", same, 0.99, at_least=True)
    if wider is None:
        off = max(relative(truth[:, : len(few)], loop) for loop in loops)
        return [Check("effects in float32: relative difference from the plain loops", off, 1e-2), ranks]
    right = judge(few, "reference")
    off, near = max(relative(loop, right) for loop in loops), relative(found[:, : len(few)], right)
    return [
        Check("plain loops: relative difference from float64", off, 1e-2),
        Check("effects: relative difference from float64", near, max(1e-3, 2 * off)),
        ranks,
    ]


def _first_order(bench: Bench, what: str, bar: Bar | None, positions: str = "answer") -> Case:
    """Gradient times activation against inference of the same prompts, and against the same by hand."""
    count, everywhere = bench.count, positions == "all"

    def by_engine(prompts: list[nl.Prompt], engine: Any = None) -> Tensor:
        return (engine or bench.engine).gradients(prompts, OBJECTIVE, positions=positions)

    def whole(prompts: list[nl.Prompt]) -> Tensor:
        return nl.attribute(bench.model, None, prompts, "gradient", positions=positions, progress=False).values

    def plainly(batch: int, cached: bool) -> Any:
        def run(ids: Tensor, options: Tensor, answers: Tensor) -> Tensor:
            return plain.gradient(bench.plain, ids, options, answers, batch, everywhere, cached)

        return run

    def by_hand(name: str, cached: bool = False) -> Choice:
        """At the best batch size, on sixteen prompts or as many as that takes."""
        sizes = sorted({min(size, count) for size in bench.shape.batches})
        return Choice(name, [tried(size, min(count, max(size, 16)), cached) for size in sizes])

    def tried(size: int, some: int, cached: bool) -> Side:
        return bench.by_hand(f"batch {size}", plainly(size, cached), some, every=2)

    def check() -> list[Check]:
        few = min(8, count)
        found = bench.agreement(what, by_engine, plainly(few, False), count=few)
        if everywhere or bench.shape.moe:
            return found
        return found + bench.agreement(f"{what}, {CACHED}", by_engine, plainly(few, True), count=few)

    sides: list[Side | Choice] = [bench.best_inference(), bench.ours("ours", by_engine, count)]
    sides.append(bench.ours("nl.attribute", whole, count, times=2, every=2))
    if not bench.shape.moe:
        sides += [by_hand("plain"), *([] if everywhere else [by_hand(CACHED, cached=True)])]
    bench.case.sides, bench.case.check = sides, check
    bench.case.views = [
        Comparison(what, "inference", "inference", "ours", "cost", bar=bar),
        Comparison(f"{what}, all of nl.attribute", "inference", "inference", "nl.attribute", "cost"),
        Comparison(what, "plain gradient", "plain", "ours"),
        Comparison(what, f"plain gradient, {CACHED}", CACHED, "ours"),
    ]
    bench.case.rounds, bench.case.settings = 5, bench.settings(positions=positions)
    bench.case.notes = ["Inference: no_grad, sdpa, logits of the last position, no cache, its best batch size"]
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


ONE_SHAPES = ("small", "smollm2-135m")


def _one_prompt(setup: Setup, what: str, method: str, plainly: Any, *, to_inference: Bar, to_plain: Bar) -> Case:
    """One prompt by `nl.attribute`: the first call on a model, which checks it, and those that follow."""
    bench = Bench(setup, prompts=1)

    def call(prompts: list[nl.Prompt], model: Any = bench.model, backend: str = "fast") -> Tensor:
        more: dict[str, Any] = {"positions": "answer", "progress": False, "backend": backend}
        return nl.attribute(model, None, prompts, method, objective=OBJECTIVE, **more).values

    def new(turn: int) -> tuple[Any, ...]:
        return bench.prompts(turn, 1), twin(bench.model)  # on the same weights, but nothing is known of it

    def check() -> list[Check]:
        return bench.agreement(what, lambda prompts, _=None: call(prompts)[None], plainly(bench), count=1)

    bench.case.sides = [
        bench.inference("inference", 1, 1),
        bench.by_hand("plain", plainly(bench), 1, every=2),
        bench.ours("reference", partial(call, backend="reference"), 1, every=2),
        Side("first call", new, call, times=3),
        bench.ours("second call", call, 1, times=5),
    ]
    bench.case.check = check
    one = f"{what} of one prompt"
    bench.case.views = [
        Comparison(f"{one}, {ours}", against, baseline, ours, kind, bar=bar_for(setup, bars))
        for ours, bars in (
            ("first call", [{}, {}, {}]),
            (
                "second call",
                [{"small 1": to_inference}, {"small 1": to_plain}, dict.fromkeys(ONE_SHAPES, Bar(">=", 1))],
            ),
        )
        for (against, baseline, kind), bars in zip(
            (
                ("inference", "inference", "cost"),
                ("the plain way", "plain", "speed-up"),
                ("the reference engine", "reference", "speed-up"),
            ),
            bars,
            strict=True,
        )
    ]
    bench.case.rounds, bench.case.settings = 3, bench.settings(method=method)
    bench.case.notes = [
        "All of nl.attribute; its first call on a model object runs the self-check, what follows on it does not"
    ]
    return bench.case


def one_gradient(setup: Setup) -> Case:
    """Gradient times activation of one prompt, call by call."""

    def plainly(bench: Bench) -> Any:
        return lambda ids, options, answers: plain.gradient(bench.plain, ids, options, answers, 1)

    bars = {"to_inference": Bar("<=", 1.8), "to_plain": Bar(">=", 1)}
    return _one_prompt(setup, "grad x act", "gradient", plainly, **bars)


def one_ig(setup: Setup) -> Case:
    """Integrated gradients of one prompt, call by call."""

    def plainly(bench: Bench) -> Any:
        return lambda ids, options, answers: plain.integrated_gradients(bench.plain, ids, options, answers, STEPS)

    bars = {"to_inference": Bar("<=", 3.5), "to_plain": Bar(">=", 50)}
    return _one_prompt(setup, f"IG, {STEPS} steps,", "ace", plainly, **bars)


ON_CPU_AND_GPU = {"cpu": ("small",), "cuda": GPU}
BOTH: dict[str, Any] = {"threads": (1, 2)}
BENCHMARKS = [
    Benchmark("engine.ig", "integrated gradients of all neurons", ig, ON_CPU_AND_GPU, **BOTH),
    Benchmark("engine.ig_hybrid", "integrated gradients of a hybrid", ig_hybrid, {"cpu": ("small-hybrid",)}),
    Benchmark(
        "engine.exact", "silencing effects of all neurons", exact, {"cpu": ("small",), "cuda": DENSE_GPU}, **BOTH
    ),
    Benchmark(
        "engine.exact_everywhere",
        "silencing effects at all positions",
        exact_everywhere,
        {"cpu": ("small",)},
        quick=False,
        **BOTH,
    ),
    Benchmark("engine.gradient", "grad x act at the answer position", gradient, ON_CPU_AND_GPU, **BOTH),
    Benchmark("engine.gradient_shared", "grad x act with shared prefixes", gradient_shared, ON_CPU_AND_GPU, **BOTH),
    Benchmark("engine.one_gradient", "grad x act of one prompt, call by call", one_gradient, {"cpu": ONE_SHAPES}),
    Benchmark("engine.one_ig", "integrated gradients of one prompt, call by call", one_ig, {"cpu": ("small",)}),
    Benchmark("engine.everywhere", "grad x act at all positions", everywhere, ON_CPU_AND_GPU, quick=False, **BOTH),
]
