"""The benchmarks on toy sizes: wrong results are not timed, what is written is whole.

No test looks at a clock.
"""

from __future__ import annotations

import dataclasses
import doctest
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.benches import modules

pytestmark = pytest.mark.slow  # benchmarks that are checked

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench() -> Any:
    first = ("harness", "shapes", "plain", "record", "report", "suites", "scaling")
    return modules(*first, "fixture", "select", "__main__", "units", "plots", "conditions")


def side(bench: Any, name: str = "ours", **more: Any) -> Any:
    return bench.harness.Side(name, lambda turn: (turn,), lambda turn: turn, **more)


def toy(bench: Any, threads: int = 1) -> Any:
    return bench.harness.Setup(threads=threads, shape="toy", rounds=2)


# ---- the harness ----


def test_wrong_results_are_not_timed(bench: Any) -> None:
    ran: list[int] = []
    checks = [bench.harness.Check("scores", value=0.5, limit=1e-4)]
    never = bench.harness.Side("ours", lambda turn: (turn,), ran.append)
    case = bench.harness.Case(sides=[never], check=lambda: checks, views=[])
    with pytest.raises(bench.harness.WrongResult, match=r"scores: 5.00e-01, limit 1.00e-04"):
        bench.harness.run_case(case, toy(bench), lambda name: {})
    assert not ran


@pytest.mark.parametrize(("value", "at_least", "fine"), [(1.0, False, True), (2.0, False, False), (2.0, True, True)])
def test_checks_have_a_side_and_nan_is_never_fine(bench: Any, value: float, at_least: bool, fine: bool) -> None:
    assert bench.harness.Check("x", value, 1.5, at_least).fine is fine
    assert not bench.harness.Check("x", float("nan"), 1.5, at_least).fine


def test_sides_take_turns_on_new_inputs(bench: Any) -> None:
    ran: list[tuple[str, int]] = []

    def noted(name: str, **more: Any) -> Any:
        return bench.harness.Side(name, lambda turn: (name, turn), lambda *given: ran.append(given), **more)

    sides = [noted("a"), noted("b", times=2), noted("c", every=2)]
    times = bench.harness.interleave(sides, 3, "cpu")
    assert ran[0] == ("b", 0)  # the warm-up; pilots see 0 and 1, so times are of inputs that nobody has seen
    assert ran[1:] == [
        *[("a", 2), ("b", 2), ("c", 2), ("b", 3)],
        *[("b", 4), ("a", 3), ("b", 5)],
        *[("c", 4), ("b", 6), ("a", 4), ("b", 7)],
    ]
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 6, "c": 2}


def test_the_best_candidate_is_timed(bench: Any) -> None:
    slow, fast = (side(bench, name, own_clock=True, work=work) for name, work in (("batch 1", 1), ("batch 4", 4)))
    slow, fast = (dataclasses.replace(s, run=lambda turn: 8.0) for s in (slow, fast))
    choice = bench.harness.Choice("plain", [slow, fast], lambda best: dataclasses.replace(best, work=16))
    chosen, pilot = bench.harness.choose(choice, "cpu")
    assert (chosen.name, chosen.work) == ("plain", 16)
    assert pilot == {"chosen": "batch 4", "per_unit": {"batch 1": 8.0, "batch 4": 2.0}}


def case_of_known_times(bench: Any) -> Any:
    """Sides that give their seconds themselves: a prompt takes 2 s plainly, 0.5 s by ours."""
    h = bench.harness
    sides = [
        h.Side("plain", lambda turn: (), lambda: 4.0, work=2, own_clock=True),
        h.Side("ours", lambda turn: (), lambda: 2.0, work=4, own_clock=True, times=2),
        *(h.Side(f"{n} steps", lambda turn: (), lambda n=n: 1.0 + 0.5 * n, own_clock=True) for n in (2, 4)),
    ]
    views = [
        h.Comparison("scores", "plain scores", "plain", "ours", bar=h.Bar(">=", 5)),
        h.Comparison("scores", "plain scores", "plain", "ours", "cost", "peak", bar=h.Bar("<=", 1.1)),
        h.Comparison("scores", "what did not run", "absent", "ours"),
        h.Series("scores against steps", "steps", [(2.0, "2 steps"), (4.0, "4 steps")]),
        h.Limit("scores of ten prompts", "ours", 10, h.Bar("<=", 5)),
    ]
    case = h.Case(sides, lambda: [h.Check("scores: difference", 1e-6, 1e-4)], views, peaks=["plain", "ours"])
    case.settings, case.notes = {"model": "a model", "tokens": 7}, ["Plain: by hand"]
    case.facts = lambda peaks: {"columns": {"run": "text", "peak": "size"}, "rows": [["ours", peaks["ours"]]]}
    return case


