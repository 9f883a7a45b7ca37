"""Runs on disk: killed, interrupted, out of room, taken up again: the same bytes, and nothing half-written."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm import runs
from neuronllm.kept import Parts
from neuronllm.methods import METHODS
from neuronllm.runs import undisturbed
from tests.checks import Fuse, blow_after, quiz, refused, untouched
from tests.killing import changes, content, dying_at, forked, run
from tests.tiny import tiny

KEEPS = ("mean", "topk", "all")


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """Finished runs that nothing disturbed, by what they keep."""
    folder = tmp_path_factory.mktemp("whole")
    for keep in KEEPS:
        run(model, folder / keep / "scores", keep)
    return folder


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- what is kept ----


def test_what_a_run_leaves(model, whole):
    assert names(whole / "mean" / "scores") == ["run.json", "scores.json", "scores.safetensors"]
    assert names(whole / "topk" / "scores") == ["run.json", "scores.json", "scores.safetensors"]
    parts = [f"part-0-{number:05d}.safetensors" for number in range(5)]
    assert names(whole / "all" / "scores") == [*parts, "run.json", "scores.json", "scores.safetensors"]
    for keep in KEEPS:
        assert names(whole / keep) == ["scores"]
        for path in (whole / keep / "scores").iterdir():
            assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("keep", KEEPS)
def test_on_disk_and_in_memory_are_alike(model, whole, keep):
    here = nl.attribute(
        model, None, quiz(8), "ace" if keep == "mean" else "gradient", keep=keep, k=3, batch_size=2, progress=False,
        **({"steps": 2} if keep == "mean" else {}),
    )  # fmt: skip
    there = nl.Scores.load(whole / keep / "scores")
    for name in ("values", "stderr", "sign_consistency"):
        assert torch.equal(getattr(here, name), getattr(there, name))
    assert here.provenance == there.provenance
    if keep == "all":
        assert isinstance(there.per_prompt, Parts) and torch.equal(there.per_prompt[:], here.per_prompt)
    assert (here.top is None) == (there.top is None) == (keep != "topk")
    if keep == "topk":
        for mine, theirs in zip(here.top.tensors().values(), there.top.tensors().values(), strict=True):
            assert torch.equal(mine, theirs)


def test_parts_are_indexed_like_a_tensor(model, whole):
    parts = nl.Scores.load(whole / "all" / "scores").per_prompt
    every = parts[:]
    assert parts.shape == every.shape == (len(parts), 56) and parts.dtype == every.dtype == torch.float32
    for index in (
        0,
        -1,
        slice(3, 9),
        slice(None, None, 3),
        slice(3, 3),
        [5, 1, 5],
        [],
        ...,
        torch.tensor([], dtype=torch.int64),
    ):
        assert torch.equal(parts[index], every[index])
    assert torch.equal(parts[every[:, 0] > 0], every[every[:, 0] > 0])
    assert "5 files" in repr(parts)
    with pytest.raises(IndexError):
        parts[len(parts)]
    assert torch.equal(parts[::-1], every.flip(0)) and torch.equal(parts[7:2:-2], every[[7, 5, 3]])
    assert len(list(parts)) == len(parts)  # a loop ends
    with refused("indexed by prompts only"):
        parts[[[0, 1]]]
    for index in ((3, 5), "a", ["a"], [0.5], [len(parts)], slice("a", None), torch.zeros(3, 3), [[1], [2, 3]]):
        with refused("per_prompt[", f"prompts 0 to {len(parts) - 1}", "per_prompt[rows][:, neurons]"):
            parts[index]


def test_top_is_each_prompts_own(model):
    scores = nl.attribute(model, None, quiz(3), "gradient", keep="all", progress=False)
    top = nl.attribute(model, None, quiz(3), "gradient", keep="topk", k=4, progress=False).top
    order = scores.per_prompt.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(top.largest.ids.long(), order[:, :4])
    assert torch.equal(top.smallest.ids.long(), order.flip(1)[:, :4])
    assert torch.equal(top.largest.values, scores.per_prompt.gather(1, order[:, :4]))
    assert top.largest.ids.dtype == torch.int32 and top.smallest.values.dtype == torch.float32
    more = nl.attribute(model, None, quiz(1), "gradient", keep="topk", k=99, progress=False).top
    assert more.largest.ids.shape == (2, 56)  # as many as there are
    narrow, judged = copy.deepcopy(model).float(), {"keep": "topk", "k": 4, "dtype": torch.float64}
    double = nl.attribute(narrow, None, quiz(3), "gradient", progress=False, **judged)
    assert torch.equal(double.top.largest.ids, top.largest.ids) and double.top.largest.values.dtype == torch.float32
    assert torch.allclose(double.top.largest.values, top.largest.values, rtol=1e-4)


def test_bfloat16_halves_the_parts(model, whole, tmp_path):
    exact = nl.Scores.load(whole / "all" / "scores").per_prompt[:]
    scores = run(model, tmp_path / "scores", "all", keep_dtype=torch.bfloat16)
    assert scores.per_prompt.dtype == torch.bfloat16
    assert torch.equal(scores.per_prompt[:], exact.bfloat16())
    assert torch.equal(scores.values, nl.Scores.load(whole / "all" / "scores").values)  # the mean is of exact scores
    here = nl.attribute(model, None, quiz(1), "gradient", keep="all", keep_dtype=torch.bfloat16, progress=False)
    assert here.per_prompt.dtype == torch.bfloat16


def test_what_was_loaded_can_be_saved_elsewhere(whole, tmp_path):
    for keep in KEEPS:
        scores = nl.Scores.load(whole / keep / "scores")
        scores.save(tmp_path / keep)
        again = nl.Scores.load(tmp_path / keep)
        assert torch.equal(again.values, scores.values) and "run.json" not in names(tmp_path / keep)
    assert torch.equal(
        nl.Scores.load(tmp_path / "all").per_prompt[:], nl.Scores.load(whole / "all" / "scores").per_prompt[:]
    )
    assert torch.equal(
        nl.Scores.load(tmp_path / "topk").top.largest.ids, nl.Scores.load(whole / "topk" / "scores").top.largest.ids
    )
    nl.Scores.load(tmp_path / "all").save(tmp_path / "all")  # onto itself
    assert len(nl.Scores.load(tmp_path / "all").per_prompt[:]) == len(quiz(8))


# ---- killed ----


@pytest.mark.parametrize("keep", KEEPS)
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
    assert forked(dying_at(12, lambda: run(model, output))) == -signal.SIGKILL
    assert content(output) == earlier and (tmp_path / "scores.partial").is_dir()
    run(model, output, resume=True)
    assert content(tmp_path) == content(whole / "all")


def test_killed_while_one_result_takes_the_place_of_another(model, whole, tmp_path):
    def replace(number: int) -> Path:
        run(model, tmp_path / f"{number}" / "scores", "mean")
        return tmp_path / f"{number}" / "scores"

    output = replace(0)
    steps = changes(lambda: run(model, output))
    for back in range(
        1, 8
    ):  # the last: states go, the earlier one steps aside, the new one comes, the earlier one goes
        output = replace(back)
        assert forked(dying_at(steps - back, lambda output=output: run(model, output))) == -signal.SIGKILL
        run(model, output, resume=True)
        assert content(output.parent) == content(whole / "all"), back


# ---- interrupted ----


@contextmanager
def in_window(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Let something happen in the window of that number, before its scores are there."""
    count, before = iter(range(10**9)), {name: METHODS[name].score for name in ("ace", "gradient")}

    def acting(score: Any) -> Any:
        def act_and_score(*args: Any) -> Any:
            if next(count) == number:
                act()
            return score(*args)

        return act_and_score

    try:
        for name, score in before.items():
            METHODS[name].score = acting(score)
        yield
    finally:
        for name, score in before.items():
            METHODS[name].score = score


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fail() -> None:
    raise Fuse


