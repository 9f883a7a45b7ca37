"""The commands together, and each of the others: find, tune, evaluate, bake, env, bench."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import neuronllm
from neuronllm.results.neurons import NeuronSet
from neuronllm.results.scores import Scores
from tests.cli.tools import asked, copied, refused, run

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.noext


def test_the_whole_way(model_folder, questions, tmp_path, capsys):
    scores, neurons, tuned, baked = (tmp_path / name for name in ("scores", "neurons", "tuned", "baked"))
    asked = ("--model", model_folder, "--questions", questions, "--quiet", "--template", "plain")
    assert run("attribute", *asked, "--output", scores) == 0
    found = Scores.load(scores).provenance
    assert found["method"] == "gradient" and found["positions"] == "all"
    assert run("find", scores, "--good", 5, "--bad", 5, "--output", neurons) == 0
    assert len(NeuronSet.from_pretrained(neurons)) == 10
    assert run("tune", *asked, "--neurons", neurons, "--positions", "all", "--output", tuned) == 0
    report = tmp_path / "report.json"
    assert run("evaluate", *asked, "--neurons", neurons, "--mode", "degrade", "--controls", 3, "--output", report) == 0
    assert json.loads(report.read_text())["controls"]["sets"] == 3
    assert "McNemar" in capsys.readouterr().out
    assert run("bake", "--model", model_folder, "--neurons", neurons, "--mode", "enhance", "--output", baked) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (model_folder, baked))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith("down_proj.weight") for name in changed)


def test_the_baked_model_gives_the_live_edits_logits(model_folder, questions, tmp_path):
    import neuronllm as nl

    scores, neurons, baked = (tmp_path / name for name in ("scores", "neurons", "baked"))
    assert run(*asked(model_folder, questions, "--positions", "all", "--output", scores)) == 0
    run("find", scores, "--good", 4, "--bad", 4, "--output", neurons)
    run("bake", "--model", model_folder, "--neurons", neurons, "--good", 0.5, "--bad", 2, "--output", baked)
    model, tokenizer = nl.load_model(model_folder)
    edited, _ = nl.load_model(baked)
    inputs = tokenizer("Question: which of these?", return_tensors="pt").input_ids
    with torch.no_grad(), nl.NeuronSet.from_pretrained(neurons).apply(model, good=0.5, bad=2):
        live = model(inputs).logits
    assert torch.equal(live, edited(inputs).logits)


def test_a_set_is_judged_tuned_and_baked_where_it_was_found(model_folder, questions, tmp_path, capsys):
    scores, neurons, tuned, baked = (tmp_path / name for name in ("scores", "neurons", "tuned", "baked"))
    run(*asked(model_folder, questions, "--positions", "answer", "--output", scores))
    run("find", scores, "--good", 4, "--bad", 4, "--output", neurons)
    common = ("--model", model_folder, "--questions", questions, "--neurons", neurons, "--quiet")
    for flags, expected in ((), "answer"), (("--positions", "all"), "all"):
        report = tmp_path / f"{expected}.json"
        assert run("evaluate", *common, "--mode", "degrade", "--controls", 0, "--output", report, *flags) == 0
        assert json.loads(report.read_text())["edit"]["positions"] == expected
        assert run("tune", *common, "--output", tuned, "--overwrite", *flags) == 0
        points = NeuronSet.from_pretrained(tuned).tuned["curve"][1:]
        assert {point["positions"] for point in points} == {expected}
    bake = ("bake", "--model", model_folder, "--neurons", neurons, "--mode", "degrade", "--output", baked)
    assert "--positions all" in refused(capsys, *bake) and not baked.exists()
    assert run(*bake, "--positions", "all") == 0
    record = json.loads((baked / "neuronllm_bake.json").read_text())
    assert (record["positions"], record["positions_of_the_set"]) == ("all", "answer")


def test_own_factors_are_shown_and_recorded(model_folder, questions, tmp_path, capsys):
    scores, neurons, report, baked = (tmp_path / name for name in ("scores", "own", "report.json", "baked"))
    run(*asked(model_folder, questions, "--positions", "all", "--output", scores))
    Scores.load(scores).find(2, 2).with_factors([0.5, 1.5, 3.0, 3.0]).save_pretrained(neurons)
    common = ("--model", model_folder, "--neurons", neurons, "--quiet")
    capsys.readouterr()
    assert run("evaluate", *common, "--questions", questions, "--controls", 0, "--output", report) == 0
    out = capsys.readouterr().out
    assert "own: 4 neurons, good x0.5 to x1.5, their own, bad x3, their own, positions all" in out
    saved = json.loads(report.read_text())
    assert saved["edit"]["own"] == {"good": [0.5, 1.5], "bad": [3.0, 3.0]}
    assert set(saved["ci"]) == {"base", "edited", "change"} and set(saved["flipped"]) == set(saved["flips"])
    assert run("bake", *common, "--output", baked) == 0
    record = json.loads((baked / "neuronllm_bake.json").read_text())
    assert record["mode"] == "own" and record["own"] == saved["edit"]["own"] and record["positions"] == "all"
    assert run("evaluate", *common, "--questions", questions, "--controls", 0, "--mode", "enhance") == 0
    assert "enhance: 4 neurons, good x2, bad x0" in capsys.readouterr().out


def test_env_says_what_runs(capsys):
    assert run("env") == 0
    assert "engine" in capsys.readouterr().out


def test_foreign_folders_are_left_alone(model_folder, questions, tmp_path, capsys):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    for command in (
        ["attribute", "--model", model_folder, "--questions", questions],
        ["find", tmp_path],
        ["bake", "--model", model_folder, "--neurons", tmp_path, "--mode", "enhance"],
        ["demo"],
    ):
        refused(capsys, *command, "--output", output)
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]


def test_an_earlier_result_is_replaced_only_with_overwrite(model_folder, questions, tmp_path, capsys):
    scores, neurons = tmp_path / "scores", tmp_path / "neurons"
    asked = ("--model", model_folder, "--questions", questions, "--quiet")
    for command in (
        ["attribute", *asked, "--method", "gradient", "--positions", "all", "--output", scores],
        ["find", scores, "--good", 2, "--bad", 2, "--output", neurons],
        ["tune", *asked, "--neurons", neurons, "--positions", "answer", "--output", tmp_path / "tuned"],
        ["bake", "--model", model_folder, "--neurons", neurons, "--mode", "enhance", "--output", tmp_path / "baked"],
    ):
        assert run(*command) == 0
        output = Path(command[-1])
        before = {path: path.stat().st_ino for path in output.iterdir()}
        line = refused(capsys, *command)
        assert f"{output}: an earlier result stands there" in line and "--overwrite" in line
        assert {path: path.stat().st_ino for path in output.iterdir()} == before
        assert run(*command, "--overwrite") == 0
        after = {path: path.stat().st_ino for path in output.iterdir()}
        assert after.keys() == before.keys() and after != before


def test_reading_the_wrong_folder_is_one_line(model_folder, questions, tmp_path, capsys):
    assert "scores" in refused(capsys, "find", model_folder, "--output", tmp_path / "out")
    flags = ("--model", model_folder, "--questions", questions, "--neurons", model_folder, "--mode", "enhance")
    assert "neuron set" in refused(capsys, "evaluate", *flags)


def test_a_report_never_takes_the_place_of_a_file(model_folder, questions, tmp_path, capsys):
    before = questions.read_text()
    asked = ("evaluate", "--model", model_folder, "--questions", questions, "--quiet")
    assert "stands there" in refused(capsys, *asked, "--output", questions)
    assert "stands there" in refused(capsys, *asked, "--output", tmp_path)
    assert "folder does not exist" in refused(capsys, *asked, "--output", tmp_path / "absent" / "report.json")
    assert questions.read_text() == before and [path.name for path in tmp_path.iterdir()] == ["questions.jsonl"]


def test_nan_weights_are_not_baked(model_folder, questions, tmp_path, capsys):
    scores, neurons, name = tmp_path / "scores", tmp_path / "neurons", "model.layers.0.mlp.up_proj.weight"
    asked = ("--questions", questions, "--quiet", "--method", "gradient", "--positions", "all", "--output", scores)
    run("attribute", "--model", model_folder, *asked)
    run("find", scores, "--good", 2, "--bad", 2, "--output", neurons)
    model = copied(model_folder, tmp_path / "m", lambda w: {**w, name: w[name] * float("nan")})
    flags = ("--model", model, "--neurons", neurons, "--mode", "enhance", "--quiet", "--output", tmp_path / "out")
    assert name in refused(capsys, "bake", *flags) and not (tmp_path / "out").exists()


def test_what_is_written_can_be_read_by_others_and_names_no_folder(model_folder, questions, tmp_path):
    scores, neurons = tmp_path / "scores", tmp_path / "neurons"
    asked = ("--model", model_folder, "--questions", questions, "--quiet", "--method", "gradient", "--output", scores)
    run("attribute", *asked)
    run("find", scores, "--good", 2, "--bad", 2, "--output", neurons)
    for path in [*scores.iterdir(), *neurons.iterdir()]:
        assert path.stat().st_mode & 0o444 == 0o444
        assert str(model_folder).encode() not in path.read_bytes()
        assert model_folder.name.encode() not in path.read_bytes()
    provenance = NeuronSet.from_pretrained(neurons).provenance
    assert provenance["model"] == f"llama (config {provenance['config'][:12]})"
    assert len(repr(NeuronSet.from_pretrained(neurons))) < 100


def handed_on(capsys, *args: object) -> str:
    """What a command prints that ends by itself, as --help does."""
    try:
        assert run(*args) == 0
    except SystemExit as end:
        assert end.code == 0
    return capsys.readouterr().out


@pytest.mark.skipif(not (Path(neuronllm.__file__).parents[1] / "bench").is_dir(), reason="installed, no source tree")
def test_benchmarks_are_run_from_the_source_tree(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(r"\n +bench +Benchmarks: list, run, report", handed_on(capsys, "--help"))
    assert "engine.ig" in handed_on(capsys, "bench", "list")
    told = handed_on(capsys, "bench", "run", "--help")
    direct = subprocess.run([sys.executable, "-m", "bench", "run", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert told.startswith("usage: neuronllm bench run") and "--threads" in told
    # The usage is wrapped by the length of the name, the flags are the same.
    assert told.split("\n\n", 1)[1] == direct.stdout.split("\n\n", 1)[1]
    assert "nonsense" in refused(capsys, "bench", "run", "nonsense")
    assert "--shape huge: known are" in refused(capsys, "bench", "run", "engine.ig", "--shape", "huge")


def test_without_the_source_tree_there_are_no_benchmarks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("neuronllm.cli.main.__file__", str(tmp_path / "neuronllm" / "cli" / "main.py"))
    assert "come with the source tree" in refused(capsys, "bench", "list")


def test_a_warning_stands_on_a_line_of_its_own(capsys):
    from tqdm.auto import tqdm

    from neuronllm.cli.main import _one_line_warning

    with tqdm(total=2, desc="gradient", file=sys.stderr) as bar:
        bar.update()
        _one_line_warning("look out", UserWarning)
    assert "\rneuronllm: warning: look out\n" in capsys.readouterr().err
