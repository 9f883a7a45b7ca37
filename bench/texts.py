"""Suite `texts`: answers in words over one tree of tokens, beside whoever asks every option as a sequence of its own.

The floor is plain batched inference of all sequences, with the logits of the answers' tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.engine.asking import Asker
from neuronllm.engine.quadrature import quadrature
from neuronllm.engine.vocabulary import NUMBERS

from . import plain_texts as plain
from .engine import CACHED, STEPS
from .fixture import OBJECTIVE, Bench, bar_for
from .harness import Bar, Benchmark, Case, Check, Choice, Comparison, Setup, Side, relative

SHAPE = "small-32k"
SMALL_BATCH = 4  # prompts, 16 sequences
COPIES = 224  # of a prompt in a pass, about


class TextBench(Bench):
    """Prompts whose options are texts of several tokens."""

    def tensors(self, turn: int, count: int, tokens: int | None = None) -> tuple[plain.Asked]:  # type: ignore[override]
        return (plain.tensors(self.prompts(turn, count, tokens), self.setup.device),)

    def floor(self, count: int | None = None) -> Choice:
        """Inference of all sequences at the best batch size."""
        count = count or self.count

        def of(batch: int) -> Side:
            return self.by_hand(f"batch {batch}", lambda asked: plain.inference(self.plain, asked, batch), count)

        return Choice("inference", [of(size) for size in self.shape.batches])

    def agrees(self, what: str, ours: Callable[..., Tensor], by_hand: Callable[..., Tensor], count: int) -> Check:
        right = by_hand(*self.tensors(1, count))
        off = relative(ours(self.prompts(1, count)), right)
        return Check(f"{what}: relative difference from the plain way", off, 1e-4)


HEAD = "products with the head"


def head(bench: TextBench, copies: int, work: float, gradients: bool) -> Side:
    """What no way can leave out: the later answer tokens of so many copies of a prompt times all rows of the head.

    A later token is read by its probability, so that it takes the logits of the whole vocabulary, and a gradient takes
    them back through the head.
    """
    weight = bench.plain.get_output_embeddings().weight.detach()
    (prompt,) = bench.prompts(0, 1)
    rows = copies * (len(prompt.tree.tokens) - 1)

    def inputs(turn: int) -> tuple[Tensor]:
        return (torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(turn)),)

    def run(states: Tensor) -> Tensor:
        total = torch.zeros_like(states)
        for part in weight.split(max(1, NUMBERS // rows)):
            logits = states @ part.T
            if gradients:
                total += logits @ part
        return total

    return Side(HEAD, inputs, run, work=work)


def _first_order(setup: Setup, what: str, positions: str, bars: dict[str, Bar], to_plain: dict[str, Bar]) -> Case:
    bench, everywhere = TextBench(setup), positions == "all"

    def ours(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.gradients(prompts, OBJECTIVE, positions=positions)

    def by_hand(batch: int, cached: bool = False) -> Any:
        return lambda asked: plain.gradient(bench.plain, asked, batch, everywhere, cached)

    def best(name: str, cached: bool = False) -> Choice:
        sizes = (1, 2, 4, 8)
        return Choice(name, [bench.by_hand(f"batch {n}", by_hand(n, cached), 8, every=2) for n in sizes])

    def check() -> list[Check]:
        found = [bench.agrees(what, ours, by_hand(4), 4)]
        return found if everywhere else [*found, bench.agrees(f"{what}, {CACHED}", ours, by_hand(4, cached=True), 4)]

    bench.case.sides = [bench.floor(), bench.ours("ours", ours, bench.count), best("plain")]
    bench.case.views = [
        Comparison(what, "inference of all sequences", "inference", "ours", "cost", bar=bar_for(setup, bars)),
        Comparison(what, "plain gradient", "plain", "ours", bar=bar_for(setup, to_plain)),
    ]
    if not everywhere:
        bench.case.sides.append(best(CACHED, cached=True))
        bench.case.views.append(Comparison(what, f"plain gradient, {CACHED}", CACHED, "ours"))
    bench.case.check, bench.case.rounds = check, 5
    bench.case.settings = bench.settings(positions=positions, answer_tokens=bench.shape.answer_tokens)
    bench.case.peaks = ["ours"]
    return bench.case


def gradient(setup: Setup) -> Case:
    """Gradient times activation over the tokens of all answers."""
    return _first_order(setup, "grad x act, answers", "answer", {SHAPE: Bar("<=", 0.40)}, {})


def everywhere(setup: Setup) -> Case:
    """Gradient times activation over all positions."""
    bars = {SHAPE: Bar("<=", 0.75)}, {SHAPE: Bar(">=", 3)}
    return _first_order(setup, "grad x act, all positions", "all", *bars)


def ig(setup: Setup) -> Case:
    """Integrated gradients of all neurons over the tokens of all answers."""
    bench = TextBench(setup)
    rule = quadrature("midpoint", STEPS)

    def ours(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.integrate(prompts, OBJECTIVE, *rule)

    def by_hand(asked: plain.Asked, cached: bool = False) -> Tensor:
        return plain.integrated_gradients(bench.plain, asked, STEPS, cached)

    on_prefix = partial(by_hand, cached=True)
    what = f"IG, {STEPS} steps"
    bench.case.sides = [
        bench.by_hand("plain", by_hand, 1, every=2),
        bench.by_hand(CACHED, on_prefix, 1),
        bench.ours("ours", ours, 1, times=2),
        bench.floor(),
        head(bench, STEPS * len(bench.anatomy.blocks), 1, gradients=True),
    ]
    bench.case.check = lambda: [
        bench.agrees(what, ours, by_hand, 1),
        bench.agrees(f"{what}, {CACHED}", ours, on_prefix, 1),
    ]
    bench.case.views = [
        Comparison(what, "plain IG", "plain", "ours", bar=bar_for(setup, {SHAPE: Bar(">=", 15)})),
        Comparison(what, f"plain IG, {CACHED}", CACHED, "ours", bar=bar_for(setup, {SHAPE: Bar(">=", 1.5)})),
        Comparison(what, "inference of all sequences", "inference", "ours", "cost"),
        Comparison(what, f"{HEAD} alone", HEAD, "ours", "cost"),
    ]
    bench.case.rounds, bench.case.settings = 3, bench.settings(steps=STEPS, answer_tokens=bench.shape.answer_tokens)
    bench.case.peaks = ["ours"]
    return bench.case


def exact(setup: Setup) -> Case:
    """Silencing effects of all neurons over the tokens of all answers, each really run."""
    bench = TextBench(setup, prompts=1)
    n, layers = bench.anatomy.n_neurons, bench.anatomy.locate
    order = torch.randperm(n, generator=torch.Generator().manual_seed(setup.seed))

    def ours(prompts: list[nl.Prompt], ids: Tensor | None = None) -> Tensor:
        return bench.engine.effects(prompts, OBJECTIVE, ids=ids)

    def pairs(ids: Tensor) -> list[tuple[int, int]]:
        layer, _, index = layers(ids)
        return list(zip(layer.tolist(), index.tolist(), strict=True))

    def loop(batch: int, cached: bool) -> Side:
        count = max(batch, 32 if cached else 8)

        def inputs(turn: int) -> tuple[Any, ...]:
            (asked,) = bench.tensors(turn, 1)
            return asked, pairs(order.roll(-turn * count)[:count]), batch, plain.once(bench.plain, asked, cached)

        return Side(f"batch {batch}", inputs, partial(plain.effects, bench.plain), work=count, times=2)

    def check() -> list[Check]:
        few = order[:16]
        found = []
        for cached in (False, True):
            (asked,) = bench.tensors(1, 1)
            before = plain.once(bench.plain, asked, cached)
            by_hand = plain.effects(bench.plain, asked, pairs(few), 16, before)[None]
            off = relative(ours(bench.prompts(1, 1), few), by_hand)
            found.append(Check(f"effects{f', {CACHED}' * cached}: relative difference from the plain loop", off, 1e-2))
        return found

    what = "silencing effects of all neurons"
    bench.case.sides = [
        Choice("plain", [loop(size, False) for size in bench.shape.copies]),
        Choice(CACHED, [loop(size, True) for size in bench.shape.rows]),
        bench.ours("ours", ours, 1, work=n),
        head(bench, COPIES, COPIES, gradients=False),
    ]
    bench.case.check = check
    bench.case.views = [
        Comparison(what, "plain loop", "plain", "ours", bar=bar_for(setup, {SHAPE: Bar(">=", 15)})),
        Comparison(what, f"plain loop, {CACHED}", CACHED, "ours", bar=bar_for(setup, {SHAPE: Bar(">=", 1.5)})),
        Comparison(what, f"{HEAD} alone", HEAD, "ours", "cost"),
    ]
    bench.case.unit, bench.case.peaks = "neuron", ["ours"]
    bench.case.settings = bench.settings(answer_tokens=bench.shape.answer_tokens)
    return bench.case


def ask(setup: Setup) -> Case:
    """How the model answers, which evaluation and tuning ask again and again."""
    bench = TextBench(setup)

    def ours(prompts: list[nl.Prompt]) -> Tensor:
        return Asker(bench.model, prompts).scores()

    def by_hand(asked: plain.Asked) -> Tensor:
        logits = plain.inference(bench.plain, asked, 16)
        logp = logits.float().log_softmax(-1).gather(-1, asked.options.flatten(0, 1)[..., None])[..., 0].sum(-1)
        return logp.unflatten(0, asked.options.shape[:2])

    bench.case.sides = [bench.floor(), bench.ours("ours", ours, bench.count, times=2)]
    bench.case.check = lambda: [bench.agrees("scores of options", ours, by_hand, 4)]
    bar = bar_for(setup, {SHAPE: Bar("<=", 0.35)})
    bench.case.views = [
        Comparison("scores of options", "inference of all sequences", "inference", "ours", "cost", bar=bar)
    ]
    bench.case.rounds, bench.case.settings = 5, bench.settings(answer_tokens=bench.shape.answer_tokens)
    return bench.case


def variants(setup: Setup) -> Case:
    """Four variants of each question that share two thirds of their tokens, of which only the mean is wanted."""
    bench = TextBench(setup, shared=True)
    sizes = [4] * (bench.count // 4)

    def together(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.question_gradients(prompts, sizes[: len(prompts) // 4], OBJECTIVE)

    def apart(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.gradients(prompts, OBJECTIVE, positions="all")

    def by_hand(asked: plain.Asked) -> Tensor:
        return plain.gradient(bench.plain, asked, 4, everywhere=True).unflatten(0, (-1, 4)).mean(1)

    what = "grad x act, all positions, mean of four variants"
    bench.case.sides = [
        bench.ours("variants apart", apart, bench.count),
        bench.ours("ours", together, bench.count),
        bench.floor(),
    ]
    bench.case.check = lambda: [bench.agrees(what, together, by_hand, 4)]
    bar = bar_for(setup, {SHAPE: Bar("<=", 0.6)})
    bench.case.views = [
        Comparison(what, "the variants apart", "variants apart", "ours", "cost", bar=bar),
        Comparison(what, "inference of all sequences", "inference", "ours", "cost"),
    ]
    bench.case.rounds, bench.case.settings = 5, bench.settings(answer_tokens=bench.shape.answer_tokens)
    return bench.case


def memory(setup: Setup) -> Case:
    """Peak memory of one batch of scores over the tokens of all answers, beside inference that keeps its cache."""
    bench = TextBench(setup, batch_size=SMALL_BATCH)
    rule = quadrature("midpoint", STEPS)

    def gradient(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.gradients(prompts, OBJECTIVE)

    def integrate(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.integrate(prompts, OBJECTIVE, *rule)

    def run(asked: plain.Asked) -> Tensor:
        with torch.no_grad():
            rows = asked.sequences.flatten(0, 1)
            return bench.plain(rows, logits_to_keep=asked.span, use_cache=True).logits

    cached = "inference, with cache"
    bench.case.sides = [
        bench.by_hand(cached, run, SMALL_BATCH),
        bench.ours("gradient", gradient, SMALL_BATCH),
        bench.ours("IG", integrate, SMALL_BATCH),
    ]
    bench.case.check = lambda: [
        bench.agrees("grad x act, answers", gradient, lambda asked: plain.gradient(bench.plain, asked, 4), SMALL_BATCH)
    ]
    bar = Bar("<=", 1.15)
    bench.case.views = [
        Comparison(f"{what}, answers", cached, cached, side, "cost", of="peak", bar=bar)
        for what, side in (("grad x act", "gradient"), (f"IG, {STEPS} steps", "IG"))
    ]
    bench.case.rounds, bench.case.peaks = 1, [cached, "gradient", "IG"]
    bench.case.settings = bench.settings(answer_tokens=bench.shape.answer_tokens, batch=SMALL_BATCH)
    return bench.case


SHAPES: dict[str, Any] = {"shapes": {"cpu": (SHAPE,)}, "threads": (1, 2), "quick": False}
BENCHMARKS = [
    Benchmark("texts.gradient", "grad x act over the tokens of answers in words", gradient, **SHAPES),
    Benchmark("texts.everywhere", "grad x act at all positions, answers in words", everywhere, **SHAPES),
    Benchmark("texts.ig", "integrated gradients over answers in words", ig, **SHAPES),
    Benchmark("texts.exact", "silencing effects over answers in words", exact, **SHAPES),
    Benchmark("texts.ask", "how a model answers in words", ask, **SHAPES),
    Benchmark("texts.variants", "the mean over a question's variants, answers in words", variants, **SHAPES),
    Benchmark("texts.memory", "peak memory, answers in words", memory, {"cpu": (SHAPE, "small-128k")}, quick=False),
]
