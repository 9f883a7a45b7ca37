"""The command line: the whole way on a tiny model, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import neuronllm
from neuronllm.cli import main
from neuronllm.neurons import NeuronSet
from neuronllm.scores import Scores
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level, split_letter

pytestmark = pytest.mark.noext

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    {"id": f"q{n}", "question": f"Which of these is word {n}?", "choices": ["red", "blue", "seven"], "answer": n % 3}
    for n in range(6)
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_level()
    tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_questions(path: Path, rows=ROWS) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def questions(tmp_path) -> Path:
    return write_questions(tmp_path / "questions.jsonl")


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


def refused(capsys, *args: object) -> str:
    """The single line of an error, after checking that it is one and that the exit code says so."""
    capsys.readouterr()
    assert run(*args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and "error: " in lines[0], lines
    return lines[0]


def test_the_whole_way(model_folder, questions, tmp_path, capsys):
    scores, neurons, tuned, baked = (tmp_path / name for name in ("scores", "neurons", "tuned", "baked"))
    asked = ("--model", model_folder, "--questions", questions, "--quiet", "--template", "plain")
    assert run("attribute", *asked, "--method", "gradient", "--positions", "all", "--output", scores) == 0
    assert Scores.load(scores).provenance["method"] == "gradient"
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
    run(
        "attribute",
        "--model",
        model_folder,
        "--questions",
        questions,
        "--quiet",
        "--method",
        "gradient",
        "--output",
        scores,
    )
    run("find", scores, "--good", 4, "--bad", 4, "--output", neurons)
    run("bake", "--model", model_folder, "--neurons", neurons, "--good", 0.5, "--bad", 2, "--output", baked)
    model, tokenizer = nl.load_model(model_folder)
    edited, _ = nl.load_model(baked)
    inputs = tokenizer("Question: which of these?", return_tensors="pt").input_ids
    with torch.no_grad(), nl.NeuronSet.from_pretrained(neurons).apply(model, good=0.5, bad=2):
        live = model(inputs).logits
    assert torch.equal(live, edited(inputs).logits)


def test_an_option_reaches_the_method(model_folder, questions, tmp_path):
    command = [
        "attribute",
        "--model",
        model_folder,
        "--questions",
        questions,
        "--quiet",
        "--limit",
        2,
        "--orders",
        "none",
    ]
    assert run(*command, "-o", "steps=3", "--option", "mask=none", "--output", tmp_path / "scores") == 0
    options = Scores.load(tmp_path / "scores").provenance["options"]
    assert options["steps"] == 3 and options["mask"] == "none"


def test_env_says_what_runs(capsys):
    assert run("env") == 0
    assert "engine" in capsys.readouterr().out


BAD_FILES = {
    "a broken line": ([ROWS[0], "{not json"], ":2"),
    "answer out of range": ([{**ROWS[0], "answer": 3}], ":1"),
    "duplicate choices": ([ROWS[0], {**ROWS[1], "choices": ["red", "red"], "answer": 0}], ":2"),
    "empty choices": ([{**ROWS[0], "choices": []}], ":1"),
    "no rows": ([], "questions.jsonl"),
    "a missing field": ([{"question": "why?"}], ":1"),
    "letters beyond single tokens": ([{**ROWS[0], "choices": [f"c{n}" for n in range(27)]}], ":1"),
}


@pytest.mark.parametrize("rows, named", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_questions_file_is_named_with_its_line(rows, named, model_folder, tmp_path, capsys):
    path = write_questions(tmp_path / "questions.jsonl", rows)
    output = tmp_path / "out"
    line = refused(capsys, "attribute", "--model", model_folder, "--questions", path, "--output", output)
    assert named in line and not output.exists()


BAD_FLAGS = {
    "missing file": (["--questions", "absent.jsonl"], "absent.jsonl"),
    "missing model": (["--model", "./absent"], "absent"),
    "unknown method": (["--method", "magic"], "known methods"),
    "unknown option": (["-o", "alpha=3"], "steps, quadrature"),
    "malformed option": (["-o", "alpha"], "NAME=VALUE"),
    "positions of another method": (["--positions", "all"], "'answer'"),
    "unknown objective": (["--objective", "loss"], "logp_options"),
    "unknown template": (["--template", "fancy"], "fancy"),
    "no chat template": (["--apply-chat-template"], "chat template"),
}


@pytest.mark.parametrize("flags, named", BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_a_bad_flag_is_one_line_and_writes_nothing(flags, named, model_folder, questions, tmp_path, capsys):
    output = tmp_path / "out"
    good = ["attribute", "--model", model_folder, "--questions", questions, "--quiet", "--output", output]
    assert named in refused(capsys, *good, *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["questions.jsonl"]


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--method", "nope"], "known methods"),
        (["-o", "steps=zz"], "steps='zz'"),
        (["-o", "keep=all"], "has no option 'keep'"),
        (["--k", 0, "--keep", "topk"], "k=0"),
        (["--k", 5], "--k 5: it needs --keep topk"),
        (["--keep", "topk", "--keep-dtype", "bfloat16"], "it needs --keep all"),
        (["--objective", "loss"], "logp_options"),
        (["--positions", "all"], "'answer'"),
        (["--template", "fancy"], "fancy"),
    ],
)
def test_what_needs_no_model_is_refused_before_it_is_loaded(flags, named, questions, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("neuronllm.loading.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    good = ["attribute", "--model", "absent", "--questions", questions, "--output", tmp_path / "out"]
    assert named in refused(capsys, *good, *flags)
    assert named in refused(capsys, *good, *flags, "--dry-run")


def test_a_letter_that_is_no_single_token_is_named(tmp_path, capsys):
    tokenizer = split_letter("F")
    tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    rows = [{"question": "which?", "choices": list("uvwxyz"), "answer": 0}]
    path = write_questions(tmp_path / "questions.jsonl", rows)
    line = refused(capsys, "attribute", "--model", tmp_path / "m", "--questions", path, "--output", tmp_path / "out")
    assert "'F'" in line and not (tmp_path / "out").exists()


def copied(folder: Path, target: Path, change) -> Path:
    """A copy of a saved model with its weights changed."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(target / "model.safetensors")
    save_file(change(weights), target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_nan_weights_are_named(model_folder, questions, tmp_path, capsys):
    name = "model.layers.1.mlp.up_proj.weight"
    model = copied(model_folder, tmp_path / "m", lambda w: {**w, name: w[name] * float("nan")})
    flags = ("--model", model, "--questions", questions, "--quiet", "--output", tmp_path / "out")
    assert name in refused(capsys, "attribute", *flags) and not (tmp_path / "out").exists()


def test_a_prompt_longer_than_the_context_is_named(model_folder, tmp_path, capsys):
    rows = [ROWS[0], {**ROWS[1], "question": "why " * 300}]
    path = write_questions(tmp_path / "questions.jsonl", rows)
    line = refused(capsys, "attribute", "--model", model_folder, "--questions", path, "--output", tmp_path / "out")
    assert "'q1'" in line and "256" in line and not (tmp_path / "out").exists()


def test_a_model_without_ffns_is_refused(tmp_path, questions, capsys):
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer = byte_level()
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    line = refused(
        capsys, "attribute", "--model", tmp_path / "mamba", "--questions", questions, "--output", tmp_path / "out"
    )
    assert "no FFN neurons" in line


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


def test_reading_the_wrong_folder_is_one_line(model_folder, questions, tmp_path, capsys):
    assert "scores" in refused(capsys, "find", model_folder, "--output", tmp_path / "out")
    flags = ("--model", model_folder, "--questions", questions, "--neurons", model_folder, "--mode", "enhance")
    assert "neuron set" in refused(capsys, "evaluate", *flags)


@pytest.mark.parametrize("flags", [["--batch-size", "0"], ["--positions", "last"], ["--dtype", "int8"], []])
def test_flags_that_cannot_be_read_are_one_line(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        run("attribute", *flags)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and "neuronllm attribute: error: " in lines[0]


def test_a_report_never_takes_the_place_of_a_file(model_folder, questions, tmp_path, capsys):
    before = questions.read_text()
    asked = ("evaluate", "--model", model_folder, "--questions", questions, "--quiet")
    assert "stands there" in refused(capsys, *asked, "--output", questions)
    assert "stands there" in refused(capsys, *asked, "--output", tmp_path)
    assert "folder does not exist" in refused(capsys, *asked, "--output", tmp_path / "absent" / "report.json")
    assert questions.read_text() == before and [path.name for path in tmp_path.iterdir()] == ["questions.jsonl"]


def test_a_checkpoint_that_lacks_a_weight_is_refused(model_folder, questions, tmp_path, capsys):
    name = "model.layers.1.mlp.up_proj.weight"
    model = copied(model_folder, tmp_path / "m", lambda w: {key: value for key, value in w.items() if key != name})
    capsys.readouterr()
    assert run("attribute", "--model", model, "--questions", questions, "--quiet", "--output", tmp_path / "out") == 2
    assert name in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_one_line(model_folder, questions, tmp_path, capsys):
    model = copied(model_folder, tmp_path / "m", lambda w: w)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    flags = ("--model", model, "--questions", questions, "--quiet", "--output", tmp_path / "out")
    assert "cannot be loaded" in refused(capsys, "attribute", *flags)


def test_a_folder_without_a_tokenizer_is_one_line(model_folder, questions, tmp_path, capsys):
    model = copied(model_folder, tmp_path / "m", lambda w: w)
    for path in model.glob("tokenizer*"):
        path.unlink()
    flags = ("--model", model, "--questions", questions, "--quiet", "--output", tmp_path / "out")
    assert "no tokenizer there" in refused(capsys, "attribute", *flags)


def test_nan_weights_are_not_baked(model_folder, questions, tmp_path, capsys):
    scores, neurons, name = tmp_path / "scores", tmp_path / "neurons", "model.layers.0.mlp.up_proj.weight"
    asked = ("--questions", questions, "--quiet", "--method", "gradient", "--output", scores)
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
    assert NeuronSet.from_pretrained(neurons).provenance["model"] == model_folder.name
    assert len(repr(NeuronSet.from_pretrained(neurons))) < 100


# ---- runs that are planned, kept, stopped and taken up ----


def asked(model_folder, questions, *flags: object) -> tuple[object, ...]:
    return ("attribute", "--model", model_folder, "--questions", questions, "--method", "gradient", "--quiet", *flags)


def test_a_dry_run_prints_the_plan_and_writes_nothing(model_folder, questions, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run(*asked(model_folder, questions, "--dry-run", "--keep", "all")) == 0
    out = capsys.readouterr().out
    assert "56 neurons" in out and "6 questions, 18 prompts of" in out and "batches of" in out and "MiB" in out
    assert "224 bytes a prompt" in out
    assert run(*asked(model_folder, questions, "--dry-run", "--items", "wrong", "--output", tmp_path / "x")) == 0
    assert "answers wrong" in capsys.readouterr().out and sorted(tmp_path.rglob("*")) == before
    assert "--output" in refused(capsys, *asked(model_folder, questions))


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
    assert "--resume" in refused(capsys, *flags)
    assert "--resume" in refused(capsys, "find", tmp_path / "scores", "--output", tmp_path / "neurons")
    assert "begun with keep" in refused(capsys, *flags, "--keep", "all", "--resume")
    assert run(*flags, "--resume") == 0 and len(calls) == 2 + 5
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


# ---- bench, which is handed on ----


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
    monkeypatch.setattr("neuronllm.cli.__file__", str(tmp_path / "neuronllm" / "cli.py"))
    assert "come with the source tree" in refused(capsys, "bench", "list")
