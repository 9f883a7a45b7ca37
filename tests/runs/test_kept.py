"""What a run on disk leaves, and how it is read."""

from __future__ import annotations

import copy

import pytest
import torch

import neuronllm as nl
from neuronllm.results.per_prompt import Parts
from tests.checks import quiz, refused
from tests.killing import run
from tests.runs.tools import KEEPS, names


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
        model, None, quiz(8), "ace" if keep == "mean" else "gradient", positions="answer", keep=keep, k=3, batch_size=2,
        progress=False, **({"steps": 2} if keep == "mean" else {}),
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
    scores = nl.attribute(model, None, quiz(3), "gradient", positions="answer", keep="all", progress=False)
    top = nl.attribute(model, None, quiz(3), "gradient", positions="answer", keep="topk", k=4, progress=False).top
    order = scores.per_prompt.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(top.largest.ids.long(), order[:, :4])
    assert torch.equal(top.smallest.ids.long(), order.flip(1)[:, :4])
    assert torch.equal(top.largest.values, scores.per_prompt.gather(1, order[:, :4]))
    assert top.largest.ids.dtype == torch.int32 and top.smallest.values.dtype == torch.float32
    more = nl.attribute(model, None, quiz(1), "gradient", positions="answer", keep="topk", k=99, progress=False).top
    assert more.largest.ids.shape == (2, 56)  # as many as there are
    narrow, judged = copy.deepcopy(model).float(), {"keep": "topk", "k": 4, "dtype": torch.float64}
    double = nl.attribute(narrow, None, quiz(3), "gradient", positions="answer", progress=False, **judged)
    assert torch.equal(double.top.largest.ids, top.largest.ids) and double.top.largest.values.dtype == torch.float32
    assert torch.allclose(double.top.largest.values, top.largest.values, rtol=1e-4)


def test_bfloat16_halves_the_parts(model, whole, tmp_path):
    exact = nl.Scores.load(whole / "all" / "scores").per_prompt[:]
    scores = run(model, tmp_path / "scores", "all", keep_dtype=torch.bfloat16)
    assert scores.per_prompt.dtype == torch.bfloat16
    assert torch.equal(scores.per_prompt[:], exact.bfloat16())
    assert torch.equal(scores.values, nl.Scores.load(whole / "all" / "scores").values)  # the mean is of exact scores
    here = nl.attribute(
        model, None, quiz(1), "gradient", positions="answer", keep="all", keep_dtype=torch.bfloat16, progress=False
    )
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
