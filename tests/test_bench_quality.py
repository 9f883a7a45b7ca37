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
        "methods",
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
    modules = (bench.stages, bench.quality, bench.leaderboard)
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


# ---- faithfulness ----


def test_agreement_by_hand(bench: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench.quality, "KS", (2, 9))
    truth = torch.tensor([[1.0, 2, 3, 4, 5], [1.0, 2, 3, 4, 5]])
    found = torch.tensor([[1.0, 2, 3, 4, 5], [3.0, 2, 1, 5, 4]])
    # ranks of the second row differ by 2, 0, 2, 1, 1: 1 - 6 * 10 / (5 * 24) = 0.5
    assert bench.quality.agreement(found, truth) == [0.75, 1.0, 0.75, None, None]
    assert bench.quality.agreement(found[1:], truth[1:])[:3] == [0.5, 1.0, 0.5]
    assert bench.quality.agreement(-truth, truth)[:3] == [-1.0, 0.0, 0.0]
    assert bench.quality.agreement(torch.zeros(2, 5), truth)[0] is None


@pytest.mark.parametrize(("ours", "reference", "fine"), [(1e-3, 1e-3, True), (3e-3, 1e-3, False), (5e-5, 0.0, True)])
def test_a_method_may_be_off_by_what_float32_costs(
    bench: Any, monkeypatch: Any, ours: float, reference: float, fine: bool
) -> None:
    monkeypatch.setattr(bench.methods, "score", lambda name, engine, prompts: torch.tensor([[1.0 + engine]]))
    (alone,) = bench.methods.agreement(ours, reference, [], ["gradient"])
    assert alone.fine is (abs(ours - reference) <= 1e-4)
    (beside,) = bench.methods.agreement(ours, reference, [], ["gradient"], {"gradient": torch.tensor([[1.0]])})
    assert beside.fine is fine


def test_every_method_is_judged_and_none_by_itself(bench: Any) -> None:
    from neuronllm.methods import METHODS as registered

    assert set(bench.quality.judged()) == set(registered) - {"exact", "contrast"}


def test_faithfulness_of_a_random_model(bench: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench.quality, "judged", lambda: list(METHODS))
    result = run(bench, "quality.faithfulness")
    rows = {row[1]: row[2:] for row in result["facts"]["rows"]}
    assert list(rows) == list(METHODS) and list(result["facts"]["columns"])[3] == "highest 10"
    assert rows["gradient"][0] > 0.8 > 0.4 > abs(rows["random"][0])
    assert rows["gradient"][1] > rows["random"][1] and rows["gradient"][3:] == [None, None]  # of 96 neurons
    assert {view["what"] for view in result["views"]} == {*METHODS, "exact"}
    plainly, ours = result["checks"][:2]
    assert plainly["what"].startswith("effects of the reference") and ours["what"].startswith("effects: relative")
    assert ours["limit"] == max(1e-3, 2 * plainly["value"]) and len(result["checks"]) == 3 + len(METHODS)
    assert "| `gradient` |" in bench.leaderboard.page([result])


def test_prompts_of_the_bundled_model(bench: Any) -> None:
    subject = bench.quality.Subject(bench.harness.Setup(shape="demo"))
    assert set(subject.tasks) == set(nl.demo_tasks())
    assert all(len(prompts) == bench.quality.JUDGED for prompts in subject.tasks.values())
    some = [subject.timed(turn, 40) for turn in range(2)]
    assert len({len(p.input_ids) for p in sum(some, [])}) == 1 and some[0] != some[1]
    assert [len(prompts) for prompts in some] == [40, 40]


def test_wrong_effects_are_refused(bench: Any, monkeypatch: Any) -> None:
    from neuronllm.engine.fast import FastEngine

    right = FastEngine.effects
    monkeypatch.setattr(FastEngine, "effects", lambda self, *given, **more: 1.01 * right(self, *given, **more))
    with pytest.raises(bench.harness.WrongResult, match="effects: relative difference from float64"):
        run(bench, "quality.faithfulness")


