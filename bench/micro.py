"""Micro-benchmarks: single steps on small inputs, timed by pytest-benchmark, to be compared between two commits.

    python -m pytest bench/micro.py --benchmark-autosave      writes .benchmarks/<machine>/<number>_<commit>_<date>.json
    python -m pytest bench/micro.py --benchmark-compare       beside what was written last

Nothing collects them but their name on a command line. Each one holds its result to the plain one first; then it runs
on one thread, on other inputs in every round, all of them drawn from seeds. They say whether a step has become slower,
not how fast neuronllm is: that is what the suites measure at real shapes, beside a baseline in the same run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import neuronllm as nl
from neuronllm import ops
from neuronllm.engine.asking import Asker, Edit
from neuronllm.engine.quadrature import quadrature
from neuronllm.model.anatomy import Anatomy
from neuronllm.model.sites import Site
from neuronllm.select import Stream, extremes, extremes_rows

from . import kernels, plain
from .fixture import OBJECTIVE, Bench
from .harness import Setup, relative

SETUP = Setup(shape="narrow")  # 4 layers of width 128: what is not the model's own work shows
PROMPTS = 16
STEPS = 16
LARGE, K = 10**6, 1000
NEURONS_7B = (32, 11_008)  # layers and width of a 7 B model


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    found = Bench(SETUP, prompts=PROMPTS)
    with found.case.stack:
        yield found


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    """Prompts of which half is common to all, and a sixth more to the four variants of a question."""
    found = Bench(SETUP, prompts=PROMPTS, shared=True)
    with found.case.stack:
        yield found


def timed(benchmark: Any, run: Callable[..., Any], inputs: Callable[[int], tuple[Any, ...]], rounds: int) -> None:
    """Time run(*inputs(turn)), a turn a round; the making of the inputs is not timed."""
    turns = itertools.count(1)
    benchmark.pedantic(run, setup=lambda: (inputs(next(turns)), {}), rounds=rounds, warmup_rounds=2)


# ---- the engine ----


def test_gradient(benchmark: Any, bench: Bench) -> None:
    """Gradient times activation at the answer, of prompts that share nothing."""
    _first_order(benchmark, bench, rounds=30)


def test_gradient_shared(benchmark: Any, shared: Bench) -> None:
    """The same through the tree of shared prefixes."""
    _first_order(benchmark, shared, rounds=30)


def test_gradient_all_positions(benchmark: Any, bench: Bench) -> None:
    """Gradient times activation, summed over all positions."""
    _first_order(benchmark, bench, rounds=15, positions="all")


def _first_order(benchmark: Any, bench: Bench, rounds: int, positions: str = "answer") -> None:
    def run(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.gradients(prompts, OBJECTIVE, positions=positions)

    right = plain.gradient(bench.plain, *bench.tensors(0, PROMPTS), PROMPTS, positions == "all")
    assert relative(run(bench.prompts(0, PROMPTS)), right) < 1e-4
    timed(benchmark, run, lambda turn: (bench.prompts(turn, PROMPTS),), rounds)


def test_integrated_gradients(benchmark: Any, bench: Bench) -> None:
    """Integrated gradients of all neurons at the answer."""

    def run(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.integrate(prompts, OBJECTIVE, *quadrature("midpoint", STEPS))

    right = plain.integrated_gradients(bench.plain, *bench.tensors(0, 2), STEPS)
    assert relative(run(bench.prompts(0, 2)), right) < 1e-4
    timed(benchmark, run, lambda turn: (bench.prompts(turn, PROMPTS),), rounds=15)


def test_exact(benchmark: Any, bench: Bench) -> None:
    """Silencing effects of all neurons for one prompt."""

    def run(prompts: list[nl.Prompt]) -> Tensor:
        return bench.engine.effects(prompts, OBJECTIVE)

    some = torch.arange(0, bench.anatomy.n_neurons, 41)
    layers, _, indices = bench.anatomy.locate(some)
    neurons = list(zip(layers.tolist(), indices.tolist(), strict=True))
    asked = bench.tensors(0, 1)
    right = plain.effects(bench.plain, *asked, neurons, 16, plain.once(bench.plain, *asked))
    assert relative(run(bench.prompts(0, 1))[:, some], right[None]) < 1e-3
    timed(benchmark, run, lambda turn: (bench.prompts(turn, 1),), rounds=15)


def test_asking(benchmark: Any, shared: Bench) -> None:
    """Option probabilities of prompts with shared prefixes, under an edit of 100 neurons."""
    neurons = torch.arange(0, shared.anatomy.n_neurons, shared.anatomy.n_neurons // 100)[:100]
    change = Edit(neurons, torch.full((len(neurons),), 0.5))

    def run(ask: Asker, change: Edit | None) -> Tensor:
        return ask.logprobs(change)

    def asked(turn: int) -> Asker:
        ask = Asker(shared.model, shared.prompts(turn, PROMPTS))
        ask()  # the first time it tries whether the tree may be used
        return ask

    ids, options, _ = shared.tensors(0, PROMPTS)
    right = plain.inference(shared.plain, ids, PROMPTS).gather(1, options).log_softmax(-1)
    assert relative(run(asked(0), None).exp(), right.exp()) < 1e-4
    assert not torch.equal(run(asked(0), change), run(asked(0), None))
    timed(benchmark, run, lambda turn: (asked(turn), change), rounds=30)


# ---- selection ----


def numbers(turn: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(turn))


def test_select_extremes(benchmark: Any) -> None:
    """Both ends of a million numbers."""

    def run(x: Tensor) -> Any:
        return extremes(x, K, K, threads=1)

    x = numbers(0, LARGE)
    found = run(x)
    assert torch.equal(found.largest.values, x.topk(K).values)
    assert torch.equal(found.smallest.values, x.topk(K, largest=False).values)
    timed(benchmark, run, lambda turn: (numbers(turn, LARGE),), rounds=50)


def test_select_rows(benchmark: Any) -> None:
    """Both ends of each of a hundred rows of ten thousand."""

    def run(x: Tensor) -> Any:
        return extremes_rows(x, 100, 100, threads=1)

    x = numbers(0, 100, LARGE // 100)
    assert torch.equal(run(x).largest.values, x.topk(100).values)
    timed(benchmark, run, lambda turn: (numbers(turn, 100, LARGE // 100),), rounds=50)


def test_select_stream(benchmark: Any) -> None:
    """Both ends of a million numbers that come in sixteen parts."""

    def run(parts: list[Tensor]) -> Any:
        stream, start = Stream(K, torch.float32, threads=1), 0
        for part in parts:
            stream.push(part, start)
            start += len(part)
        return stream.result()

    x = numbers(0, LARGE)
    assert torch.equal(run(list(x.chunk(16))).largest.indices, extremes(x, K).largest.indices)
    timed(benchmark, run, lambda turn: (list(numbers(turn, LARGE).chunk(16)),), rounds=50)


# ---- ops, as PyTorch runs them ----


@pytest.mark.parametrize("op", ["glu_score", "contrastive_many"])
def test_op(benchmark: Any, op: str) -> None:
    """An op of neuronllm.ops on the inputs of the suite `kernels`, at the width of the shape small."""
    work = getattr(kernels, op)(Setup(shape="small"))
    with ops.using("torch"):
        torch.manual_seed(0)
        assert all(check.fine for check in kernels.checks(work.inputs(), work))

        def inputs(turn: int) -> tuple[Any, ...]:
            torch.manual_seed(turn)
            return work.inputs()

        timed(benchmark, work.ours, inputs, rounds=10 if op == "glu_score" else 50)


# ---- before and after ----


def test_render(benchmark: Any) -> None:
    """Prompts of 64 questions in all rotations, by the tokenizer of the bundled model."""
    from transformers import AutoTokenizer

    import neuronllm.demo

    tokenizer = AutoTokenizer.from_pretrained(Path(neuronllm.demo.__file__).with_name("model"))
    questions = nl.load_questions(nl.demo_task("facts", "search"), limit=64)

    def run(some: list[Any]) -> Any:
        return nl.render(tokenizer, some, orders="rotate")

    prompts = run(questions)
    assert [p.order[p.answer] for p in prompts] == [q.answer for q in questions for _ in q.choices]
    timed(benchmark, run, lambda turn: (questions,), rounds=20)


def scores(turn: int) -> nl.Scores:
    """Scores of all neurons of a 7 B model."""
    layers, width = NEURONS_7B
    sites = tuple(Site(n, -1, width, f"layers.{n}", f"layers.{n}.down", (f"layers.{n}.up",)) for n in range(layers))
    values = numbers(turn, layers * width)
    return nl.Scores(values, values.abs(), values.sigmoid(), Anatomy(sites, "llama"), {"method": "made up"})


def test_find(benchmark: Any) -> None:
    """The thousand best and worst neurons of a 7 B model."""

    def run(given: nl.Scores) -> nl.NeuronSet:
        return given.find(K, K)

    given = scores(0)
    found = run(given)
    assert set(found.ids[found.role == "good"].tolist()) == set(given.values.topk(K).indices.tolist())
    timed(benchmark, run, lambda turn: (scores(turn),), rounds=30)


def test_save(benchmark: Any, tmp_path: Path) -> None:
    """The scores of a 7 B model into a new folder."""
    places = itertools.count()

    def run(given: nl.Scores) -> Path:
        folder = tmp_path / str(next(places))
        given.save(folder)
        return folder

    given = scores(0)
    assert torch.equal(nl.Scores.load(run(given)).values, given.values)
    timed(benchmark, run, lambda turn: (scores(turn),), rounds=10)


def test_load(benchmark: Any, tmp_path: Path) -> None:
    """The same from a folder."""
    given = scores(0)
    given.save(tmp_path / "scores")

    def run(folder: Path) -> nl.Scores:
        return nl.Scores.load(folder)

    found = run(tmp_path / "scores")
    assert torch.equal(found.stderr, given.stderr) and found.anatomy == given.anatomy
    timed(benchmark, run, lambda turn: (tmp_path / "scores",), rounds=30)
