"""Runs on disk that cannot go on: other settings, a full disk, a folder in use; one clear line each."""

from __future__ import annotations

import copy
import json
import resource
import signal

import pytest
import torch

import neuronllm as nl
from neuronllm.methods import METHODS
from neuronllm.runs import checkpoint
from tests.checks import Fuse, blow_after, quiz, refused
from tests.killing import content, dying_at, forked, run
from tests.runs.tools import fail, in_window, names
from tests.tiny import tiny


def stopped(model, output, **more):
    """A run that was killed in the middle."""
    assert forked(dying_at(14, lambda: run(model, output, **more))) == -signal.SIGKILL
    assert (output.parent / f"{output.name}.partial").is_dir()


def attribute(model, output, method="gradient", questions=8, **more):
    more = {"positions": "answer", "keep": "all", "k": 3, "batch_size": 2, "progress": False, **more}
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
    nl.bake(baked, nl.Scores.load(whole / "mean" / "scores").find(2, 2), good=-1.0, bad=0.0, positions="all")
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
    with refused("scores.partial is a run under way", "--resume", "delete it", "replaces finished results only"):
        attribute(model, tmp_path / "scores", overwrite=True)
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
        nl.attribute(
            model,
            None,
            prompts,
            "contrast",
            positions="answer",
            batch_size=1,
            progress=False,
            output=tmp_path / "scores",
        )
    assert names(tmp_path) == [] and len(prompts) > 3


def right(model, prompt) -> bool:
    with torch.no_grad():
        logits = model(torch.tensor([prompt.input_ids])).logits[0, -1]
    return int(torch.stack([logits[ids].logsumexp(0) for ids in prompt.first_tokens]).argmax()) == prompt.answer


def test_bad_values(model):
    for arguments, parts in [
        ({"k": 0}, ["k=0"]),
        ({"k": 2.5}, ["k=2.5"]),
        ({"k": True}, ["k=True"]),
        ({"keep_dtype": torch.float16}, ["keep_dtype=torch.float16", "bfloat16"]),
        ({"keep_dtype": "int8"}, ["keep_dtype='int8'", "float64"]),
    ]:
        with refused(*parts):
            nl.attribute(model, None, quiz(1), "gradient", positions="answer", progress=False, **arguments)


def test_parts_stay_small():
    assert checkpoint.every_prompts(4 * 11264) == 64 and checkpoint.every_prompts(4 * 4_700_000) == 14
    assert checkpoint.every_prompts(2**40) == 1


def test_an_earlier_result_is_replaced_only_where_that_is_asked(model, whole, tmp_path):
    output = tmp_path / "scores"
    attribute(model, output)
    before = content(tmp_path)
    for more in ({}, {"method": "exact"}, {"questions": 7}):
        with refused("scores: an earlier result stands there", "name a new folder", "overwrite=True (--overwrite)"):
            attribute(model, output, **more)
        with refused("an earlier result stands there"):
            nl.dry_run(model, None, quiz(8), "gradient", positions="answer", output=output)
    with refused("give one of them"):
        attribute(model, output, resume=True, overwrite=True)
    with refused("nothing to replace without output="):
        attribute(model, None, overwrite=True)
    assert content(tmp_path) == before
    attribute(model, output, resume=True)  # the same run, which is finished
    assert content(tmp_path) == before
    attribute(model, output, questions=7, overwrite=True)
    assert names(tmp_path) == ["scores"] and nl.Scores.load(output).provenance["questions"] == 7
    stopped(model, output, overwrite=True)
    with refused("under way"):  # what is unfinished is not thrown away
        attribute(model, output, overwrite=True)
