"""The commands about answers that the model writes: evaluate --answers generate, and distractors."""

from __future__ import annotations

import json

import pytest

import neuronllm as nl
from tests.cli.tools import asked, refused, run

pytestmark = pytest.mark.noext


def test_the_written_answers_are_judged(model_folder, questions, tmp_path, capsys):
    scores, neurons, report = tmp_path / "scores", tmp_path / "neurons", tmp_path / "report.json"
    assert run(*asked(model_folder, questions, "--template", "plain", "--output", scores)) == 0
    assert run("find", scores, "--good", 5, "--bad", 5, "--output", neurons) == 0
    flags = ("--model", model_folder, "--questions", questions, "--quiet", "--answers", "generate")
    flags = (*flags, "--max-new-tokens", 5, "--abstain", "no comment", "pass")
    assert run("evaluate", *flags) == 0
    assert run("evaluate", *flags, "--neurons", neurons, "--mode", "degrade", "--controls", 2, "--output", report) == 0
    said, printed = json.loads(report.read_text()), capsys.readouterr().out
    assert said["controls"]["sets"] == 2 and len(said["written"]) == 6 and "answers changed" in printed

    model, tokenizer = nl.load_model(model_folder)
    found = nl.NeuronSet.from_pretrained(neurons)
    expected = nl.evaluate(
        model,
        tokenizer,
        nl.load_questions(questions),
        found,
        "degrade",
        answers="generate",
        max_new_tokens=5,
        progress=False,
        controls=0,
    )
    assert said["written"] == expected.written and said["changed"] == expected.changed


def test_mistakes_become_choices(tmp_path, capsys):
    output = tmp_path / "made.jsonl"
    flags = ("--model", "demo", "--questions", "demo:facts/test", "--limit", 5, "--quiet")
    assert run("distractors", *flags, "--n", 2, "--seed", 4, "--output", output) == 0
    model, tokenizer = nl.load_model("demo")
    given = nl.load_questions(nl.demo_task("facts", "test"))[:5]
    made = nl.distractors(model, tokenizer, given, 2, 4, progress=False)
    assert nl.load_questions(output) == made
    assert f"{output}: {len(made)} of 5 questions" in capsys.readouterr().out


def test_refused_before_any_work(model_folder, questions, tmp_path, capsys):
    there = tmp_path / "there.jsonl"
    there.write_text("mine")
    flags = ("--model", "no/such/model", "--questions", questions)
    assert "something stands there" in refused(capsys, "distractors", *flags, "--output", there)
    assert "does not exist" in refused(capsys, "distractors", *flags, "--output", tmp_path / "no" / "made.jsonl")
    assert there.read_text() == "mine"
    flags = ("--model", model_folder, "--questions", questions, "--quiet")
    assert "abstentions" in refused(capsys, "evaluate", *flags, "--abstain", "pass")
