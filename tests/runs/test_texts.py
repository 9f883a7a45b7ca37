"""Whole runs on answers of several tokens: every method at its positions, on disk, killed, in several processes."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from neuronllm.methods import METHODS
from neuronllm.results.scores import Scores
from tests import plain_texts
from tests.killing import changes, content, dying_at, forked, run
from tests.runs.tools import KEEPS, ctrl_c, in_window
from tests.test_fast import differences
from tests.test_ranks import close, processes
from tests.texts import SHAPES, corrected, random_tokens
from tests.tiny import tiny

PLACES = [(name, where) for name, how in METHODS.items() for where in how.positions]
OPTIONS: dict[str, dict[str, Any]] = {"ace": {"steps": 2}, "qrnca": {"steps": 2}, "knowledge": {"steps": 2}}


def text_quiz(model: Any, questions: int = 8) -> list[Prompt]:
    """Questions of one to three variants, every second one answered right."""
    prompts = []
    for n in range(questions):
        options, _ = SHAPES[n % len(SHAPES)]
        for variant in range(1 + n % 3):
            prompt = Prompt(random_tokens(5 + (3 * n + 5 * variant) % 11, 100 + 10 * n + variant), options, 0, f"t{n}")
            prompt = corrected(prompt) if n % 4 == 3 else prompt
            said = int(plain_texts.answers(model, prompt).argmax())
            prompts.append(replace(prompt, answer=(said + n % 2) % len(options)))
    return prompts


@pytest.fixture(scope="module")
def prompts(model):
    return text_quiz(model)


def attribute(model: Any, prompts: list[Prompt], method: str, **more: Any) -> Scores:
    return nl.attribute(model, None, prompts, method, progress=False, **OPTIONS.get(method, {}), **more)


# ---- every method ----


@pytest.mark.parametrize(("method", "positions"), PLACES)
def test_every_method_at_its_positions(model, prompts, method, positions):
    fast, judged = (
        attribute(model, prompts, method, positions=positions, keep="all", backend=backend, dtype=torch.float64)
        for backend in ("fast", "reference")
    )
    assert fast.provenance["engine"] == "fast" and judged.provenance["engine"] == "reference"
    assert fast.provenance["positions"] == positions
    assert fast.per_prompt.shape == (len(prompts), 56) and fast.per_prompt.any(1).all()
    assert differences(fast.per_prompt, judged.per_prompt) <= 1e-6  # kept in float32
    assert torch.allclose(fast.values, judged.values, rtol=1e-5, atol=1e-7)
    top = attribute(model, prompts, method, positions=positions, keep="topk", k=4, dtype=torch.float64)
    assert torch.equal(top.values, fast.values)
    assert torch.equal(top.top.largest.values, fast.per_prompt.topk(4).values)
    assert len(fast.find(good=3, bad=0)) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*normalises what its FFNs put out")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral", "qwen2_moe", "falcon"])
def test_every_method_on_other_families(name, method):
    other = tiny(name)
    some = text_quiz(other, 4)
    scores = attribute(other, some, method, keep="all", dtype=torch.float64)
    assert scores.provenance["engine"] == "fast"
    judged = attribute(other, some, method, keep="all", backend="reference", dtype=torch.float64)
    assert differences(scores.per_prompt, judged.per_prompt) <= 1e-6
    assert scores.values.isfinite().all()


@pytest.mark.parametrize("objective", plain_texts.OBJECTIVES)
def test_scores_are_those_of_the_loop_by_hand(model, prompts, objective):
    found = attribute(
        model, prompts, "gradient", objective=objective, positions="answer", keep="all", dtype=torch.float64
    )
    expected = torch.stack([plain_texts.gradients(model, prompt, objective) for prompt in prompts])
    assert differences(found.per_prompt, expected) <= 1e-6


def test_contrast_asks_what_the_model_answers(model, prompts):
    found = attribute(model, prompts, "contrast", positions="answer")
    right = torch.tensor([int(plain_texts.answers(model, p).argmax()) == p.answer for p in prompts])
    activity = torch.stack([plain_texts.activations(model, p) for p in prompts])
    assert 0 < int(right.sum()) < len(prompts)
    expected = activity[right].mean(0) - activity[~right].mean(0)
    assert torch.allclose(found.values.double(), expected, atol=1e-6)


@pytest.mark.parametrize("items", ["right", "wrong"])
def test_only_questions_that_the_model_answers_so(model, prompts, items):
    single = [
        prompt for n, prompt in enumerate(prompts) if prompt.question_id not in {p.question_id for p in prompts[:n]}
    ]
    said = [int(plain_texts.answers(model, p).argmax()) == p.answer for p in single]
    some = attribute(model, single, "gradient", positions="answer", items=items, keep="all")
    chosen = [p for p, is_right in zip(single, said, strict=True) if is_right == (items == "right")]
    assert some.provenance["questions"] == len(chosen)
    assert (
        differences(some.per_prompt, attribute(model, chosen, "gradient", positions="answer", keep="all").per_prompt)
        <= 1e-6
    )


# ---- on disk ----


def test_other_answers_are_another_run(model, prompts, tmp_path):
    """A run is not taken up with other sequences, lengths or offsets behind the same first tokens."""
    output = tmp_path / "scores"
    work = lambda some, **more: run(model, output, prompts=some, **more)  # noqa: E731
    assert forked(dying_at(12, lambda: work(prompts))) == -signal.SIGKILL
    longer = [replace(p, option_ids=[[*o[:-1], o[-1] + [50]] for o in p.option_ids]) for p in prompts]
    sized = [replace(p, lengths=[[2.0] * len(o) for o in p.option_ids]) for p in prompts]
    moved = [replace(p, offsets=[[0.5] * len(o) for o in p.option_ids]) for p in prompts]
    for others in (longer, sized, moved):
        with pytest.raises(nl.InputError, match="the run was begun with question_fingerprint"):
            work(others, resume=True)
    work(prompts, resume=True)
    assert content(output) and not (tmp_path / "scores.partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("keep", KEEPS)
def test_killed_runs_end_with_the_same_bytes(model, prompts, keep, tmp_path):
    whole = tmp_path / "whole" / "scores"
    steps = changes(lambda: run(model, whole, keep, prompts=prompts))
    for step in range(2, steps, 9):
        output = tmp_path / str(step) / "scores"
        work = lambda output=output, **more: run(model, output, keep, prompts=prompts, **more)  # noqa: E731
        assert forked(dying_at(step, work)) == -signal.SIGKILL
        work(resume=True)
        assert content(output.parent) == content(whole.parent), step


def test_ctrl_c_keeps_what_is_done(model, prompts, tmp_path):
    output = tmp_path / "scores"
    with in_window(2, ctrl_c), pytest.raises(KeyboardInterrupt, match="go on with resume=True"):
        run(model, output, prompts=prompts)
    run(model, output, prompts=prompts, resume=True)
    run(model, tmp_path / "straight" / "scores", prompts=prompts)
    assert content(output) == content(tmp_path / "straight" / "scores")


# ---- two processes ----


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(model, prompts, tmp_path):
    kept = list(product(("gradient", "exact"), ("topk", "all")))

    def work(rank: int) -> None:
        for method in METHODS:
            attribute(model, prompts, method).save(tmp_path / f"{method}-{rank}")
        for method, keep in kept:
            attribute(model, prompts, method, keep=keep, k=5).save(tmp_path / f"{method}-{keep}-{rank}")
        attribute(model, prompts, "gradient", keep="all", output=tmp_path / "disk")

    assert processes(tmp_path / "group", work) == [0, 0]
    expected = {method: attribute(model, prompts, method) for method in METHODS}
    expected |= {f"{method}-{keep}": attribute(model, prompts, method, keep=keep, k=5) for method, keep in kept}
    for name, alone in expected.items():
        first, second = Scores.load(tmp_path / f"{name}-0"), Scores.load(tmp_path / f"{name}-1")
        for part in ("values", "stderr", "sign_consistency"):
            mine, theirs = getattr(first, part), getattr(second, part)
            assert torch.equal(mine.nan_to_num(-7), theirs.nan_to_num(-7)), (name, part)
            assert close(mine, getattr(alone, part)), (name, part)
        assert first.provenance == second.provenance == json.loads(json.dumps(alone.provenance))
    for method in ("gradient", "exact"):
        assert close(Scores.load(tmp_path / f"{method}-all-0").per_prompt[:], expected[f"{method}-all"].per_prompt)
        top, alone = Scores.load(tmp_path / f"{method}-topk-1").top, expected[f"{method}-topk"].top
        assert torch.equal(top.largest.ids, alone.largest.ids) and torch.equal(top.smallest.ids, alone.smallest.ids)
    assert close(Scores.load(tmp_path / "disk").per_prompt[:], expected["gradient-all"].per_prompt)


@pytest.mark.slow
def test_two_processes_killed_and_taken_up_again(model, prompts, tmp_path):
    def work(rank: int, **more: Any) -> None:
        run(model, tmp_path / "out" / "scores", prompts=prompts, **more)

    assert processes(tmp_path / "group", work) == [0, 0]
    whole = content(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "whole")
    assert -signal.SIGKILL in processes(
        tmp_path / "group", lambda rank: dying_at(12 if rank else 10**6, lambda: work(rank))()
    )
    assert processes(tmp_path / "group", lambda rank: work(rank, resume=True)) == [0, 0]
    assert content(tmp_path / "out") == whole
