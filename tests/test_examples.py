"""The example that asks a model in every way runs, and says what nl.evaluate says."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

import neuronllm as nl

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
