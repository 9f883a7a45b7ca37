"""`neuronllm attribute`: its options, and one clear line for every kind of bad input."""

from __future__ import annotations

import logging

import pytest
import torch

from neuronllm.data.loading import load_questions
from neuronllm.data.questions import fingerprint
from neuronllm.results.scores import Scores
from tests.cli.tools import ROWS, asked, copied, refused, run, write_questions
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level, split_letter

pytestmark = pytest.mark.noext


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
        "--method",
        "ace",
    ]
    assert run(*command, "-o", "steps=3", "--option", "mask=none", "--output", tmp_path / "scores") == 0
    options = Scores.load(tmp_path / "scores").provenance["options"]
    assert options["steps"] == 3 and options["mask"] == "none"


def test_the_strongest_have_flags_of_their_own(model_folder, questions, tmp_path, capsys):
    command = ["attribute", "--model", model_folder, "--questions", questions, "--quiet", "--limit", 2]
    top = [*command, "--method", "exact", "--top", 2, "--miss", 0.5, "--budget", 30]
    assert run(*top, "--output", tmp_path / "scores") == 0
    scores = Scores.load(tmp_path / "scores")
    options = {"factor": 0.0, "top": 2, "miss": 0.5, "budget": 30, "seed": 0}
    assert scores.provenance["options"] == options and 4 <= int(scores.measured.sum()) <= 30
    scored, told = capsys.readouterr().out.splitlines()
    assert f": {int(scores.measured.sum())} neurons scored, " in scored
    assert told.startswith("the 2 best and the 2 worst, searched for among ")
    more = ["--output", tmp_path / "more"]
    assert "--top with --option top: it is the same option" in refused(capsys, *top, "-o", "top=3", *more)
    assert "'gradient' has no option 'top'" in refused(capsys, *command, "--top", 2, *more)
    assert "budget=3: give 4 or more" in refused(capsys, *top[:-1], 3, *more)
    assert not (tmp_path / "more").exists()


BAD_FILES = {
    "a broken line": ([ROWS[0], "{not json"], ":2"),
    "answer out of range": ([{**ROWS[0], "answer": 3}], ":1"),
    "duplicate choices": ([ROWS[0], {**ROWS[1], "choices": ["red", "red"], "answer": 0}], ":2"),
    "empty choices": ([{**ROWS[0], "choices": []}], ":1"),
    "no rows": ([], "questions.jsonl"),
    "a missing field": ([{"question": "why?"}], ":1"),
    "letters beyond single tokens": ([{**ROWS[0], "choices": [f"c{n}" for n in range(27)]}], "'q0' has 27 choices"),
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
    "unknown option": (["--method", "ace", "-o", "alpha=3"], "steps, quadrature"),
    "malformed option": (["-o", "alpha"], "NAME=VALUE"),
    "positions of another method": (["--method", "ace", "--positions", "all"], "'answer'"),
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
        (["--method", "ace", "-o", "steps=zz"], "steps='zz'"),
        (["-o", "keep=all"], "has no option 'keep'"),
        (["--k", 0, "--keep", "topk"], "k=0"),
        (["--k", 5], "--k 5: it needs --keep topk"),
        (["--keep", "topk", "--keep-dtype", "bfloat16"], "it needs --keep all"),
        (["--objective", "loss"], "logp_options"),
        (["--method", "ace", "--positions", "all"], "'answer'"),
        (["--template", "fancy"], "fancy"),
    ],
)
def test_what_needs_no_model_is_refused_before_it_is_loaded(flags, named, questions, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("neuronllm.model.loading.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
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


@pytest.mark.parametrize("flags", [["--batch-size", "0"], ["--positions", "last"], ["--dtype", "int8"], []])
def test_flags_that_cannot_be_read_are_one_line(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        run("attribute", *flags)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and "neuronllm attribute: error: " in lines[0]


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


def test_a_hub_that_cannot_be_reached_is_one_line(questions, tmp_path, capsys, caplog, monkeypatch):
    """The hub's client tells of every attempt; what else it says is heard."""

    def unreachable(*_, **__):
        client = logging.getLogger("huggingface_hub.utils._http")
        client.warning("'no route' thrown while requesting HEAD https://hub.example/nosuch/model")
        client.warning("Retrying in 1s [Retry 1/5].")
        client.warning("Rate limited. Waiting 60s before retry [Retry 2/5].")
        raise OSError("We couldn't connect to the hub,\nand more")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unreachable)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    flags = ("--model", "nosuch/model", "--questions", questions, "--output", tmp_path / "out")
    capsys.readouterr()
    assert run("attribute", *flags) == 2
    error = capsys.readouterr().err
    assert error.endswith("error: model nosuch/model: cannot be loaded (We couldn't connect to the hub,)\n")
    assert "Retry 1" not in error + caplog.text and "requesting" not in error + caplog.text
    assert "Rate limited" in caplog.text and not logging.getLogger("huggingface_hub.utils._http").filters


def test_attempts_that_led_to_a_model_are_told(model_folder, caplog, monkeypatch):
    from transformers import AutoTokenizer

    from neuronllm.model.loading import load_model

    load = AutoTokenizer.from_pretrained

    def at_second(*args, **more):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        return load(*args, **more)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", at_second)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    load_model(model_folder)
    assert "Retry 1" in caplog.text


def test_a_labelled_csv_file_straight_from_the_command_line(model_folder, tmp_path, capsys):
    path, output = tmp_path / "reviews.csv", tmp_path / "scores"
    path.write_text('text,label\n"Lovely, really.",1\nDull.,0\nSo so.,0\n')
    line = refused(capsys, *asked(model_folder, path, "--output", output))
    assert f"{path}: the labels in 'label' are not texts" in line and "--labels" in line and not output.exists()
    names = ["negative", "positive"]
    assert run(*asked(model_folder, path, "--output", output, "--labels", *names)) == 0
    expected = fingerprint(load_questions(path, labels=names))
    assert Scores.load(output).provenance["question_fingerprint"] == expected


def test_labels_are_for_labelled_texts(model_folder, questions, tmp_path, capsys):
    line = refused(capsys, *asked(model_folder, questions, "--output", tmp_path / "scores", "--labels", "a", "b"))
    assert str(questions) in line and "--labels" in line and not (tmp_path / "scores").exists()
