"""Suite `peers`: the same attribution with other libraries and with QRNCA's public code.

Same model, same prompts, same objective, and the same numbers out, which is checked for every one of them before
anything is timed. Each runs on a model object of its own that shares the weights. Libraries that are not installed are
named with what the import said; the others are timed all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

import neuronllm as nl
from neuronllm.common.env import package_version
from neuronllm.engine.quadrature import quadrature

from . import plain, plain_texts
from .engine import CACHED
from .fixture import OBJECTIVE, Bench, bar_for
from .harness import Bar, Benchmark, CannotRun, Case, Check, Comparison, Setup, Side, View, relative
from .peers_by_hand import qrnca_scores
from .peers_lm_eval import LmEval
from .peers_tools import GRADIENT, IG, PEERS, TEXTS, Peer, installed
from .shapes import SHAPES, twin
from .texts import SHAPE as TEXT_SHAPE
from .texts import SMALL_BATCH, TextBench

STEPS = 16
PROMPTS = 16  # of grad x act: one batch on all sides
INSTALL = "pip install -c constraints.txt -e '.[peers]'"
LIMIT = 1e-4
NO_MORE_MEMORY = {"small": Bar("<=", 1.0)}
Way = Callable[..., Tensor]


def gradient(setup: Setup) -> Case:
    """Gradient times activation of all neurons at the answer position, sixteen prompts in one batch."""
    here, missing = peers_here()
    bench = Bench(setup, prompts=min(PROMPTS, SHAPES[setup.shape].prompts), dense=True)

    def ours(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.gradients(prompts, OBJECTIVE)

    ways = {peer.name: peer(twin(bench.model)).gradient for peer in here}
    ways[CACHED] = partial(plain.gradient, bench.plain, batch=bench.count, cached=True)
    bars = bar_for(setup, {"small": Bar(">=", 1.5)})
    beside(bench, f"{GRADIENT}, {bench.count} prompts", ours, ways, bars)
    bench.case.rounds, bench.case.facts = 5, partial(told, here, missing, GRADIENT)
    bench.case.settings = bench.settings(positions="answer")
    bench.case.notes = ["All prompts in one batch on every side; one backward pass for all layers"]
    return bench.case


def ig(setup: Setup) -> Case:
    """Integrated gradients of all neurons of one prompt, 16 steps."""
    here, missing = peers_here()
    bench = Bench(setup, prompts=1, dense=True)
    rule = quadrature("midpoint", STEPS)

    def ours(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.integrate(prompts, OBJECTIVE, *rule)

    def way(peer: type[Peer]) -> Way:
        return partial(peer(twin(bench.model)).integrated_gradients, steps=STEPS)

    bars = bar_for(setup, {"small": Bar(">=", 10)})
    ways = {peer.name: way(peer) for peer in here}
    ways[CACHED] = partial(plain.integrated_gradients, bench.plain, steps=STEPS, cached=True)
    beside(bench, f"{IG}, {STEPS} steps, one prompt", ours, ways, bars)
    bench.case.rounds, bench.case.facts = 3, partial(told, here, missing, IG)
    bench.case.settings = bench.settings(steps=STEPS, quadrature="midpoint")
    bench.case.notes = [
        "One prompt on every side; of the others each layer is a forward and backward pass with all steps in a batch",
        "None of them keeps what the steps share, the keys and values of the tokens before the answer; what that is "
        f"worth shows the row {CACHED!r}: PyTorch hooks and a Hugging Face cache, no library",
    ]
    return bench.case


def qrnca(setup: Setup) -> Case:
    """The scores that QRNCA's public code computes: its integral and its target, 16 steps, one prompt."""
    bench = Bench(setup, prompts=1, dense=True)
    model, name = twin(bench.model), "QRNCA's code"

    def ours(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.integrate(prompts, "p_vocab", *quadrature("endpoints", STEPS))

    def by_hand(ids: Tensor, options: Tensor, answers: Tensor) -> Tensor:
        return qrnca_scores(model, ids, options.gather(1, answers[:, None])[:, 0], STEPS)

    bars = bar_for(setup, {"small": Bar(">=", 10)})
    beside(bench, f"QRNCA's integral, {STEPS} steps, one prompt", ours, {name: by_hand}, bars)
    bench.case.rounds = 3
    bench.case.settings = bench.settings(steps=STEPS, quadrature="endpoints") | {"objective": "p_vocab"}
    bench.case.notes = [
        "Target and integral of that code: the probability of the right letter over the vocabulary, both ends included",
        "QRNCA's code: its steps written anew (`bench/peers_by_hand.py`), with frozen parameters and all steps of a "
        "layer in one batch; every layer starts with a clean pass of its own; logits of all positions and the cache "
        "are computed",
    ]
    return bench.case


def texts(setup: Setup) -> Case:
    """Gradient times activation over the tokens of answers in words."""
    return _texts(setup, everywhere=False, bar=6)


def texts_everywhere(setup: Setup) -> Case:
    """Gradient times activation at all positions of questions with answers in words."""
    return _texts(setup, everywhere=True, bar=3)


def _texts(setup: Setup, everywhere: bool, bar: float) -> Case:
    here, missing = peers_here((*PEERS, LmEval))
    bench = TextBench(setup, prompts=SMALL_BATCH, dense=True)
    positions = "all" if everywhere else "answer"

    def ours(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.gradients(prompts, OBJECTIVE, positions=positions)

    ways = {peer.name: partial(peer(twin(bench.model)).texts, everywhere=everywhere) for peer in here}
    if not everywhere:
        ways[CACHED] = partial(plain_texts.gradient, bench.plain, batch=bench.count, cached=True)
    bars = bar_for(setup, {TEXT_SHAPE: Bar(">=", bar)})
    beside(bench, f"{TEXTS}, {positions}, {bench.count} prompts", ours, ways, bars)
    bench.case.rounds, bench.case.facts = 5, partial(told, here, missing, TEXTS)
    bench.case.settings = bench.settings(positions=positions, answer_tokens=bench.shape.answer_tokens)
    bench.case.notes = [
        "All prompts in one batch on every side; of the others every option is a sequence of its own, and one backward "
        "pass goes through all layers",
        "inseq (0.7) is not among them: it attributes one written token to one layer at a time, and no number over "
        "several sequences",
    ]
    return bench.case


def peers_here(peers: Sequence[type[Peer]] = PEERS) -> tuple[list[type[Peer]], dict[str, str]]:
    """The installed libraries, and why each of the others is missing."""
    here, missing = installed(peers)
    if not here:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in missing.items())
        raise CannotRun(f"nothing to compare with: {reasons}; {INSTALL}")
    return here, missing


def beside(bench: Bench, what: str, ours: Callable[..., Tensor], ways: dict[str, Way], bar: Bar | None) -> None:
    """Sides, check and views of a case: every way against ours, in time and in memory."""

    def check() -> list[Check]:
        found = ours(bench.prompts(1, bench.count))  # not those that the engine was opened with
        tensors = bench.tensors(1, bench.count)
        return [
            Check(f"{what}: relative difference between ours and {name}", relative(found, way(*tensors)), LIMIT)
            for name, way in ways.items()
        ]

    sides: list[Side] = [bench.by_hand(name, way, bench.count) for name, way in ways.items()]
    sides.append(bench.ours("ours", ours, bench.count, times=3))
    less = bar_for(bench.setup, NO_MORE_MEMORY)
    bars = {name: (None, None) if name == CACHED else (bar, less) for name in ways}  # bars are set for libraries
    views: list[View] = [Comparison(what, name, name, "ours", bar=bars[name][0]) for name in ways]
    views += [Comparison(what, name, name, "ours", "cost", "peak", bars[name][1]) for name in ways]
    bench.case.sides, bench.case.check, bench.case.views = [*sides], check, views
    bench.case.peaks = [side.name for side in sides]


def told(here: list[type[Peer]], missing: dict[str, str], method: str, peaks: dict[str, int]) -> dict[str, Any]:
    """A table of the libraries: version or why it is missing, and what one misses there for a method."""
    rows = [[peer.name, package_version(peer.package), peer.lacks[method]] for peer in here]
    rows += [[name, "not installed", f"{reason}; {INSTALL}"] for name, reason in missing.items()]
    return {"columns": {"library": "text", "version": "text", "what it lacks for this": "text"}, "rows": rows}


ON_CPU = {"cpu": ("small",)}
TEXTS_ON_CPU = {"cpu": (TEXT_SHAPE,)}
BENCHMARKS = [
    Benchmark("peers.gradient", "grad x act with other libraries", gradient, ON_CPU, quick=False),
    Benchmark("peers.ig", "integrated gradients with other libraries", ig, ON_CPU, quick=False),
    Benchmark("peers.qrnca", "integrated gradients as QRNCA's code does them", qrnca, ON_CPU, quick=False),
    Benchmark("peers.texts", "grad x act over answers in words with other libraries", texts, TEXTS_ON_CPU, quick=False),
    Benchmark(
        "peers.texts_everywhere",
        "grad x act at all positions, answers in words, with other libraries",
        texts_everywhere,
        TEXTS_ON_CPU,
        quick=False,
    ),
]
