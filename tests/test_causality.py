"""Models that attend in both directions: nothing is shared in them, however small their weights."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm import engine
from neuronllm.data.prompts import Prompt
from neuronllm.engine.asking import Asker
from neuronllm.engine.causality import READS_AHEAD, not_causal
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.engine.writing import Writer
from tests import plain
from tests.checks import untouched
from tests.test_counted_positions import Numbers
from tests.test_mixers import family
from tests.texts import random_tokens
from tests.tiny import random_prompts, tiny

ENCODERS = ["bert", "roberta", "electra"]
SMALL = 0.02  # the spread of new weights, where answers alone do not show it


def encoder(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return tiny(name, dtype, std=SMALL, is_decoder=False)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_left_to_the_reference(name, caplog, monkeypatch):
    monkeypatch.setattr(engine, "_told", set())
    model, prompts = encoder(name), family()
    with untouched(model), caplog.at_level(logging.WARNING, "neuronllm"):
        scores = nl.attribute(model, None, prompts, "gradient", progress=False)
    assert scores.provenance["engine"] == "reference"
    told = [record.getMessage() for record in caplog.records if READS_AHEAD in record.getMessage()]
    assert len(told) == 1 and told[0].endswith("load it with is_decoder=True where it is to be a decoder")
    judged = nl.attribute(model, None, prompts, "gradient", backend="reference", progress=False)
    assert torch.equal(scores.values, judged.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_same_as_a_decoder_is_fast(name, dtype):
    model, prompts = tiny(name, dtype, std=SMALL, is_decoder=True), random_prompts(2)
    with FastEngine(model) as fast, ReferenceEngine(model) as judge:
        assert fast.unusable(prompts) is None
        if dtype == torch.float32:
            found, right = (one.gradients(prompts, "logp_options") for one in (fast, judge))
            assert (found - right).norm() <= 1e-5 * right.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_does_not_hide_it(dtype):
    model = encoder("bert", dtype)
    with FastEngine(model) as fast:
        assert (fast.unusable(random_prompts(2)) or "").startswith(READS_AHEAD)


def test_a_model_without_that_setting_is_not_told_to_set_it():
    """Such as PaliGemma, whose prompt attends in both directions."""
    model = tiny("llama", torch.float32)
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    assert not_causal(model, {}) == READS_AHEAD
    assert not_causal(tiny("llama", torch.float32), {}) is None


def test_it_is_tried_once():
    model, known = encoder("bert"), {}
    assert not_causal(model, known) and list(known.values()) == [True]
    model.forward = None
    assert not_causal(model, known)


@torch.no_grad()
def test_what_an_encoder_answers_is_asked_of_whole_prompts():
    model, prompts = encoder("roberta", torch.float64), family()
    rows = [model(input_ids=torch.tensor([prompt.input_ids])).logits[0, -1] for prompt in prompts]
    right = [plain.option_scores(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
    assert (Asker(model, prompts).scores() - torch.stack(right)).abs().max() <= 1e-12


def test_what_an_encoder_writes_to_does_not_begin_with_a_shared_prefix():
    start = random_tokens(34, 1)
    prompts = [Prompt(start + random_tokens(own, own), [[[3]], [[5]]], 0) for own in (4, 7)]
    roots = [
        Writer(tiny("bert", torch.float32, is_decoder=decodes), Numbers(), prompts, max_new_tokens=3).root  # type: ignore[arg-type]
        for decodes in (False, True)
    ]
    assert roots == [[], start]