def test_effects_may_be_off_by_twice_what_float32_costs_the_plain_way(bench: Any, monkeypatch: Any) -> None:
    from neuronllm.engine.fast import FastEngine
    from neuronllm.engine.reference import ReferenceEngine

    def lose(engine: type, share: float) -> None:
        right = engine.effects

        def less(*given: Any, **more: Any) -> Any:
            found = right(*given, **more)
            return found * (1 - share) if found.dtype == torch.float32 else found

        monkeypatch.setattr(engine, "effects", less)

    subject = bench.quality.Subject(bench.harness.Setup(shape="toy"))
    lose(FastEngine, 5e-3)
    verdicts = []
    for share in (1e-3, 3e-3, 2e-2):  # of the plain way; each loses on top of those before
        lose(ReferenceEngine, share)
        verdicts.append([check.fine for check in bench.quality._effects_are_right(subject)[:2]])
    assert verdicts == [[True, False], [True, True], [False, True]]


# ---- steering ----


def test_edits_are_checked_against_scaled_weights(bench: Any, monkeypatch: Any) -> None:
    given = nl.load_model("demo", dtype=torch.float32)
    assert all(check.fine for check in bench.quality._edits_are_right(*given))
    monkeypatch.setattr(bench.quality, "Edit", lambda ids, factors, where: None)
    assert not any(check.fine for check in bench.quality._edits_are_right(*given))


def test_steering_is_judged_on_test_questions(bench: Any) -> None:
    model, tokenizer = nl.load_model("demo", dtype=torch.float32)
    facts = bench.quality.steered(model, tokenizer, ["facts"], ["gradient", bench.quality.EVERYWHERE], limit=6)
    rows = [dict(zip(facts["columns"], row, strict=True)) for row in facts["rows"]]
    assert [row["mode"] for row in rows] == 2 * ["degrade", "enhance"] and len({row["base"] for row in rows}) == 1
    assert [row["method"] for row in rows[1:3]] == ["gradient", "gradient, all positions"]
    test = nl.load_questions(nl.demo_task("facts", "test"), limit=6)
    assert rows[0]["base"] == nl.evaluate(model, tokenizer, test, template="plain", progress=False).accuracy
    assert all(row["questions"] == 6 and row["neurons"] == 32 and 0 <= row["percentile"] <= 100 for row in rows)


# ---- the page ----


def faithful(bench: Any, shape: str, values: dict[str, float]) -> dict[str, Any]:
    h = bench.harness
    names = [*values, "exact"]
    sides = [h.Side(name, lambda turn: (), lambda n=n: float(1 + n), own_clock=True) for n, name in enumerate(names)]
    inference = h.Side("inference", lambda turn: (), lambda: 2.0, own_clock=True)
    views = [h.Comparison(name, "inference", "inference", name, "cost") for name in names]
    case = h.Case([inference, *sides], list, views)
    case.settings = {"model": f"a model called {shape}", "neurons": 1000}
    columns = {"task": "text", "method": "text", "Spearman": "number", "highest 10": "number"}
    rows = [["facts", name, value, value / 2] for name, value in values.items()]
    case.facts = lambda peaks: {"columns": columns, "rows": rows}
    benchmark = h.Benchmark("quality.faithfulness", "known", lambda setup: None, {})
    setup = h.Setup(shape=shape, rounds=1)
    result = bench.record.stamp(benchmark, setup, bench.record.start()) | h.run_case(case, setup, lambda side: {})
    return json.loads(json.dumps(result))


def steering(bench: Any, rows: list[list[Any]]) -> dict[str, Any]:
    h = bench.harness
    case = h.Case([], list, [], timed=False)
    case.settings = {"model": "a model"}
    columns = ["task", "method", "mode", "questions", "neurons", "base", "accuracy"]
    columns += ["random low", "random high", "percentile", "p", "letters"]
    case.facts = lambda peaks: {"columns": dict.fromkeys(columns, "number"), "rows": rows}
    benchmark, setup = h.Benchmark("quality.steering", "known", lambda setup: None, {}), h.Setup(shape="demo")
    result = bench.record.stamp(benchmark, setup, bench.record.start()) | h.run_case(case, setup, lambda side: {})
    return json.loads(json.dumps(result))


