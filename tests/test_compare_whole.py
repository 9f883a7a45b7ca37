"""`nl.compare` with edits that are learned, presets, answers in words and mixtures, and killed as it writes."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import neuronllm as nl
from tests.asked_tasks import questions
from tests.checks import refused, untouched
from tests.test_compare import ASKED, SMALL, TASKS
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level


@pytest.fixture(scope="module")
def model():
    return tiny("llama", torch.float32, vocab_size=len(byte_level()), max_position_embeddings=256)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.mark.slow
def test_tuned_verified_and_learned_sets(model, tokenizer, tmp_path) -> None:
    found = nl.compare(
        model,
        tokenizer,
        TASKS,
        ["gradient"],
        edits=["tuned", "verified", "learned"],
        budget=SMALL,
        learned_controls=1,
        output=tmp_path / "comparison",
        **ASKED | {"options": {}},
    )
    for edit in found.data["edits"]:
        neurons = found.neurons(edit["task"], "gradient", edit["edit"])
        assert [edit["edit"]] == [kind for kind in ("tuned", "verified", "learned") if kind in neurons.provenance]
        if edit["edit"] == "learned":
            assert neurons.provenance["learned"]["seeds"] == 2
            assert edit["neurons"] == 0 or edit["controls"]["kind"] == "learned"


@pytest.mark.slow
def test_presets_and_texts(model, tokenizer) -> None:
    plain = questions("colour", 9, 3)
    longer = [replace(one, choices=tuple(text * (n + 1) for n, text in enumerate(one.choices))) for one in plain]
    found = nl.compare(
        model,
        tokenizer,
        {"colour": longer, "sky": questions("sky", 9, 3)},
        preset="qrnca",
        answers="texts",
        k=2,
        budget=SMALL,
        progress=False,
        options={"qrnca": {"steps": 2}, "knowledge": {"steps": 2}},
    )
    assert [edit["edit"] for edit in found.data["edits"][:2]] == ["good", "suppress"]
    assert {one["method"] for one in found.data["methods"]} == {"qrnca", "knowledge", "activation", "random"}
    lengths = [edit["lengths"] for edit in found.data["edits"] if edit["task"] == "colour"]
    tests = found.data["tasks"][0]["questions"]["test"]
    assert [one["prompts"] for one in lengths] == [tests] * len(lengths)
    assert all(sum(one["picked"].values()) == pytest.approx(1, abs=1e-5) for one in lengths)
    assert found.data["made"]["unknown"] and found.data["tasks"][0]["answers"] == "texts"
    assert all(math.isfinite(edit["accuracy"]) for edit in found.data["edits"]) and found.folder is None
    assert json.loads(json.dumps(found.data)) == found.data
    with refused("made without output="):
        found.neurons("sky", "qrnca", "good")


@pytest.mark.slow
def test_killed_at_any_moment(model, tokenizer, tmp_path) -> None:
    """SIGKILL in front of changes of the disk, again and again in one folder, and the same bytes at the end."""
    from tests.killing import changes, dying_at, forked

    asked = ["ace"], {"edits": ["enhance"], "budget": SMALL, **ASKED}

    def work(output: Path, resume: bool = False):
        return lambda: nl.compare(model, tokenizer, TASKS, asked[0], output=output, resume=resume, **asked[1])

    work(tmp_path / "first")()  # whatever is loaded at first use, the forked find loaded
    total = changes(work(tmp_path / "counted"))
    whole = (tmp_path / "first" / "comparison.json").read_bytes()
    assert (tmp_path / "counted" / "comparison.json").read_bytes() == whole
    generator = random.Random(0)
    for number in range(10):
        output = tmp_path / str(number)
        assert forked(dying_at(generator.randrange(total), work(output))) != 0
        assert forked(work(output, resume=True)) == 0
        assert (output / "comparison.json").read_bytes() == whole
        assert not output.with_name(f"{number}.partial").exists()


@pytest.mark.slow
def test_a_mixture_in_bfloat16(tokenizer) -> None:
    mixture = tiny("mixtral", torch.bfloat16, vocab_size=len(tokenizer), max_position_embeddings=256)
    more = {"edits": ["enhance"], "budget": SMALL, "k": 3, "template": "plain", "progress": False}
    with untouched(mixture):
        found = nl.compare(mixture, tokenizer, {"colour": TASKS["colour"]}, ["gradient", "relp"], **more)
    experts = sorted({row["expert"] for row in found.data["maps"][0]["rows"]})
    assert experts == list(range(mixture.config.num_local_experts))
    assert found.data["model"]["dtype"] == "bfloat16" and len(found.data["edits"]) == 2
    assert {card["expert"] for card in found.data["cards"]} <= set(experts) and found.data["cards"]
    assert all(math.isfinite(edit["accuracy"]) and edit["controls"]["count"] == 3 for edit in found.data["edits"])
