"""`neuronllm learn`, and what the other commands make of a learned set."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import neuronllm as nl
from neuronllm.results.learned import learned_lines
from neuronllm.results.neurons import NeuronSet
from neuronllm.steering.training import Trainer
from tests.cli.tools import ROWS, refused, run, write_questions

NOT_A_STEP = "- no edit: no step did better on the validation questions than leaving the model as it is"
QUICK = ("--steps", 2, "--seeds", 2, "--quiet")


def asked(model_folder, questions, *flags):
    return ("learn", "--model", model_folder, "--questions", questions, *QUICK, *flags)


def test_learned_judged_and_baked(model_folder, questions, tmp_path, capsys):
    learned, baked, report = (tmp_path / name for name in ("learned", "baked", "report.json"))
    assert run(*asked(model_folder, questions, "--margin", "none", "--output", learned)) == 0
    said = capsys.readouterr().out
    assert "turned up" in said and "enhance, 2 seeds of 2 steps, positions all" in said
    found = NeuronSet.from_pretrained(learned)
    assert len(found) == 56 and found.provenance["learned"]["retain_texts"] == 24
    assert not (tmp_path / "learned.partial").exists()
    judged = ("evaluate", "--model", model_folder, "--questions", questions, "--neurons", learned, "--quiet")
    assert run(*judged, "--output", report) == 0
    assert json.loads(report.read_text())["edit"]["mode"] == "own"
    assert run("bake", "--model", model_folder, "--neurons", learned, "--output", baked) == 0
    model, tokenizer = nl.load_model(model_folder)
    edited, _ = nl.load_model(baked)
    inputs = tokenizer("Question: which of these?", return_tensors="pt").input_ids
    with torch.no_grad(), found.apply(model):
        live = model(inputs).logits
    assert torch.allclose(live, edited(inputs).logits, rtol=0, atol=1e-6 * float(live.abs().max()))


@pytest.mark.parametrize(("steps", "why"), [(2, "- no edit: accuracy has to rise by more than 1000"), (0, NOT_A_STEP)])
def test_without_an_edit_no_neuron_is_said_to_be_turned(
    steps, why, model_folder, questions, tmp_path, capsys, monkeypatch
):
    """The factors of every seed are those of its best look at the validation questions, or 1 where none was best."""
    train = Trainer.train

    def told_otherwise(*args, **more):
        found = train(*args, **more)
        return replace(found, step=steps, factors=found.forced if steps else torch.ones_like(found.factors))

    monkeypatch.setattr(Trainer, "train", told_otherwise)
    learned = tmp_path / "learned"
    assert run(*asked(model_folder, questions, "--margin", 1000, "--output", learned)) == 0
    first, *facts = capsys.readouterr().out.splitlines()
    assert first == f"{learned}: no edit: the model is best left as it is"
    assert [fact for fact in facts if "edit" in fact] == [next(fact for fact in facts if fact.startswith(why))]
    assert not any("turned" in fact for fact in facts) and len(NeuronSet.from_pretrained(learned)) == 0


def test_every_flag_is_handed_on(model_folder, questions, tmp_path, monkeypatch):
    heard = {}

    def heed(*models, **given):
        heard.update(given)
        raise nl.InputError("heard")

    monkeypatch.setattr("neuronllm.cli.learn.learn", heed)
    asked = {"k": 3, "goal": "degrade", "positions": "answer", "steps": 5, "batch": 6, "lr": 0.5, "l1": 0.25}
    asked |= {"retain_weight": 0.5, "seeds": 4, "seed": 7, "margin": 1.5, "controls": 8, "cache_gib": 0.5}
    asked |= {"backend": "reference", "batch_size": 9, "orders": "rotate", "answers": "letters"}
    flags = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    switches = ("--signed", "--shuffled", "--overwrite", "--quiet", "--output", tmp_path / "learned")
    assert run("learn", "--model", model_folder, "--questions", questions, *flags, *switches) == 2
    asked |= {"signed": True, "shuffled": True, "overwrite": True, "progress": False, "resume": False}
    assert asked.items() <= heard.items()


def test_what_learning_came_to():
    gain = {"mean": 0.01, "stderr": 0.02}
    told = {"goal": "enhance", "objective": "logp_options", "seeds": 1, "steps": 8, "positions": "all", "margin": 2.0}
    told |= {"accuracy": [0.5, 0.51], "validation_questions": 100, "gain": gain, "steps_taken": [4]}
    told |= {"gain_objective": {"mean": 0.3, "stderr": 0.2}, "collapsed": False, "kept": False}
    told |= {"turned": {"good_up": 3, "good_down": 1, "bad_up": 0, "bad_down": 2}}
    head = "- learned: {}, 1 seeds of 8 steps, positions all; accuracy of 100 validation questions 0.500 -> 0.510"
    turned = "- turned up: 3 good, 0 bad; turned down: 1 good, 2 bad; {} of 6 against their role"
    lines = {
        "enhance": "- no edit: accuracy has to rise by more than 2 standard errors, 0.040, and changes by +0.010",
        "degrade": "- no edit: accuracy has to fall by more than 2 standard errors, 0.040, and changes by +0.010",
        "objective": "- no edit: logp_options has to rise by more than 2 standard errors, 0.400, and changes by +0.300",
    }
    for goal, line in lines.items():
        assert learned_lines({**told, "goal": goal}, None) == [head.format(goal), line]
    assert learned_lines({**told, "steps_taken": [0]}, None)[1:] == [NOT_A_STEP]
    same = "edited, the model is more than half of the way to one answer whatever is asked, and unedited it was not"
    assert learned_lines({**told, "collapsed": True}, None)[1:] == [f"- no edit: {same}"]
    told["kept"] = True
    assert learned_lines(told, None)[1:] == [turned.format(1)]
    assert learned_lines({**told, "goal": "degrade"}, None)[1:] == [turned.format(5)]
    assert learned_lines({**told, "collapsed": True}, None)[1:] == [turned.format(1), f"- beware: {same}"]


def test_the_limit_holds_for_both_files(model_folder, questions, tmp_path):
    held = write_questions(tmp_path / "held.jsonl", [{**row, "question": f"And {row['id']}?"} for row in ROWS])
    flags = ("--validation", held, "--limit", 4, "--margin", "none", "--output", tmp_path / "learned")
    assert run(*asked(model_folder, questions, *flags)) == 0
    told = NeuronSet.from_pretrained(tmp_path / "learned").provenance["learned"]
    assert (told["questions"], told["validation_questions"]) == (4, 4)


def test_chosen_neurons_texts_and_a_file_to_retain(model_folder, questions, tmp_path, capsys):
    scores, neurons, learned = (tmp_path / name for name in ("scores", "neurons", "learned"))
    plain = ("attribute", "--model", model_folder, "--questions", questions, "--answers", "texts", "--quiet")
    assert run(*plain, "--output", scores) == 0
    assert run("find", scores, "--good", 5, "--bad", 5, "--output", neurons) == 0
    kept = tmp_path / "kept.txt"
    kept.write_text("The ferry leaves at seven.\n\nNobody knew why.\n")
    held = write_questions(tmp_path / "held.jsonl", ROWS[:3])
    flags = ("--neurons", neurons, "--retain", kept, "--validation", held, "--k", 3, "--goal", "degrade")
    assert run(*asked(model_folder, questions, *flags, "--margin", "none", "--output", learned)) == 0
    found = NeuronSet.from_pretrained(learned)
    told = found.provenance["learned"]
    assert len(found) == 3 and told["answers"] == "texts" and told["goal"] == "degrade"
    assert (told["retain_texts"], told["validation_questions"]) == (2, 3)
    again = asked(model_folder, questions, *flags, "--margin", "none", "--output", learned)
    assert "an earlier result stands there" in refused(capsys, *again)
    assert run(*again, "--resume") == 0
    assert run(*again, "--overwrite") == 0


def test_random_sets_learned_the_same_way(model_folder, questions, tmp_path, capsys):
    learned, report = tmp_path / "learned", tmp_path / "report.json"
    flags = ("--k", 4, "--controls", 2, "--shuffled", "--margin", "none", "--output", learned)
    assert run(*asked(model_folder, questions, *flags)) == 0
    said = capsys.readouterr().out
    assert "2 plain and 2 matched" in said and "shuffled answers" in said
    judged = ("evaluate", "--model", model_folder, "--questions", questions, "--neurons", learned, "--quiet")
    assert run(*judged, "--output", report) == 0
    said, data = capsys.readouterr().out, json.loads(report.read_text())
    for line in ("2 plain sets", "2 matched sets", "a bias alone", "p, Holm", "plain text"):
        assert line in said
    assert data["learned"]["plain"]["sets"] == 2 and data["plain_text"]["sentences"] == 24


def test_bad_input_is_one_line(model_folder, questions, tmp_path, capsys):
    output = ("--output", tmp_path / "learned")
    cases = {
        ("--goal", "better"): "goal='better'",
        ("--lr", "-1"): "lr=-1",
        ("--retain", tmp_path / "none.txt"): "no such file",
        ("--neurons", tmp_path / "none"): "no neuron set there",
        ("--validation", tmp_path / "none.jsonl"): "none.jsonl",
        ("--margin", "much"): "or none",
        ("--seeds", "0"): "--seeds",
        ("--controls", "1"): "all 56 neurons",
        ("--retain-weight", "-2"): "retain_weight=-2",
    }
    for flags, said in cases.items():
        try:
            assert said in refused(capsys, *asked(model_folder, questions, *flags, *output))
        except SystemExit as stop:  # a flag that cannot be read
            assert stop.code == 2 and said in capsys.readouterr().err
    few = write_questions(tmp_path / "few.jsonl", ROWS[:4])
    assert "too few" in refused(capsys, *asked(model_folder, few, *output))
    assert not (tmp_path / "learned").exists() and not (tmp_path / "learned.partial").exists()