def known(bench: Any) -> dict[str, Any]:
    benchmark = bench.harness.Benchmark("suite.known", "known times", lambda setup: None, {})
    peaks = {"plain": {"peak": 2**20}, "ours": {"peak": 2**21}}
    figures = bench.harness.run_case(case_of_known_times(bench), toy(bench), lambda name: dict(peaks[name]))
    began = bench.record.start() | {"load": 0.0}
    return json.loads(json.dumps(bench.record.stamp(benchmark, toy(bench), began) | figures))


def test_figures_of_known_times(bench: Any) -> None:
    result = known(bench)
    ours = result["sides"]["ours"]
    assert ours == {"work": 4, "times": [2.0] * 4, "median": 0.5, "p20": 0.5, "p80": 0.5, "peak": 2**21}
    time, memory, series, limit = result["views"]
    assert (time["ratio"], time["met"], memory["ratio"], memory["met"]) == (4.0, False, 2.0, False)
    assert series["slope"] == pytest.approx(0.5) and series["start"] == pytest.approx(1.0)
    assert series["off"] == pytest.approx(0, abs=1e-9)
    assert (limit["seconds"], limit["met"]) == (5.0, True)
    assert {"cpu", "cores", "ram_gib", "gpu"} <= result["machine"].keys()
    assert {"python", "torch", "transformers", "neuronllm"} <= result["versions"].keys()
    assert result["load"]["before"] == 0.0 <= result["took"]
    assert {"id", "dirty"} == result["commit"].keys() and result["threads"] == 1 and result["settings"]["tokens"] == 7


def test_bytes_a_second_are_of_whole_runs(bench: Any) -> None:
    found = bench.harness.summary([2.0, 2.0], side(bench, work=4, reads=3 * 10**9))
    assert (found["median"], found["rate"]) == (0.5, 1.5e9)
    assert bench.report.spread(found, "call") == "500 ms (500 ms to 500 ms) a call, 2 runs, 1.5 GB/s"


def test_memory_is_measured_when_the_model_is_gone(bench: Any) -> None:
    case = case_of_known_times(bench)
    left: list[int] = []
    bench.harness.run_case(case, toy(bench), lambda name: left.append(len(case.sides)) or {"peak": 1})
    assert left == [0, 0]


def test_peak_memory_counts_what_is_held_at_once() -> None:
    from neuronllm.engine.memory import peak_memory

    def one_after_another() -> None:
        for _ in range(3):
            torch.zeros(2**18)  # 1 MiB

    def together() -> list[torch.Tensor]:
        return [torch.zeros(2**18) for _ in range(3)]

    assert 2**20 <= peak_memory(one_after_another) < 1.1 * 2**20
    assert 3 * 2**20 <= peak_memory(together) < 3.1 * 2**20


def test_examples_in_docstrings_are_true(bench: Any) -> None:
    found = [doctest.testmod(module, extraglobs={"torch": torch}) for module in vars(bench).values()]
    assert sum(f.failed for f in found) == 0 and sum(f.attempted for f in found) > 5


# ---- models and baselines ----


def test_the_twin_shares_weights_and_nothing_else(bench: Any) -> None:
    model = bench.shapes.random_model(bench.shapes.SHAPES["toy"])
    twin = bench.shapes.twin(model)
    pairs = list(zip(model.parameters(), twin.parameters(), strict=True))
    assert pairs and all(a is b for a, b in pairs)
    assert not {id(m) for m in model.modules()} & {id(m) for m in twin.modules()}
    assert twin.config is not model.config and not any(p.requires_grad for p in model.parameters())


def test_prompts_share_what_they_should(bench: Any) -> None:
    shape = dataclasses.replace(bench.shapes.SHAPES["toy"], tokens=12)
    ids = [p.input_ids for p in bench.shapes.shared_prompts(shape, questions=2, variants=4, seed=0)]
    assert {len(row) for row in ids} == {12} and len({tuple(row) for row in ids}) == 8
    assert len({tuple(row[:6]) for row in ids}) == 1
    assert [len({tuple(row[6:8]) for row in ids[n : n + 4]}) for n in (0, 4)] == [1, 1]
    assert bench.shapes.random_prompts(shape, 3, 1) == bench.shapes.random_prompts(shape, 3, 1)


