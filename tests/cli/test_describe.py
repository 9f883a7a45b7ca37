"""The command that says what neurons are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import neuronllm as nl
from tests.cli.tools import refused, run


@pytest.fixture
def neurons(model_folder, tmp_path):
    anatomy = nl.Anatomy.of(nl.load_model(model_folder)[0])
    found = nl.NeuronSet(torch.tensor([40, 3]), np.array(["good", "bad"]), torch.tensor([1.0, -0.5]), anatomy)
    found.save_pretrained(tmp_path / "neurons")
    return tmp_path / "neurons"


def test_describe(model_folder, questions, neurons, tmp_path, capsys):
    flags = ("describe", neurons, "--model", model_folder, "--quiet")
    model, tokenizer = nl.load_model(model_folder)
    chosen = nl.NeuronSet.from_pretrained(neurons)
    assert run(*flags, "--questions", questions, "--limit", 4, "--output", tmp_path / "d.json") == 0
    said = capsys.readouterr().out
    assert said.startswith("layer 0: 0 good, 1 bad, layer 1: 1 good, 0 bad") and "layer 1 neuron 12" in said
    expected = nl.describe(model, tokenizer, chosen, nl.load_questions(questions)[:4], progress=False)
    assert nl.Description.load(tmp_path / "d.json") == expected

    (tmp_path / "lines.txt").write_text("Options: word\n\nAnswer: B [/b]\n")
    more = ("--tokens", 3, "--spans", 1, "--window", 2, "--output", tmp_path / "t.json")
    assert run(*flags, "--texts", tmp_path / "lines.txt", *more) == 0
    given = {"tokens": 3, "spans": 1, "window": 2, "progress": False}
    expected = nl.describe(model, tokenizer, chosen, ["Options: word", "Answer: B [/b]"], **given)
    assert json.loads((tmp_path / "t.json").read_text()) == json.loads(json.dumps(expected.to_dict()))

    capsys.readouterr()
    assert run(*flags, "--template", "brief") == 0
    assert "layer 0 neuron 3" in capsys.readouterr().out


def test_bad_flags(model_folder, questions, neurons, tmp_path, capsys):
    flags = ("describe", neurons, "--model", model_folder, "--quiet")
    assert "no such file" in refused(capsys, *flags, "--texts", tmp_path / "none.txt")
    assert "--template and --labels" in refused(capsys, *flags, "--texts", questions, "--template", "plain")
    (tmp_path / "old.json").write_text("{}")
    assert "something stands there" in refused(capsys, *flags, "--output", tmp_path / "old.json")
    assert "no neuron set there" in refused(capsys, "describe", tmp_path, "--model", model_folder)
    with pytest.raises(SystemExit) as end:
        run(*flags, "--texts", questions, "--questions", questions)
    assert end.value.code == 2