def test_the_leaderboard_ranks_by_agreement(bench: Any) -> None:
    results = [
        faithful(bench, "narrow", {"gradient": 0.9, "ace": 0.6, "random": 0.0}),
        faithful(bench, "demo", {"gradient": 0.5, "ace": 1.0, "random": 0.0001}),
    ]
    page = bench.leaderboard.page(results)
    ranked = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")][:3]
    assert [cells[0] for cells in ranked] == ["| `ace`", "| `gradient`", "| `random`"]
    assert [cells[1:3] for cells in ranked] == [["1.000", "0.600"], ["0.500", "0.900"], ["0.000", "0.000"]]
    assert ranked[0][3:6] == ["0.500", "1.000", "0.600"]  # overlap on the bundled model, then each place
    assert ranked[0][6].startswith("1.00x to 1.00x")
    assert "a model called demo. Overlap by chance: 0.010 at 10, 0.100 at 100. `exact` takes 4 s a prompt" in page
    assert page.index("### demo") < page.index("### narrow") and "Steering" not in page


def test_one_result_a_model_is_shown(bench: Any) -> None:
    one = faithful(bench, "narrow", {"gradient": 0.9})
    other = copy.deepcopy(one) | {"threads": 2}
    assert bench.leaderboard.latest([other, one]) == [one]


ROWS = [
    ["facts", "gradient", "degrade", 280, 32, 0.8, 0.7, 0.75, 0.85, 0.0, 0.001, "sound"],
    ["facts", "gradient", "enhance", 280, 32, 0.8, 0.78, 0.75, 0.85, 30.0, 0.5, "sound"],
    ["facts", "ace", "degrade", 280, 20, 0.8, 0.4, 0.75, 0.85, 0.0, 0.001, "collapsed"],
    ["facts", "ace", "enhance", 280, 20, 0.8, 0.9, 0.75, 0.85, 100.0, 0.001, "sound"],
    ["facts", "random", "degrade", 280, 32, 0.8, 0.81, 0.75, 0.85, 50.0, 1.0, "sound"],
    ["facts", "random", "enhance", 280, 32, 0.8, 0.85, 0.75, 0.85, 97.0, 0.1, "sound"],
]


def test_steering_that_does_nothing_is_shown(bench: Any) -> None:
    page = bench.leaderboard.page([steering(bench, ROWS)])
    for text in (
        "**degrade** worked in 0 of 2 pairs of a method and a task (`random` not counted), did damage in 1, and raised "
        "accuracy in 0; the letters collapsed in 1.",
        "**enhance** worked in 1 of 2 pairs of a method and a task (`random` not counted), and "
        "lowered accuracy in 1; the letters collapsed in none.",
        "| `gradient` | -10.0 points | 0 of 1 | -2.0 points | 0 of 1 |",
        "| `ace` | -40.0 points | 0 of 1 | +10.0 points | 1 of 1: facts |",
        "280 test questions, accuracy 0.800 unedited.",
        "| `ace` | degrade | 20 | 0.400 | -40.0 points | 0.750 to 0.850 | 0 | 0.001 | collapsed | no |",
        "| `random` | enhance | 32 | 0.850 | +5.0 points | 0.750 to 0.850 | 97 | 0.100 | sound | no |",
    ):
        assert text in page
    assert "Faithfulness" not in page


@pytest.mark.parametrize(
    ("at", "value"), [("p", 0.06), ("letters", "collapsed"), ("accuracy", 0.76), ("accuracy", 0.9)]
)
def test_an_edit_worked_only_beyond_chance(bench: Any, at: str, value: Any) -> None:
    (record, other, *_) = bench.leaderboard.records(steering(bench, ROWS))
    other = other | {"accuracy": 0.8}
    assert bench.leaderboard.verdict(record, other) == "yes"
    assert bench.leaderboard.verdict(record | {at: value}, other) == "no"


def test_an_edit_works_in_its_own_direction_only(bench: Any) -> None:
    (_, _, degrade, enhance, *_) = bench.leaderboard.records(steering(bench, ROWS))
    assert bench.leaderboard.verdict(enhance, degrade) == "yes"
    assert bench.leaderboard.verdict(enhance | {"base": 0.95}, degrade) == "no"  # above random sets, below no edit
    sound = degrade | {"letters": "sound"}
    assert bench.leaderboard.verdict(sound, enhance) == "yes"
    assert bench.leaderboard.verdict(sound | {"base": 0.3}, enhance) == "no"
    assert bench.leaderboard.verdict(sound, enhance | {"accuracy": 0.79}) == "damage"


def test_quality_has_a_page_of_its_own(bench: Any) -> None:
    result = steering(bench, ROWS)
    assert "No results" in bench.report.page([result]) and "No results" in bench.leaderboard.page([])
