"""The command that tells two sets of prompts apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import neuronllm as nl
from tests.cli.tools import refused, run

SHOWN = [{"prompt": f"Which of these is word {n}?", "answer": "red, please"} for n in range(4)]
CURT = [{"prompt": f"Which of these is word {n}?", "answer": "red"} for n in range(5)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {name: tmp_path / f"{name}.jsonl" for name in ("shown", "curt")}
    for path, rows in zip(made.values(), (SHOWN, CURT), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made["lines"] = tmp_path / "lines.txt"
    made["lines"].write_text("Question: which?\n\nOptions: word\nAnswer: B\n")
    return made


def test_contrast(model_folder, files, tmp_path, capsys):
    flags = ("contrast", "--model", model_folder, "--shown", files["shown"], "--not-shown", files["curt"], "--quiet")
    model, tokenizer = nl.load_model(model_folder)
    assert run(*flags, "--output", tmp_path / "mean") == 0
    assert "neurons scored" in capsys.readouterr().out
    found = nl.Scores.load(tmp_path / "mean")
    assert torch.equal(found.values, nl.contrast(model, tokenizer, SHOWN, CURT, progress=False).values)

    how = ("--statistic", "t", "--activation", "cett", "--others", "--ignore", files["lines"], "--limit", 3)
    assert run(*flags, *how, "--output", tmp_path / "t") == 0
    found = nl.Scores.load(tmp_path / "t")
    lines = ["Question: which?", "Options: word", "Answer: B"]
    given = {"statistic": "t", "activation": "cett", "others": True, "ignore": lines, "progress": False}
    expected = nl.contrast(model, tokenizer, SHOWN[:3], CURT[:3], **given)
    assert torch.equal(found.values, expected.values) and found.provenance == expected.provenance

    assert run("find", tmp_path / "mean", "--good", 3, "--bad", 3, "--output", tmp_path / "neurons") == 0
    more = ("--positions", -2, "--max-new-tokens", 2, "--ignore", tmp_path / "neurons")
    assert run(*flags, *more, "--output", tmp_path / "last") == 0
    found = nl.Scores.load(tmp_path / "last")
    assert found.provenance["read_at"] == -2 and found.provenance["ignored"] == 6
    assert not found.values[nl.NeuronSet.from_pretrained(tmp_path / "neurons").ids].any()


def test_bad_files(model_folder, files, tmp_path, capsys):
    flags = ("contrast", "--model", model_folder, "--not-shown", files["curt"], "--quiet", "--output", tmp_path / "out")
    assert "no such file" in refused(capsys, *flags, "--shown", tmp_path / "none.txt")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert "there is no prompt in it" in refused(capsys, *flags, "--shown", empty)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "x"}\n{"prompt"\n')
    assert "broken.jsonl:2: not valid JSON" in refused(capsys, *flags, "--shown", broken)
    message = refused(capsys, *flags, "--shown", files["shown"], "--positions", "last")
    assert "positions='last'" in message and not (tmp_path / "out").exists()
