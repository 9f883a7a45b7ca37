"""The benchmarks of quality and of a whole run: stages add up, what is wrong is refused, the leaderboard says what the
JSON says. No test looks at a clock."""

from __future__ import annotations

import copy
import doctest
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import neuronllm as nl
from tests.benches import modules

pytestmark = pytest.mark.slow  # whole runs of benchmarks

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("gradient", "logprob", "random")


@pytest.fixture(scope="module")
def bench() -> Any:
    return modules(
        "harness",
        "record",
        "report",
        "suites",
        "stages",
        "shapes",
        "scaling",
        "end_to_end",
        "quality",
        "leaderboard",
    )


def toy(bench: Any) -> Any:
    return bench.harness.Setup(shape="toy", rounds=1)


def run(bench: Any, name: str) -> dict[str, Any]:
    """The whole result of a benchmark on the toy shape, as a file would hold it."""
    case = bench.suites.ALL[name].build(toy(bench))
    with case.stack:
        figures = bench.harness.run_case(case, toy(bench), lambda side: {})
    stamp = bench.record.stamp(bench.suites.ALL[name], toy(bench), bench.record.start())
    return json.loads(json.dumps(stamp | figures, allow_nan=False))


def test_examples_in_docstrings_are_true(bench: Any) -> None:
    modules = (bench.stages, bench.leaderboard)
    found = [doctest.testmod(module, extraglobs={"torch": torch}) for module in modules]
    assert sum(f.failed for f in found) == 0 and all(f.attempted for f in found)


# ---- a whole run, by stage ----


def test_time_belongs_to_the_innermost_stage_and_adds_up(bench: Any) -> None:
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0, 28.0])
    clock = bench.stages.Clock(("outer", "inner"), lambda: next(times))
    with clock.stage("outer"), clock.stage("inner"):
        pass
    with pytest.raises(KeyError), clock.stage("inner"):
        raise KeyError
    clock.book()
    assert clock.seconds == {"outer": 2.0 + 4.0, "inner": 3.0 + 6.0, "the rest": 1.0 + 5.0 + 7.0}
    assert sum(clock.seconds.values()) == 28.0


def test_the_package_is_left_as_it_was(bench: Any, tmp_path: Path) -> None:
    places = [bench.stages._found(target) for targets in bench.stages.STAGES.values() for target in targets]
    before = [vars(owner)[name] for owner, name in places]
    model, _ = nl.load_model("demo")
    prompts = [nl.Prompt([5, 6, 7], [[1], [2]], 0), nl.Prompt([8, 9, 7], [[1], [2]], 1)]
    with bench.stages.watched() as clock, pytest.raises(nl.InputError):
        during = [vars(owner)[name] for owner, name in places]
        nl.attribute(model, None, prompts, "gradient", positions="answer", output=tmp_path / "scores", progress=False)
        nl.Scores.load(tmp_path / "scores").find(5, 5).save_pretrained(tmp_path / "set")
        nl.Scores.load(tmp_path / "nothing")
    assert all(a is b for a, b in zip(before, [vars(owner)[name] for owner, name in places], strict=True))
    assert not any(a is b for a, b in zip(before, during, strict=True))
    assert all(seconds > 0 for name, seconds in clock.seconds.items() if name != "loading")


@pytest.fixture
def few(bench: Any, monkeypatch: Any) -> None:
    """Few questions, and no processes, which would import everything anew."""

    def here(model: Path, questions: Path, folder: Path, setup: Any) -> dict[str, float]:
        stages = bench.stages.run(str(model), str(questions), folder)
        return bench.end_to_end.by_stage(sum(stages.values()) + 1.0, stages)

    monkeypatch.setattr(bench.end_to_end, "COUNT", 12)
    monkeypatch.setattr(bench.end_to_end, "FEW", 4)
    monkeypatch.setattr(bench.end_to_end, "_run", here)


@pytest.mark.usefixtures("few")
def test_stages_of_a_whole_run_add_up(bench: Any) -> None:
    result = run(bench, "end_to_end.attribute")
    whole = {stage: seconds for stage, seconds, *_ in result["facts"]["rows"]}
    together = whole.pop("tokenising, aggregation, selection and writing")
    assert whole.pop("whole run") == pytest.approx(sum(whole.values())) and whole["starting"] == pytest.approx(1)
    assert together == pytest.approx(sum(whole[name] for name in ("tokenising", "aggregation", "selection", "writing")))
    assert all(seconds > 0 for seconds in whole.values())
    assert sum(row[3] for row in result["facts"]["rows"][1:-1]) == pytest.approx(1)
    assert result["views"][0]["ratio"] == pytest.approx(result["facts"]["rows"][-1][3])
    assert result["settings"]["questions"] == 12 and result["sides"]["scoring"]["work"] == 12
    page = bench.report.page([result])
    assert "| planning and self-check |" in page and "| whole run |" in page and "100.0%" in page


