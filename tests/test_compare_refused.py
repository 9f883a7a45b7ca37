"""Comparisons: what is refused before any work is done, and how tasks are read."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import neuronllm as nl
from neuronllm.comparing import run as running
from neuronllm.comparing.budget import BUDGETS, budget_of, budget_text
from neuronllm.comparing.progress import Bar
from neuronllm.comparing.tasks import Task
from neuronllm.data.questions import Question, Wording
from tests.asked_tasks import questions
from tests.checks import refused
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256)


def test_refused(model, tokenizer, tmp_path) -> None:
    def compare(*given, **more):
        return nl.compare(model, tokenizer, *given, output=tmp_path / "none", progress=False, **more)

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    one = questions("colour", 9, 3)
    free = [Question(f"{n}?", answer="Paris") for n in range(9)]
    wide = [Question(f"{n}?", [f"choice {n}" for n in range(30)], 1) for n in range(9)]
    with refused("method='gradnt': known methods are"):
        compare({"a": one}, ["gradnt"])
    with refused("edits: 'enhanc' is none, known edits are enhance"):
        compare({"a": one}, edits=["enhanc"])
    with refused("preset='gpt': known presets are neuronllm, qrnca, knowledge"):
        compare({"a": one}, preset="gpt")
    with refused("positions='all': method 'ace' takes 'answer'"):
        compare({"a": one}, ["gradient", "ace"], positions="all")
    with refused("task 'a': give one file", "or three: search, validation and test, not 4"):
        compare({"a": [one, one, one, one]})
    with refused("task 'a': 1 different items in 2 questions, and 2 are needed to split them into search and valid"):
        compare({"a": [[one[0], one[0]], one]})
    with refused("task 'a/b': a name is letters"):
        compare({"a/b": one})
    with refused("task 'a': 1 different items in 2 questions, and 3 are needed"):
        compare({"a": [one[0], one[0]]})
    with refused("task 'b': question 0 has only one option", "distractors"):
        compare({"a": one, "b": free})
    with refused("30 choices, more than there are letters"):
        compare({"a": one, "b": wide})
    with refused("method 'ace' has no option 'stepz'"):
        compare({"a": one}, ["ace"], options={"ace": {"stepz": 1}})
    with refused("options: 'qrnca' is not among the methods"):
        compare({"a": one}, ["ace"], options={"qrnca": {"steps": 1}})
    with refused("budget='huge': known budgets are quick, standard, thorough"):
        compare({"a": one}, budget="huge")
    with refused(
        "budget='quick,tests=3': 'tests=3' is none of its sizes, write NAME=N or NAME=all of search, expensive"
    ):
        compare({"a": one}, budget="quick,tests=3")
    with refused("budget='quick,test=': 'test=' is none of its sizes"):
        compare({"a": one}, budget="quick,test=")
    with refused("budget: judged=None: give a whole number, 1 or more"):
        compare({"a": one}, budget="quick,judged=all")
    with refused("budget: test=0: give a whole number, 1 or more"):
        compare({"a": one}, budget="quick,test=0")
    with refused("seeds=[1, 1]"):
        compare({"a": one}, seeds=[1, 1])
    with refused("methods: 'ace' is given twice"):
        compare({"a": one}, ["ace", "ace"])
    with refused("k=0: give a whole number, 1 or more"):
        compare({"a": one}, k=0)
    with refused("k=29: so many good and as many bad neurons", "has 56 FFN neurons; give at most 28"):
        compare({"a": one}, k=29)
    with refused("the folder is not empty and not one of ours"):
        nl.compare(model, tokenizer, {"a": one}, output=tmp_path / "full")
    with refused("resume=True: it needs output="):
        nl.compare(model, tokenizer, {"a": one}, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {"full"}


def test_tasks_of_different_kinds(model, tokenizer) -> None:
    worded = [
        replace(question, wording=Wording(f"{question.stem} It is", " ", question.choices))
        for question in questions("sky", 9, 2)
    ]
    in_letters = [replace(question, wording=replace(question.wording, letters=True)) for question in worded]
    with refused("tasks: 'b' comes in words of its own (a task of lm-eval) and 'a' in ours"):
        nl.compare(model, tokenizer, {"a": questions("colour", 9, 3), "b": in_letters})
    with refused("tasks: 'a' is answered in letters and 'b' in texts: compare tasks of one kind"):
        nl.compare(model, tokenizer, {"a": questions("colour", 9, 3), "b": worded})


def test_of_two_sources_a_third_of_the_first_is_to_choose_on(tmp_path) -> None:
    search, test = questions("colour", 9, 3), questions("taste", 4, 3)
    for name, asked in (("search", search), ("test", test)):
        nl.save_questions(tmp_path / f"{name}.jsonl", asked)
    task = Task.of("a", [tmp_path / "search.jsonl", tmp_path / "test.jsonl"])
    assert [len(side) for side in task.splits[:3]] == [6, 3, 4]
    found = [question.stem for question in task.splits.search + task.splits.validation]
    assert sorted(found) == sorted(question.stem for question in search)
    assert [question.stem for question in task.splits.test] == [question.stem for question in test]
    assert task.files == {"search": "search.jsonl", "test": "test.jsonl"}  # as the command that repeats it has them
    assert task.splits.how == "but the test by id"


def test_given_splits_that_share_questions_are_said(model, tokenizer) -> None:
    one = questions("colour", 3, 3)
    with pytest.warns(UserWarning) as caught:
        running.read_tasks({"a": (one[:2], one[2:], one), "b": (one[:1],) * 3}, running.CompareRequest().checked())
    said = [str(warning.message) for warning in caught]
    assert said[0] == (
        "task 'a': 2 test questions of a stand in its search too, 1 test question of a stands in its validation too: "
        "what is chosen or judged on was seen before"
    )
    assert said[1].startswith("task 'b': 1 validation question of b stands in its search too, ")
    assert len(said) == 2  # what two tasks share is no fault of either


def test_splits_that_a_task_brings_are_not_made_anew() -> None:
    one = [replace(question, subject=str(n)) for n, question in enumerate(questions("colour", 9, 3))]
    given, asked = (one[:3], one[3:6], one[6:]), running.CompareRequest(split_by="subject").checked()
    with refused('split_by="subject": nothing is split here, as every task brings its own splits'):
        running.read_tasks({"a": given}, asked)
    other = [replace(question, subject=str(n)) for n, question in enumerate(questions("sky", 9, 2))]
    with pytest.warns(
        UserWarning, match='split_by="subject": not of a, whose own splits are taken as they are'
    ) as said:
        read = running.read_tasks({"a": given, "b": other}, asked)
    assert len(said) == 1 and [task.splits.how for task in read.values()] == ["given", "by subject"]


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "colour.jsonl"
    nl.save_questions(path, questions("colour", 9, 3))
    (task,) = running.read_tasks({"a": path}, running.CompareRequest().checked()).values()
    assert task.files == {"all": "colour.jsonl"}
    assert sum(len(side) for side in task.splits[:3]) == 9


def test_what_a_paper_does_not_say_counts_where_it_plays_a_part() -> None:
    def unknown(preset: str, **more) -> list[str]:
        return [said.partition(" (")[0] for said in running.CompareRequest(preset=preset, **more).checked().unknown]

    of_ace = ["steps of the integral", "log P or P of the options", "the printed mask"]
    rest = ["number of neurons", "prompt text", "formulas of RAC and RCC"]
    assert unknown("neuronllm") == of_ace + rest
    assert unknown("neuronllm", methods=["gradient"]) == rest
    assert unknown("neuronllm", k=16, options={"ace": {"steps": 8}}) == of_ace[1:] + rest
    assert unknown("neuronllm", k=8, template="plain", methods=["gradient"]) == rest[2:]
    assert unknown("qrnca", k=3) == ["prompt text of the three templates"] and running.CompareRequest().unknown == []


def test_the_time_left_is_estimated_before_a_piece_is_done(monkeypatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    with Bar(total=1200.0, done=0.0, seconds_a_pass=0.5, show=True) as bar:
        bar.set_description_str("scores a gradient")
        assert "scores a gradient:   0%" in str(bar) and "10:00 left" in str(bar)
        bar.update(600)
        assert " 50%" in str(bar) and "? left" not in str(bar) and "10:00 left" not in str(bar)
    assert "? left" not in shown.getvalue()


@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_is_read_from_its_own_words(name) -> None:
    own = replace(BUDGETS[name], test=None, controls=7, judged=5)
    for budget in (BUDGETS[name], own):
        assert budget_of(budget_text(budget)) == budget
    assert budget_text(BUDGETS[name]) == name
    assert budget_of(f"{name},test=all,controls=7,judged=5") == own
