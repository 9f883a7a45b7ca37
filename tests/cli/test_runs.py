"""Runs of `neuronllm attribute` that are planned, kept, stopped and taken up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from neuronllm.results.scores import Scores
from tests.cli.tools import ROWS, asked, refused, run, write_questions

pytestmark = [pytest.mark.noext, pytest.mark.slow]  # commands that are killed and go on


def test_a_dry_run_prints_the_plan_and_writes_nothing(model_folder, questions, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run(*asked(model_folder, questions, "--dry-run", "--keep", "all")) == 0
    out = capsys.readouterr().out
    assert "56 neurons" in out and "6 questions, 18 prompts of" in out and "batches of" in out and "MiB" in out
    assert "224 bytes a prompt" in out
    assert run(*asked(model_folder, questions, "--dry-run", "--items", "wrong", "--output", tmp_path / "x")) == 0
    assert "answers wrong" in capsys.readouterr().out and sorted(tmp_path.rglob("*")) == before
    assert "--output" in refused(capsys, *asked(model_folder, questions))
    assert "nothing to go on with" in refused(capsys, *asked(model_folder, questions, "--dry-run", "--resume"))


def test_what_is_kept_of_every_prompt(model_folder, questions, tmp_path):
    assert run(*asked(model_folder, questions, "--keep", "topk", "--k", 3, "--output", tmp_path / "top")) == 0
    assert Scores.load(tmp_path / "top").top.largest.ids.shape == (18, 3)
    flags = ("--keep", "all", "--keep-dtype", "bfloat16", "--output", tmp_path / "all")
    assert run(*asked(model_folder, questions, *flags)) == 0
    assert Scores.load(tmp_path / "all").per_prompt[:2].dtype == torch.bfloat16
    assert run("find", tmp_path / "all", "--good", 2, "--bad", 2, "--output", tmp_path / "neurons") == 0


def test_ctrl_c_says_how_to_go_on(model_folder, questions, tmp_path, capsys, monkeypatch):
    from neuronllm.methods import METHODS

    score, calls = METHODS["gradient"].score, []

    def stop_at_second(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*given)

    flags = asked(model_folder, questions, "--batch-size", 3, "--output", tmp_path / "scores")
    monkeypatch.setattr(METHODS["gradient"], "score", stop_at_second)
    capsys.readouterr()
    assert run(*flags) == 130
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert lines == ["neuronllm: interrupted, 1 of 6 questions are done; go on with resume=True (--resume)"]
    assert run(*flags, "--resume", "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "batches of 3 prompts" in plan and "1 of 6 questions are done, 5 are left with 15 prompts" in plan
    assert "begun with keep" in refused(capsys, *flags, "--keep", "all", "--resume", "--dry-run")
    assert "--resume" in refused(capsys, *flags)
    assert "--resume" in refused(capsys, "find", tmp_path / "scores", "--output", tmp_path / "neurons")
    assert "begun with keep" in refused(capsys, *flags, "--keep", "all", "--resume")
    calls.clear()
    monkeypatch.setattr(METHODS["gradient"], "score", lambda *given: calls.append(given) or score(*given))
    assert run(*flags, "--resume") == 0 and len(calls) == 5
    capsys.readouterr()
    assert run(*flags, "--resume", "--dry-run") == 0 and "nothing is left to do" in capsys.readouterr().out
    assert run(*flags[:-1], tmp_path / "straight") == 0
    for path in (tmp_path / "straight").iterdir():
        assert path.read_bytes() == (tmp_path / "scores" / path.name).read_bytes()


def test_a_real_ctrl_c_ends_with_130_and_no_traceback(model_folder, tmp_path):
    rows = [{**ROWS[0], "id": f"q{n}"} for n in range(3000)]
    path = write_questions(tmp_path / "questions.jsonl", rows)
    flags = [str(flag) for flag in asked(model_folder, path, "--output", tmp_path / "scores")]
    command, here = [sys.executable, "-m", "neuronllm", *flags], os.environ | {"PYTHONPATH": "."}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=here)
    state = tmp_path / "scores.partial" / "state-0.safetensors"
    while not state.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "Traceback" not in error
    assert re.fullmatch(
        r"neuronllm: interrupted, \d+ of 3000 questions are done; go on with .*", error.splitlines()[-1]
    )
