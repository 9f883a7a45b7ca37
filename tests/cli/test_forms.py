"""--answers and --length on the command line: the same form on the way from scores to a report, and what is refused."""

from __future__ import annotations

import json

import pytest

import neuronllm as nl
from tests.cli.tools import asked, refused, run, write_questions

OPEN = [{"id": f"o{n}", "question": f"What is word {n}?", "answer": f"word {n}"} for n in range(3)]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_form_goes_along_from_scores_to_report(model_folder, questions, tmp_path, capsys):
    scores, neurons, tuned = (tmp_path / name for name in ("scores", "neurons", "tuned"))
    assert run(*asked(model_folder, questions, "--answers", "texts", "--length", "tokens", "--output", scores)) == 0
    found = nl.Scores.load(scores).provenance
    assert (found["answers"], found["length"], found["template"]) == ("texts", "tokens", "cloze")
    assert run("find", scores, "--good", 3, "--bad", 3, "--output", neurons) == 0
    common = ("--model", model_folder, "--questions", questions, "--neurons", neurons, "--quiet")
    assert run("tune", *common, "--output", tuned) == 0
    assert nl.NeuronSet.from_pretrained(tuned).tuned["length"] == "tokens"
    capsys.readouterr()
    for flags, form in (((), ("texts", "tokens")), (("--answers", "texts", "--length", "sum"), ("texts", "sum"))):
        report = tmp_path / f"report-{len(flags)}.json"
        assert run("evaluate", *common, "--mode", "degrade", "--controls", 2, "--output", report, *flags) == 0
        written = json.loads(report.read_text())
        assert (written["answers"], written["length"]) == form and written["letters"] is None
        assert "6 questions answered in texts" in capsys.readouterr().out
    assert run("evaluate", *common, "--mode", "degrade", "--controls", 0, "--answers", "letters") == 0
    assert "letter-balanced" in capsys.readouterr().out


def test_questions_without_choices_are_texts(model_folder, tmp_path):
    path, scores = write_questions(tmp_path / "open.jsonl", OPEN), tmp_path / "scores"
    assert run(*asked(model_folder, path, "--output", scores)) == 0
    found = nl.Scores.load(scores).provenance
    assert (found["answers"], found["objective"]) == ("texts", "logp_vocab")


@pytest.mark.parametrize(
    ("rows", "flags", "parts"),
    [
        (OPEN, ["--answers", "letters"], ["'o0'", "nl.distractors"]),
        (OPEN, ["--objective", "margin"], ["'o0'", 'objective="logp_vocab"']),
        (None, ["--length", "tokens"], ['length="tokens"', 'answers="texts"']),
        (None, ["--answers", "words"], ["--answers", "words"]),
        (None, ["--length", "long"], ["--length", "long"]),
    ],
)
def test_contradictions_are_refused_before_the_model_is_loaded(rows, flags, parts, questions, tmp_path, capsys):
    path = questions if rows is None else write_questions(tmp_path / "open.jsonl", rows)
    try:
        line = refused(capsys, *asked("no-such-model", path, "--output", tmp_path / "scores", *flags))
    except SystemExit:  # the parser's own refusal
        line = capsys.readouterr().err
    assert all(part in line for part in parts) and not (tmp_path / "scores").exists()


def test_no_command_loads_a_model_to_refuse_a_form(model_folder, questions, tmp_path, capsys):
    scores, neurons, output = (tmp_path / name for name in ("scores", "neurons", "output"))
    assert run(*asked(model_folder, questions, "--output", scores)) == 0
    assert run("find", scores, "--good", 3, "--bad", 3, "--output", neurons) == 0
    path = write_questions(tmp_path / "open.jsonl", OPEN)
    form = ("--model", "no-such-model", "--answers", "letters")
    with_output = ("--output", output, *form)
    for command in (
        ("evaluate", "--questions", path, *form),
        ("evaluate", "--questions", path, "--neurons", neurons, *form),
        ("tune", "--questions", path, "--neurons", neurons, *with_output),
        ("learn", "--questions", path, *with_output),
        ("learn", "--questions", questions, "--validation", path, *with_output),
        ("find", scores, "--verify", path, *with_output),
    ):
        assert "question 'o0' has no choices to put letters before" in refused(capsys, *command)
    assert not output.exists()