def test_a_whole_run_is_a_process_of_its_own(bench: Any, tmp_path: Path) -> None:
    bench.scaling.write_questions(tmp_path / "questions.jsonl", 3, bench.shapes.SHAPES["toy"], seed=0)
    setup = bench.harness.Setup(shape="toy")
    found = bench.end_to_end._run(Path("demo"), tmp_path / "questions.jsonl", tmp_path / "run", setup)
    assert found["starting"] > 0 and all(found[name] > 0 for name in bench.stages.STAGES)
    assert nl.Scores.load(tmp_path / "run" / "scores").provenance["questions"] == 3
    assert len(nl.NeuronSet.from_pretrained(tmp_path / "run" / "neurons")) == 200
    with pytest.raises(RuntimeError, match="questions.jsonl"):
        bench.end_to_end._run(Path("demo"), tmp_path / "no questions.jsonl", tmp_path / "other", setup)


@pytest.mark.usefixtures("few")
def test_a_whole_run_with_wrong_scores_is_not_timed(bench: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench.end_to_end.plain, "gradient", lambda model, ids, *_, **__: torch.ones(len(ids), 2 * 48))
    with pytest.raises(bench.harness.WrongResult, match="grad x act"):
        run(bench, "end_to_end.attribute")


def test_bars_are_set_for_the_model_of_eight_layers(bench: Any) -> None:
    setup = bench.harness.Setup(shape="small")
    views = bench.end_to_end.views(setup)
    assert [(view.bar.sign, view.bar.value) for view in views] == [("<=", 0.15), ("<=", 0.003)]
    assert [view.bar for view in bench.end_to_end.views(toy(bench))] == [None]


# ---- the comparison of the leaderboard ----

FEW = "quick,search=8,validation=8,test=8,judged=2,effects=2000,controls=2,curve_controls=0"


def test_the_figures_are_those_of_compare(bench: Any, monkeypatch: Any) -> None:
    made, compare = [], nl.compare
    monkeypatch.setattr(bench.quality, "BUDGET", FEW)
    monkeypatch.setattr(bench.quality, "METHODS", dict.fromkeys(METHODS))
    monkeypatch.setattr(nl, "demo_tasks", lambda: ["facts"])
    monkeypatch.setattr(nl, "compare", lambda *given, **more: made.append(compare(*given, **more)) or made[-1])
    result = run(bench, "quality.methods")
    rows, expected = bench.leaderboard.records(result), made[0].rows
    assert len(rows) == len(expected) == len(METHODS) * len(bench.quality.EDITS)
    for row, right in zip(rows, expected, strict=True):
        alike = [
            "task",
            "method",
            "edit",
            "neurons",
            "accuracy",
            "low",
            "high",
            "gain",
            "P(right)",
            "PCR",
            "beats",
            "p",
        ]
        for name in (*alike, "p, Holm", "agreement"):
            assert row[name] == right[name], name
        assert row["halves"] == right["stability"] and right["verdict"].startswith(row["verdict"])
        assert row["questions"] == 8 and row["base"] == pytest.approx(row["accuracy"] - row["gain"], abs=1e-5)
        assert (row["random low"] is None) == (row["neurons"] == 0)
    ranked = {row["method"]: row["agreement"] for row in rows}
    assert ranked["gradient"] > 0.8 > 0.5 > abs(ranked["random"])
    page = bench.leaderboard.page([result])
    assert f"\n{made[0].data['made']['command']}\n" in page and "--task facts=demo:facts" in page
    assert "No results" in bench.report.page([result])  # it has a page of its own


def test_every_method_takes_part(bench: Any) -> None:
    from neuronllm.methods import METHODS as registered

    assert list(bench.quality.METHODS) == list(registered)


# ---- the page ----