@pytest.mark.parametrize("keep", KEEPS)
def test_states_between_the_parts_save_work_and_leave_no_trace(model, whole, keep, tmp_path, monkeypatch):
    """What takes long is written down after every window, so that a kill costs little; the bytes stay the same."""
    monkeypatch.setattr(runs, "SAVE_SECONDS", -1.0)
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
        nl.attribute(model, None, quiz(30), "gradient", batch_size=2, progress=False)
    assert not stop.value.args


def test_undisturbed_defers_ctrl_c_and_gives_the_handler_back():
    seen, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), undisturbed():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        seen.append("through")
    assert seen == ["through"] and signal.getsignal(signal.SIGINT) is before
    with undisturbed():
        pass
    thread = threading.Thread(target=lambda: undisturbed().__enter__() or seen.append("thread"))
    thread.start()
    thread.join()
    assert seen == ["through", "thread"]


# ---- what is refused ----


def stopped(model, output, **more):
    """A run that was killed in the middle."""
    assert forked(dying_at(14, lambda: run(model, output, **more))) == -signal.SIGKILL
    assert (output.parent / f"{output.name}.partial").is_dir()


def attribute(model, output, method="gradient", questions=8, **more):
    more = {"keep": "all", "k": 3, "batch_size": 2, "progress": False, **more}
    return nl.attribute(model, None, quiz(questions), method, output=output, **more)


