"""Learning on disk: killed and taken up again, interrupted, refused, in several processes."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm.results.neurons import NeuronSet
from neuronllm.runs.checkpoint import Interrupted
from neuronllm.steering import training
from tests.checks import refused
from tests.killing import changes, content, dying_at, forked
from tests.test_learn import text_questions
from tests.test_ranks import processes
from tests.test_tune import a_set, harmed
from tests.tiny import tiny


@pytest.fixture(scope="module")
def broken():
    model, prompts = harmed()
    return model, prompts


def learned(broken: Any, output: Path | None, **more: Any) -> NeuronSet:
    model, prompts = broken
    neurons = a_set(model, good=[2, 9, 40], bad=[30, 7, 50, 11])
    given = {"positions": "answer", "retain": prompts[:4], "margin": None, "steps": 4} | more
    return nl.learn(model, None, prompts, neurons=neurons, output=output, progress=False, **given)


def test_a_run_killed_at_any_change_of_the_disk_ends_with_the_same_bytes(broken, tmp_path):
    whole = tmp_path / "whole" / "set"
    steps = changes(lambda: learned(broken, whole))
    generator = random.Random(0)
    for step in sorted(generator.sample(range(1, steps), 10)):
        output = tmp_path / str(step) / "set"
        assert forked(dying_at(step, lambda output=output: learned(broken, output))) == -signal.SIGKILL
        learned(broken, output, resume=True)
        assert content(output.parent) == content(whole.parent), step


def test_with_k_too(broken, tmp_path):
    work = lambda name, **more: learned(broken, tmp_path / name / "set", k=1, seeds=2, **more)  # noqa: E731
    steps = changes(lambda: work("whole"))
    assert forked(dying_at(steps - 12, lambda: work("killed"))) == -signal.SIGKILL
    work("killed", resume=True)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_with_controls_too(broken, tmp_path):
    work = lambda name, **more: learned(broken, tmp_path / name / "set", controls=2, shuffled=True, seeds=1, **more)  # noqa: E731
    steps = changes(lambda: work("whole"))
    for step in (steps // 2, 2 * steps // 3):
        name = str(step)
        assert forked(dying_at(step, lambda name=name: work(name))) == -signal.SIGKILL
        assert (tmp_path / name / "set.partial" / "plain-00-seed-0.safetensors").is_file()
        work(name, resume=True)
        assert content(tmp_path / name) == content(tmp_path / "whole")
    assert "controls.safetensors" in {path.name for path in (tmp_path / "whole" / "set").iterdir()}


def test_ctrl_c_keeps_what_is_done(broken, tmp_path, monkeypatch):
    output, looks, look = tmp_path / "set", iter(range(100)), training.Judge.__call__

    def stop(self: Any, *given: Any, **more: Any) -> Any:
        if next(looks) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return look(self, *given, **more)

    monkeypatch.setattr(training.Judge, "__call__", stop)
    with pytest.raises(Interrupted, match="go on with resume=True"):
        learned(broken, output)
    monkeypatch.undo()
    assert (tmp_path / "set.partial" / "run.json").is_file() and not output.exists()
    with refused("is a run under way", "--resume"):
        learned(broken, output)
    with refused("the run was begun with", "steps"):
        learned(broken, output, resume=True, steps=6)
    learned(broken, output, resume=True)
    learned(broken, tmp_path / "straight" / "set")
    assert content(output) == content(tmp_path / "straight" / "set")
    assert learned(broken, tmp_path / "new", resume=True) is not None  # nothing to take up: it starts


def test_in_memory_and_on_disk_are_the_same(broken, tmp_path):
    there, here = learned(broken, tmp_path / "set"), learned(broken, None)
    assert torch.equal(there.factor, here.factor)
    assert there.provenance["learned"]["curves"] == here.provenance["learned"]["curves"]


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["answer", "all"])
def test_two_processes_learn_what_one_does(broken, tmp_path, positions):
    model, _ = broken
    prompts = text_questions(9)
    neurons = a_set(model, good=[2, 9, 40], bad=[30, 7])

    def work(name: str) -> None:
        nl.learn(
            model, None, prompts, neurons=neurons, positions=positions, retain=prompts[:3], margin=None, steps=6,
            batch=4, progress=False, output=tmp_path / name,
        )  # fmt: skip

    assert processes(tmp_path / "group", lambda rank: work("two")) == [0, 0]
    work("one")
    two, one = (NeuronSet.from_pretrained(tmp_path / name) for name in ("two", "one"))
    assert torch.allclose(two.factor.double(), one.factor.double(), atol=1e-6)
    curves = [
        [facts["loss"] for curve in some.provenance["learned"]["curves"] for facts in curve] for some in (two, one)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-9)


@pytest.mark.slow
def test_losses_of_two_processes_in_float32(tmp_path):
    model, prompts = tiny("llama", torch.float32), text_questions(9)

    def work(name: str) -> None:
        nl.learn(
            model, None, prompts, retain_weight=0, margin=None, steps=5, batch=4, progress=False, output=tmp_path / name
        )

    assert processes(tmp_path / "group", lambda rank: work("two")) == [0, 0]
    work("one")
    two, one = (NeuronSet.from_pretrained(tmp_path / name).provenance["learned"]["curves"] for name in ("two", "one"))
    for mine, theirs in zip(two, one, strict=True):
        assert [facts["loss"] for facts in mine] == pytest.approx([facts["loss"] for facts in theirs], abs=1e-5)


@pytest.mark.slow
def test_two_processes_killed_and_taken_up_again(broken, tmp_path):
    work = lambda rank, **more: learned(broken, tmp_path / "out" / "set", **more)  # noqa: E731
    assert processes(tmp_path / "group", work) == [0, 0]
    whole = content(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "whole")
    first = lambda rank: dying_at(10**6 if rank else 14, lambda: work(rank))()  # noqa: E731
    assert -signal.SIGKILL in processes(tmp_path / "group", first)
    assert processes(tmp_path / "group", lambda rank: work(rank, resume=True)) == [0, 0]
    assert content(tmp_path / "out") == whole


@pytest.mark.slow
def test_two_processes_draw_and_learn_the_same_controls(broken, tmp_path):
    work = lambda name: learned(broken, tmp_path / name, controls=1, shuffled=True, seeds=1)  # noqa: E731
    assert processes(tmp_path / "group", lambda rank: work("two")) == [0, 0]
    work("one")
    two, one = (NeuronSet.from_pretrained(tmp_path / name) for name in ("two", "one"))
    assert torch.equal(two.controls.ids, one.controls.ids)
    assert torch.allclose(two.controls.factors, one.controls.factors, atol=1e-6)
    bias, expected = (some.provenance["learned"]["bias"]["values"] for some in (two, one))
    assert bias == pytest.approx(expected, abs=1e-6)
    told, alone = (some.provenance["learned"]["shuffled"]["gain"] for some in (two, one))
    assert told == pytest.approx(alone, abs=1e-6)