def edit(method: str, kind: str, verdict: str, gain: float, **more: Any) -> dict[str, Any]:
    known = {"task": "facts", "positions": "answer", "questions": 280, "neurons": 32, "base": 0.8, "p": 0.01}
    known |= {"random low": 0.75, "random high": 0.85, "beats": 1.0, "p, Holm": 0.02, "best 1 %": 0.9}
    known |= {"worst 1 %": 0.7, "halves": 0.5, "cost": 2.0, "low": 0.7, "high": 0.9, "P(right)": 0.5, "PCR": 3.0}
    return known | {"method": method, "edit": kind, "verdict": verdict, "gain": gain, "accuracy": 0.8 + gain} | more


EDITS = [
    edit("ace", "degrade", "shown", -0.1, agreement=0.6),
    edit("ace", "enhance", "it hurts", -0.05, agreement=0.6, beats=0.0),
    edit("gradient", "degrade", "not shown", -0.02, agreement=0.9, beats=0.25, **{"p, Holm": 1.0}),
    edit("gradient", "enhance", "no edit", 0.0, agreement=0.9, neurons=0, beats=None),
    edit("random", "degrade", "collapse", -0.3, agreement=-0.0001),
    edit("random", "enhance", "not shown", 0.01, agreement=-0.0001, beats=0.5),
    edit("contrast", "degrade", "not shown", 0.0, agreement=None, cost=None),
    edit("contrast", "enhance", "not shown", 0.0, agreement=None, cost=None),
]


@pytest.fixture
def result(bench: Any) -> dict[str, Any]:
    """A file of the benchmark, of the edits above and the same on a second task."""
    other = [one | {"task": "verbs", "verdict": "not shown", "agreement": 0.5, "cost": 4.0} for one in EDITS]
    rows = [[one[name] for name in bench.quality.COLUMNS] for one in EDITS + other]
    case = bench.harness.Case([], list, [], timed=False)
    case.settings = {"model": "a model", "command": "neuronllm compare --model demo", "sets": 20}
    case.facts = lambda peaks: {"columns": bench.quality.COLUMNS, "rows": rows}
    benchmark, setup = bench.suites.ALL["quality.methods"], bench.harness.Setup(shape="demo")
    stamp = bench.record.stamp(benchmark, setup, bench.record.start())
    return json.loads(json.dumps(stamp | bench.harness.run_case(case, setup, lambda side: {})))


def test_methods_are_ranked_by_agreement(bench: Any, result: dict[str, Any]) -> None:
    page = bench.leaderboard.page([result])
    ranked = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")][:4]
    assert [cells[0] for cells in ranked] == ["| `gradient`", "| `ace`", "| `contrast`", "| `random`"]
    assert [cells[2:5] for cells in ranked[:2]] == [["0.700", "0.900", "0.500"], ["0.550", "0.600", "0.500"]]
    assert ranked[2][2:5] == ["0.500", "n/a", "0.500"] and ranked[3][3] == "0.000"
    assert ranked[0][1] == "answer" and ranked[0][5:] == ["0.900", "0.700", "0.500", "2.00x to 4.00x |"]
    assert ranked[2][-1] == "4.00x to 4.00x |"


def test_edits_that_do_nothing_are_shown_too(bench: Any, result: dict[str, Any]) -> None:
    page = bench.leaderboard.page([result])
    for text in (
        "- **degrade**, 6 pairs of a method and a task, `random` not counted: shown in 1, hurts in 0, the answers "
        "collapse in 0.",
        "- **enhance**, 6 pairs of a method and a task, `random` not counted (no edit in 2): shown in 0, hurts in 1, "
        "the answers collapse in 0.",
        "| `ace` | -0.100 | facts | -0.050 | nowhere |",
        "280 test questions, accuracy 0.800 unedited.",
        "| `ace` | **-0.100**, 100%, p 0.02 | -0.050, 0%, p 0.02, hurts |",
        "| `gradient` | -0.020, 25%, p 1 | no edit |",
        "| `random` | -0.300, 100%, p 0.02, collapse | +0.010, 50%, p 0.02 |",
        "stand 20 random\nsets",
        "neuronllm compare --model demo",
    ):
        assert text in page, text
    assert page.index("### facts") < page.index("### verbs")


def test_one_result_is_shown(bench: Any, result: dict[str, Any]) -> None:
    other = copy.deepcopy(result) | {"threads": 2}
    assert bench.leaderboard.page([other, result]) == bench.leaderboard.page([result])
    assert "No results" in bench.leaderboard.page([])