@pytest.mark.parametrize(
    ("kind", "cached"),
    [(kind, cached) for kind in ("gradient", "ig", "effects") for cached in (False, True)]
    + [("everywhere", False), ("effects everywhere", False)],
)
def test_baselines_equal_the_reference(bench: Any, kind: str, cached: bool) -> None:
    from neuronllm.engine import open_engine
    from neuronllm.engine.quadrature import quadrature
    from neuronllm.model.anatomy import Anatomy

    shape = bench.shapes.SHAPES["toy"]
    model = bench.shapes.random_model(shape)
    prompts = bench.shapes.random_prompts(shape, 1 if "effects" in kind else 3, 5)
    anatomy, tensors = Anatomy.of(model), bench.plain.tensors(prompts, "cpu")
    with open_engine(model, anatomy, prompts, "reference") as engine:
        if kind == "ig":
            right = engine.integrate(prompts, "logp_options", *quadrature("midpoint", 4))
            found = bench.plain.integrated_gradients(model, *tensors, steps=4, cached=cached)
        elif "effects" in kind:
            everywhere = kind != "effects"
            right = engine.effects(prompts, "logp_options", positions="all" if everywhere else "answer")
            layers, _, indices = anatomy.locate(torch.arange(anatomy.n_neurons))
            neurons = list(zip(layers.tolist(), indices.tolist(), strict=True))
            before = bench.plain.once(model, *tensors, cached)
            found = bench.plain.effects(model, *tensors, neurons, 5, before, everywhere)[None]
        else:
            positions = "all" if kind == "everywhere" else "answer"
            right = engine.gradients(prompts, "logp_options", positions=positions)
            found = bench.plain.gradient(model, *tensors, 2, kind == "everywhere", cached)
    assert bench.harness.relative(found, right) < 1e-4


@pytest.mark.parametrize(("name", "work"), [("ig", {"plain": 0.5, "ours": 1}), ("exact", {"ours": 8})])
def test_dear_ways_run_on_a_sample(bench: Any, monkeypatch: Any, name: str, work: dict[str, float]) -> None:
    shape = dataclasses.replace(bench.shapes.SHAPES["toy"], sampled_layers=(1,), sampled_neurons=8)
    monkeypatch.setitem(bench.shapes.SHAPES, "toy", shape)
    case = bench.suites.ALL[f"engine.{name}"].build(toy(bench))
    with case.stack:
        assert len(bench.harness.checked(case)) > 0
        done = {side.name: side for side in case.sides}
        assert {name: done[name].work for name in work} == work
        scores = done["ours"].run(*done["ours"].inputs(0))
    assert scores.shape == (1, 8 if name == "exact" else 96)


def test_a_model_that_is_too_large_is_left_out(bench: Any, monkeypatch: Any) -> None:
    shape = dataclasses.replace(bench.shapes.SHAPES["toy"], memory=10**6)
    monkeypatch.setitem(bench.shapes.SHAPES, "toy", shape)
    with pytest.raises(bench.harness.CannotRun, match="toy takes 1000000 GiB, this machine has"):
        bench.suites.ALL["engine.ig"].build(toy(bench))


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, "qwen3-30b-a3b") for name in ("engine.exact", "scaling.layers", "scaling.steps", "peers.ig")]
    + [(name, "narrow-neox") for name in ("engine.gradient", "engine.memory", "scaling.tokens")],
)
def test_a_model_that_the_plain_way_does_not_know_is_left_out(
    bench: Any, monkeypatch: Any, name: str, shape: str
) -> None:
    monkeypatch.setattr("bench.peers.peers_here", lambda: ([], {}))
    with pytest.raises(bench.harness.CannotRun, match=f"does not know the FFNs of {shape}"):
        bench.suites.ALL[name].build(dataclasses.replace(toy(bench), shape=shape))


@pytest.mark.parametrize(
    "name", ["glu_score", "glu_score_ragged", "score_gemm", "branch_attention", "branch_attention_trees"]
)
def test_kernels_are_compared_with_the_same_work(bench: Any, name: str) -> None:
    case = bench.suites.ALL[f"kernels.{name}"].build(toy(bench))
    assert all(check["value"] <= check["limit"] for check in bench.harness.checked(case))
    assert {side.name for side in case.sides} == {"copy", "eager", "kernel"}
    assert case.settings["model"].startswith("sizes of llama, 2 layers")  # without it no page can be made


