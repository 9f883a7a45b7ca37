"""A hybrid model from questions to an adapter, by letters and by answers in words."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

import neuronllm as nl
from tests.checks import quiz, untouched
from tests.texts import with_texts
from tests.tiny import VOCABULARY, tiny

LEARNING: dict[str, Any] = {"steps": 8, "seeds": 1, "lr": 0.2, "margin": None, "retain_weight": 0}
QUIET: dict[str, Any] = {"progress": False, "positions": "answer"}


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["letters", "texts"])
def test_found_judged_learned_baked_and_exported(answers, tmp_path):
    peft = pytest.importorskip("peft")
    model, prompts = tiny("qwen3_5_text", torch.float32), quiz(6, variants=False)
    prompts = prompts if answers == "letters" else with_texts(prompts)
    with untouched(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = nl.attribute(model, None, prompts, "gradient", **QUIET)
        assert scores.provenance["engine"] == "fast"
        neurons = scores.find(3, 3)
        report = nl.evaluate(model, None, prompts, neurons, "degrade", controls=2, progress=False)
        learned = {
            backend: nl.learn(model, None, prompts, neurons=neurons, **LEARNING, backend=backend, **QUIET)
            for backend in ("fast", "reference")
        }
    assert report.questions == 6
    factors = [found.factor for found in learned.values()]
    assert torch.allclose(*factors, atol=1e-4) and float((factors[0] - 1).abs().min()) > 0.1
    with neurons.apply(model, mode="enhance", positions="all"):
        live = logits(model)
    nl.to_peft(model, neurons, tmp_path / "adapter", mode="enhance", positions="all")
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter").eval()
    assert torch.equal(logits(adapted), live)
    assert nl.attribute(adapted, None, prompts, "gradient", **QUIET).provenance["engine"] == "fast"
    nl.bake(model, neurons, mode="enhance", positions="all")
    assert torch.allclose(logits(model), live, atol=1e-5)