OTHERS = [
    ({"method": "exact"}, ["method 'gradient', not 'exact'"]),
    ({"questions": 7}, ["question_fingerprint"]),
    ({"keep": "topk"}, ["keep 'all', not 'topk'"]),
    ({"keep_dtype": torch.bfloat16}, ["keep_dtype 'float32', not 'bfloat16'"]),
    ({"objective": "margin"}, ["objective 'logp_options', not 'margin'"]),
    ({"positions": "all"}, ["positions 'answer', not 'all'"]),
    ({"items": "right"}, ["items 'all', not 'right'"]),
    ({"batch_size": 3}, ["batch_size 2, not 3"]),
    ({"backend": "reference"}, ["backend 'fast', not 'reference'"]),
    ({"dtype": torch.float32}, ["judged in None, not 'float32'"]),
]


def test_a_run_goes_on_with_the_same_settings_only(model, whole, tmp_path):
    output = tmp_path / "scores"
    stopped(model, output)
    before = content(tmp_path)
    for arguments, parts in OTHERS:
        with refused("scores.partial", "begun with", *parts):
            attribute(model, output, **{**arguments, "resume": True})
    other = tiny("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with refused("begun with weights"):
        attribute(other, output, resume=True)
    baked = copy.deepcopy(model)
    nl.bake(baked, nl.Scores.load(whole / "mean" / "scores").find(2, 2), good=-1.0, bad=0.0)
    with refused("begun with weights"):
        attribute(baked, output, resume=True)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with refused("begun with attention 'sdpa', not 'eager'"):
        attribute(eager, output, resume=True)
    assert content(tmp_path) == before


def test_a_run_under_way_is_not_trodden_on(model, tmp_path):
    stopped(model, tmp_path / "scores")
    before = content(tmp_path)
    with refused("scores.partial is a run under way", "--resume", "delete it"):
        attribute(model, tmp_path / "scores")
    with refused("run under way", "--resume"):
        nl.Scores.load(tmp_path / "scores")
    with refused("run under way", "--resume"):
        nl.Scores.load(tmp_path / "scores.partial")
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "thesis.txt").write_text("years of work")
    (tmp_path / "file.partial").write_text("more of it")
    for name in ("mine", "file"):
        for resume in (False, True):
            with refused(f"{name}.partial stands there", "not ours"):
                attribute(model, tmp_path / name, resume=resume)
    assert {name: data for name, data in content(tmp_path).items() if name.startswith("scores")} == before


def test_no_run_goes_inside_another(model, whole, tmp_path):
    finished = tmp_path / "every"
    nl.Scores.load(whole / "mean" / "scores").save(finished)
    stopped(model, tmp_path / "scores")
    before = content(tmp_path)
    for folder in (finished, tmp_path / "scores.partial"):
        for output in (folder / "x", folder / "a" / "b"):
            with refused(f"output {output}", f"{folder} holds the scores of another run", "outside it"):
                attribute(model, output)
    assert content(tmp_path) == before


def test_resuming_where_there_is_nothing_starts_and_what_is_finished_is_read(model, whole, tmp_path):
    output = tmp_path / "scores"
    run(model, output, resume=True)
    assert content(tmp_path) == content(whole / "all")
    broken = tiny("llama")
    blow_after(broken, 0)
    scores = run(broken, output, resume=True)  # nothing is asked of the model any more
    assert torch.equal(scores.values, nl.Scores.load(output).values) and content(tmp_path) == content(whole / "all")
    with refused("begun with method 'gradient', not 'ace'"):
        attribute(model, output, "ace", resume=True)
    scores.save(tmp_path / "saved")
    with refused("saved", "not of a run"):
        attribute(model, tmp_path / "saved", resume=True)
    with refused("resume=True", "output="):
        nl.attribute(model, None, quiz(1), resume=True)


def test_the_plan_is_in_the_manifest_before_the_start_and_no_times(model, tmp_path, whole):
    stopped(model, tmp_path / "scores")
    early = json.loads((tmp_path / "scores.partial" / "run.json").read_text())
    late = json.loads((whole / "all" / "scores" / "run.json").read_text())
    assert late == {**early, "backoffs": [[]]} and early["plan"]["prompts"] == 2 and early["window"] == 2
    assert not [name for name in late["settings"] if "time" in name or "date" in name]


