"""`neuronllm compare`."""

from __future__ import annotations

import json

import pytest

from tests.cli.tools import refused, run, write_questions

ROWS = [
    {"id": f"q{n}", "question": f"Which of these is word {n}?", "choices": ["red", "blue", "seven"], "answer": n % 3}
    for n in range(9)
]


@pytest.fixture
def command(model_folder, tmp_path):
    one = write_questions(tmp_path / "one.jsonl", ROWS)
    sides = [write_questions(tmp_path / f"{side}.jsonl", ROWS[3 * n : 3 * n + 3]) for n, side in enumerate("abc")]
    tasks = (f"one={one}", f"two={','.join(map(str, sides))}")
    return ("compare", "--model", model_folder, "--quiet", "--task", *tasks, "--budget", "quick", "--controls", 2)


def test_compared_and_taken_up_again(command, tmp_path, capsys) -> None:
    output = tmp_path / "comparison"
    asked = (*command, "--methods", "ace", "random", "--options", "ace.steps=2", "--edits", "degrade", "--k", 2)
    assert run(*asked, "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "task one: 4 search, 2 validation, 3 test questions, split by id" in plan
    assert "exact effects at positions all: of all neurons, on 3 questions of each task" in plan
    assert "pieces of work" in plan and "time: roughly" in plan and not output.exists()
    assert run(*asked, "--output", output) == 0
    said = capsys.readouterr().out
    assert "PCR" in said and "Comparison(2 tasks, 2 methods, 4 edits of" in said
    data = json.loads((output / "comparison.json").read_text())
    assert data["made"]["command"].startswith("neuronllm compare --model llama (config ")
    assert "--options ace.steps=2 --budget quick --k 2" in data["made"]["command"]
    assert data["methods"][0]["positions"] == "answer"
    assert "an earlier result stands there" in refused(capsys, *asked, "--output", output)
    assert run(*asked, "--output", output, "--resume") == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--methods", "gradnt"), "method='gradnt': known methods are"),
        (("--edits", "enhanc"), "edits: 'enhanc' is none"),
        (("--preset", "gpt"), "preset='gpt': known presets are"),
        (("--positions", "all", "--methods", "ace"), "positions='all': method 'ace' takes 'answer'"),
        (("--task", "three=a.jsonl,b.jsonl"), "task 'three': give one file"),
        (("--task", "three=a.jsonl,,b.jsonl"), "a split is missing"),
        (("--task", "three=none.jsonl"), "none.jsonl"),
        (("--task", "one=none.jsonl"), "'one' is the name of another task"),
        (("--task", "none.jsonl"), "write NAME=FILE"),
        (("--task", "demo:chess"), "demo task 'chess'"),
        (("--options", "steps=2"), "write METHOD.NAME=VALUE"),
        (("--split-by", "subject"), "task 'one': split_by=\"subject\": question q0 has no subject"),
        (("--template", "nothing"), "nothing"),
        (("--output", "."), "output"),
    ],
)
def test_refused_before_the_model_is_loaded(command, tmp_path, capsys, monkeypatch, flags, said) -> None:
    monkeypatch.setattr("neuronllm.cli.main._model", lambda args: pytest.fail("the model was loaded"))
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *command, "--output", tmp_path / "none", *flags)
    assert not (tmp_path / "none").exists() and not (tmp_path / "none.partial").exists()