# ---- what a case is built from ----


def test_bars_are_set_for_shapes_and_threads(bench: Any) -> None:
    bars = {"small 1": bench.harness.Bar(">=", 60), "small": bench.harness.Bar(">=", 45)}
    found = [bench.fixture.bar_for(toy(bench, n), bars) for n in (1, 2)]
    assert found == [None, None]
    small = [bench.fixture.bar_for(dataclasses.replace(toy(bench, n), shape="small"), bars) for n in (1, 2)]
    assert [bar.value for bar in small] == [60, 45]


def test_questions_for_the_command_line_are_rendered(bench: Any, tmp_path: Path) -> None:
    import neuronllm as nl

    shape = bench.shapes.SHAPES["toy"]
    bench.scaling.write_model(shape, tmp_path / "model", seed=0)
    bench.scaling.write_questions(tmp_path / "q.jsonl", 3, shape, seed=0)
    _, tokenizer = nl.load_model(str(tmp_path / "model"))
    prompts = nl.render(tokenizer, nl.load_questions(str(tmp_path / "q.jsonl")), orders="rotate")
    assert len(prompts) == 12 and all(len(p.option_ids) == 4 for p in prompts)


@pytest.mark.parametrize(("name", "shape"), [("ends", "tiny"), ("ends", "tiny-rows"), ("half", "tiny")])
def test_selection_is_checked_before_it_is_timed(bench: Any, name: str, shape: str) -> None:
    pytest.importorskip("neuronllm._select")
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler for the read floor")
    setup = dataclasses.replace(toy(bench), shape=shape)
    result = bench.harness.run_case(getattr(bench.select, name)(setup), setup, lambda side: {})
    assert {check["value"] for check in result["checks"]} == {0} and result["views"]
    assert "ours" in result["sides"] and json.dumps(result)


@pytest.mark.parametrize(
    ("places", "fine"),
    [
        ([5, 0, 2], True),
        ([5, 0, 4], False),  # a tie further back
        ([0, 5, 2], False),  # order
        ([0, 2, 4], False),  # one beyond them is missing
        ([5, 2, 0], False),  # order of ties
    ],
)
def test_the_judge_of_selections_sees_every_mistake(bench: Any, places: list[int], fine: bool) -> None:
    x = torch.tensor([2.0, -1.0, 2.0, float("nan"), 2.0, 7.0])
    found = SimpleNamespace(indices=torch.tensor(places), values=x[places])
    assert (bench.select.wrong(x, found, "largest") == 0) is fine
    negative = SimpleNamespace(indices=found.indices, values=-found.values)
    assert (bench.select.wrong(-x, negative, "smallest") == 0) is fine
    moved = SimpleNamespace(indices=found.indices, values=found.values + 1)
    assert bench.select.wrong(x, moved, "largest") > 0
    second = SimpleNamespace(indices=torch.tensor([[5, 0, 2], places]), values=torch.stack([x[[5, 0, 2]], x[places]]))
    assert (bench.select.wrong(torch.stack([x, x]), second, "largest") == 0) is fine  # of every row


@pytest.mark.parametrize(
    ("places", "fine"), [([3, 1], True), ([1, 3], True), ([3, 3], False), ([3, 0], False), ([3], False)]
)
def test_the_judge_of_unsorted_selections_sees_every_mistake(bench: Any, places: list[int], fine: bool) -> None:
    x = np.array([0.0, 2.0, -1.0, 7.0], np.float32)
    found = SimpleNamespace(indices=np.array(places), values=x[places])
    assert (bench.select.unlike(x, found, np.sort(x)[-2:]) == 0) is fine
    moved = SimpleNamespace(indices=(found.indices + 1) % 4, values=found.values)
    assert bench.select.unlike(x, moved, np.sort(x)[-2:]) > 0


def test_every_kind_of_array_can_be_made(bench: Any) -> None:
    arrays = bench.select.ARRAYS
    small = {kind: dataclasses.replace(arrays[f"1e8-{kind.replace(' ', '-')}"], n=3000) for kind in bench.select.KINDS}
    made = {kind: bench.select.made(array, 0) for kind, array in small.items()}
    assert all(x.shape == (3000,) and x.dtype == torch.float32 for x in made.values())
    assert len({x.view(torch.int32).numpy().tobytes() for x in made.values()}) == len(made)