def test_a_plan_that_was_cut_back_is_followed_from_there(model, tmp_path, monkeypatch):
    """An engine that runs out of memory changes its plan; who takes the run up begins with the changed one."""
    seen, score = [], METHODS["gradient"].score

    def cut_back(self, engine, prompts, objective, positions):
        seen.append((engine.plan.prompts, list(engine.plan.backoffs)))
        if len(seen) == 2:
            engine.plan.prompts = 1
            engine.plan.backoffs.append("2 prompts ran out of memory")
        if len(seen) == 5:
            raise KeyboardInterrupt
        return score(self, engine, prompts, objective, positions)

    monkeypatch.setattr(METHODS["gradient"], "score", cut_back)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "scores")
    run(model, tmp_path / "scores", resume=True)
    assert seen[0] == (2, []) and all(plan == (1, ["2 prompts ran out of memory"]) for plan in seen[2:])
    manifest = json.loads((tmp_path / "scores" / "run.json").read_text())
    assert manifest["backoffs"] == [["2 prompts ran out of memory"]] and manifest["plan"]["prompts"] == 2


def test_the_chosen_questions_are_asked_once(model, tmp_path):
    output = tmp_path / "scores"
    stopped(model, output, items="wrong")
    chosen = json.loads((tmp_path / "scores.partial" / "run.json").read_text())["chosen"]
    run(model, tmp_path / "straight", items="wrong")
    run(model, output, items="wrong", resume=True)
    assert content(output) == content(tmp_path / "straight")
    assert 0 < len(chosen) < 8 and nl.Scores.load(output).provenance["questions"] == len(chosen)


def test_a_full_disk_is_one_line_and_the_run_goes_on(model, whole, tmp_path):
    output = tmp_path / "scores"

    def crowded() -> None:
        def fill_up() -> None:  # from here on, files of more bytes are refused
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

        with in_window(5, fill_up), refused("scores.partial", "cannot be written", "large", "resume=True"):
            run(model, output, every=9)
        assert not [name for name in names(tmp_path / "scores.partial") if name.startswith(".state")]

    assert forked(crowded) == 0
    run(model, output, every=9, resume=True)
    run(model, tmp_path / "straight", every=9)
    assert content(output) == content(tmp_path / "straight") and names(tmp_path) == ["scores", "straight"]


def test_failing_before_anything_is_done_leaves_nothing(model, tmp_path):
    with in_window(0, fail), pytest.raises(Fuse):
        run(model, tmp_path / "scores")
    assert names(tmp_path) == []


def test_failing_later_keeps_what_is_done(model, whole, tmp_path):
    with in_window(5, fail), pytest.raises(Fuse):
        run(model, tmp_path / "scores")
    assert names(tmp_path) == ["scores.partial"]
    run(model, tmp_path / "scores", resume=True)
    assert content(tmp_path) == content(whole / "all")


def test_a_result_that_cannot_be_leaves_nothing(model, tmp_path):
    prompts = [p for p in quiz(40, variants=False) if right(model, p)]
    with refused("contrast", "answered right"):
        nl.attribute(model, None, prompts, "contrast", batch_size=1, progress=False, output=tmp_path / "scores")
    assert names(tmp_path) == [] and len(prompts) > 3


def right(model, prompt) -> bool:
    with torch.no_grad():
        logits = model(torch.tensor([prompt.input_ids])).logits[0, -1]
    return int(torch.stack([logits[ids].logsumexp(0) for ids in prompt.option_ids]).argmax()) == prompt.answer


def test_bad_values(model):
    for arguments, parts in [
        ({"k": 0}, ["k=0"]),
        ({"k": 2.5}, ["k=2.5"]),
        ({"k": True}, ["k=True"]),
        ({"keep_dtype": torch.float16}, ["keep_dtype=torch.float16", "bfloat16"]),
        ({"keep_dtype": "float32"}, ["keep_dtype='float32'"]),
    ]:
        with refused(*parts):
            nl.attribute(model, None, quiz(1), "gradient", progress=False, **arguments)


def test_parts_stay_small():
    assert runs.every_prompts(4 * 11264) == 64 and runs.every_prompts(4 * 4_700_000) == 14
    assert runs.every_prompts(2**40) == 1
