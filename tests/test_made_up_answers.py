"""The example of fewer made-up answers runs through on the bundled model, and reports what was written to it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import neuronllm as nl

FILE = Path(__file__).resolve().parents[1] / "examples" / "fewer_made_up_answers.py"
QUESTIONS = nl.demo_task("facts", "search")
SHORT = ["--search", "12", "--held-out", "8", "--template", "{question}\nAnswer:"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fewer_made_up_answers", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*left out", "ignore:.*words and the right answers")
def test_both_edits_are_judged_on_questions_that_were_held_out(example: ModuleType, tmp_path: Path, capsys: Any):
    target = tmp_path / "found.json"
    assert example.main(["demo", str(QUESTIONS), *SHORT, "--output", str(target)]) == 0
    found, printed = json.loads(target.read_text(encoding="utf-8")), capsys.readouterr().out
    assert 0 < found["kept"] <= found["asked"] == 12
    assert found["kept"] <= found["mistakes"] <= 3 * found["kept"]
    assert f"{found['mistakes']} mistakes at {found['kept']} of 12 questions" in printed
    search, held_out = example.split(nl.load_questions(QUESTIONS), 12, 8, 0)
    assert not {question.id for question in search} & {question.id for question in held_out}
    assert sorted(found["reports"], reverse=True) == ["enhance", "degrade"]
    for mode, report in found["reports"].items():
        assert [about["id"] for about in report["written_to"]] == [question.id for question in held_out]
        assert (report["edit"]["mode"], report["edit"]["neurons"], report["controls"]["sets"]) == (mode, 10, 20)
        right = [q.choices[0].lower() in text.lower() for q, text in zip(held_out, report["written"], strict=True)]
        assert report["inclusion"] == sum(right) / 8
        assert report["inclusion"] + report["wrong"] + report["abstained"] + report["empty"] == pytest.approx(1)
        before, after = (f"{share['inclusion']:.3f}" for share in (report["base"], report))
        assert f"right (included)  {before} -> {after}" in printed and f"\n{mode}: " in printed


def test_the_split_depends_on_ids_and_the_seed_alone(example: ModuleType):
    questions = nl.load_questions(QUESTIONS)
    search, held_out = example.split(questions, 30, 20, 0)
    assert (len(search), len(held_out)) == (30, 20) and all(question.open for question in search + held_out)
    assert example.split(questions[::-1], 30, 20, 0) == (search, held_out)
    assert example.split(questions, 30, 20, 1) != (search, held_out)


def test_a_mistake_that_is_accepted_is_found(example: ModuleType):
    question = nl.Question("Capital of France?", ("Lyon", "Paris", "Nice"), 1, answers=("Lutetia",))
    assert example.check_mistakes([question]) == 2
    for wrong in ("the PARIS.", "lutetia"):
        with pytest.raises(AssertionError, match="Capital of France"):
            example.check_mistakes([nl.Question("Capital of France?", (wrong, "Paris"), 1, answers=("Lutetia",))])


@pytest.mark.parametrize(
    ("change", "share", "said"),
    [
        ((-0.1, 0.0), 0.2, "not significantly more or fewer {} answers"),
        ((-0.3, -0.1), 0.2, "fewer {} answers"),
        ((-0.3, -0.1), 0.4, "fewer {} answers, as with random neurons"),
        ((0.1, 0.3), 0.9, "more {} answers"),
    ],
)
def test_verdicts(example: ModuleType, change: tuple[float, float], share: float, said: str):
    both = ("inclusion", "wrong")
    report = SimpleNamespace(
        inclusion=share,
        wrong=share,
        ci={"change": dict.fromkeys(both, change)},
        controls=dict.fromkeys(both, {"p2.5": 0.3, "p97.5": 0.5}),
    )
    assert example.verdict(report) == "; ".join((said.format("right"), said.format("made-up")))


def test_bad_input_is_one_line_and_writes_nothing(example: ModuleType, tmp_path: Path, capsys: Any):
    target = tmp_path / "found.json"
    assert example.main(["demo", str(QUESTIONS), "--search", "9999", "--output", str(target)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fewer_made_up_answers: error: questions: ") and said.count("\n") == 1
    assert not target.exists()
    target.write_text("mine")
    assert example.main(["demo", str(QUESTIONS), *SHORT, "--output", str(target)]) == 2
    assert str(target) in capsys.readouterr().err and target.read_text() == "mine"
