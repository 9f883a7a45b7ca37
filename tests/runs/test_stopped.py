"""Runs on disk that are killed or interrupted: the same bytes, and nothing half-written."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

import neuronllm as nl
from neuronllm.common import interrupts
from neuronllm.runs import stores
from tests.checks import quiz, refused, untouched
from tests.killing import changes, content, dying_at, forked, run
from tests.runs.tools import KEEPS, ctrl_c, in_window, names
from tests.tiny import tiny

# ---- killed ----


@pytest.mark.parametrize(
    "keep", [pytest.param(keep, marks=pytest.mark.slow if keep != "topk" else ()) for keep in KEEPS]
)
def test_killed_in_front_of_any_change_of_the_disk(model, whole, keep, tmp_path):
    """Every file, rename and removal of a run, one after the other; then every second one of its resumption as well."""
    step, died = 0, True
    while died:
        output = tmp_path / str(step) / "scores"
        died = forked(dying_at(step, lambda output=output: run(model, output, keep))) == -signal.SIGKILL
        if died:
            with refused(
                str(output), "no finished scores" if (output.parent / "scores.partial" / "run.json").exists() else ""
            ):
                nl.Scores.load(output)
        if died and step % 2:
            forked(dying_at(step // 2, lambda output=output: run(model, output, keep, resume=True)))
        assert forked(lambda output=output: run(model, output, keep, resume=True)) == 0
        assert content(output.parent) == content(whole / keep), step
        step += 3 if keep == "mean" else 4
    assert step > 20


def test_killed_at_random_moments(model, whole, tmp_path):
    generator = random.Random(0)
    for number in range(4):
        output = tmp_path / str(number) / "scores"
        for _ in range(3):
            forked(lambda output=output: run(model, output, resume=True), generator.uniform(0, 0.3))
        run(model, output, resume=True)
        assert content(output.parent) == content(whole / "all")


def test_an_earlier_result_stays_until_the_new_one_is_whole(model, whole, tmp_path):
    output = tmp_path / "scores"
    nl.Scores.load(whole / "mean" / "scores").save(output)
    earlier = content(output)
    assert forked(dying_at(12, lambda: run(model, output, overwrite=True))) == -signal.SIGKILL
    assert content(output) == earlier and (tmp_path / "scores.partial").is_dir()
    run(model, output, resume=True)
    assert content(tmp_path) == content(whole / "all")


def test_killed_while_one_result_takes_the_place_of_another(model, whole, tmp_path):
    def replace(number: int) -> Path:
        run(model, tmp_path / f"{number}" / "scores", "mean")
        return tmp_path / f"{number}" / "scores"

    output = replace(0)
    steps = changes(lambda: run(model, output, overwrite=True))
    for back in range(
        1, 8
    ):  # the last: states go, the earlier one steps aside, the new one comes, the earlier one goes
        output = replace(back)
        again = lambda output=output: run(model, output, overwrite=True)  # noqa: E731
        assert forked(dying_at(steps - back, again)) == -signal.SIGKILL
        run(model, output, resume=True)
        assert content(output.parent) == content(whole / "all"), back


# ---- interrupted ----


@pytest.mark.parametrize("keep", KEEPS)
def test_states_between_the_parts_save_work_and_leave_no_trace(model, whole, keep, tmp_path, monkeypatch):
    """What takes long is written down after every window, so that a kill costs little; the bytes stay the same."""
    monkeypatch.setattr(stores, "SAVE_SECONDS", -1.0)
    run(model, tmp_path / "often" / "scores", keep)
    assert content(tmp_path / "often") == content(whole / keep)
    output = tmp_path / "killed" / "scores"
    dies = in_window(2, lambda: os.kill(os.getpid(), signal.SIGKILL))

    def killed() -> None:
        with dies:
            run(model, output, keep, every=64)

    assert forked(killed) == -signal.SIGKILL
    with in_window(5, ctrl_c), pytest.raises(KeyboardInterrupt, match="7 of 8"):  # two were done before
        run(model, output, keep, every=64, resume=True)
    run(model, output, keep, every=64, resume=True)
    monkeypatch.undo()
    run(model, tmp_path / "straight" / "scores", keep, every=64)
    assert content(output.parent) == content(tmp_path / "straight")


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("window", [1, 5])
def test_ctrl_c_keeps_what_is_done(model, keep, window, tmp_path):
    output = tmp_path / "scores"
    said = f"interrupted, {window} of 8 questions are done; go on with resume=True"
    with in_window(window, ctrl_c), untouched(model), pytest.raises(KeyboardInterrupt, match=said):
        run(model, output, keep, every=5)
    assert names(tmp_path) == ["scores.partial"] and not output.exists()
    assert not [name for name in names(tmp_path / "scores.partial") if name.startswith(".")]
    with in_window(1, ctrl_c), pytest.raises(KeyboardInterrupt, match=f"{window + 1} of 8"):
        run(model, output, keep, every=5, resume=True)
    run(model, output, keep, every=5, resume=True)
    run(model, tmp_path / "straight" / "scores", keep, every=5)
    assert content(output) == content(tmp_path / "straight" / "scores") and not (tmp_path / "scores.partial").exists()


def test_ctrl_c_before_anything_is_done_leaves_nothing(model, tmp_path):
    with in_window(0, ctrl_c), pytest.raises(KeyboardInterrupt, match="nothing is kept, start again"):
        run(model, tmp_path / "scores")
    assert names(tmp_path) == []
    interrupted = tiny("llama")
    interrupted.model.norm.register_forward_pre_hook(lambda *_: ctrl_c())  # before the engine knows the model
    with untouched(interrupted), pytest.raises(KeyboardInterrupt):
        run(interrupted, tmp_path / "scores")
    assert names(tmp_path) == []


def test_ctrl_c_without_output_just_ends_it(model):
    with in_window(1, ctrl_c), pytest.raises(KeyboardInterrupt) as stop:
        nl.attribute(model, None, quiz(30), "gradient", positions="answer", batch_size=2, progress=False)
    assert not stop.value.args


def test_ctrl_c_again_while_the_state_is_written_changes_nothing(model, tmp_path, monkeypatch):
    """The second one comes while the first is being obeyed: the same line, the same bytes."""
    save, saved = stores.DiskStore._save, []

    def save_and_press(self, plan):
        saved.append(plan)
        ctrl_c()
        save(self, plan)

    output = tmp_path / "scores"
    monkeypatch.setattr(stores.DiskStore, "_save", save_and_press)
    for pause in (1.0, 0.0):  # within a second of the first, and as if it came later
        monkeypatch.setattr(interrupts, "AGAIN", pause)
        with in_window(1, ctrl_c), untouched(model), pytest.raises(KeyboardInterrupt, match="of 8 questions are done"):
            run(model, output, every=64, resume=True)
    monkeypatch.undo()
    assert len(saved) == 2 and names(tmp_path / "scores.partial") == ["run.json", "state-0.safetensors"]
    run(model, output, every=64, resume=True)
    run(model, tmp_path / "straight" / "scores", every=64)
    assert content(output) == content(tmp_path / "straight" / "scores")
