"""Exact effects at all positions: the judge against plain forwards, the fast engine against the judge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from neuronllm.engine import fast as fast_module
from neuronllm.engine.asking import Asker
from neuronllm.engine.batching import Plan
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.reference import ReferenceEngine
from tests import plain_texts
from tests.checks import untouched
from tests.test_fast import differences, ragged
from tests.test_texts_fast import FAMILIES
from tests.texts import corrected, few_prompts, mixed_prompts, open_prompts, text_prompts
from tests.tiny import random_prompts, tiny

SOME = torch.arange(55, 0, -3)
CALLS = {
    "all": lambda e, p: e.effects(p, "logp_options", positions="all"),
    "some, doubled": lambda e, p: e.effects(p, "p_vocab", ids=SOME, factor=2.0, positions="all"),
}


def check_equality(model: Any, prompts: list[Prompt]) -> None:
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        for label, call in CALLS.items():
            assert differences(call(fast, prompts), call(judge, prompts)) <= 1e-9, label


# ---- the judge ----


@pytest.mark.parametrize("name", ["llama", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_the_judge_edits_every_token_of_every_sequence(name):
    model, ids = tiny(name), [0, 17, 40, 55]
    prompts = [random_prompts(1, length=6)[0], text_prompts((6, 9))[1], corrected(text_prompts((5,))[0])]
    with ReferenceEngine(model, dtype=torch.float64) as judge:
        for objective, factor in (("logp_options", 0.0), ("margin", 3.0)):
            found = judge.effects(prompts, objective, ids=torch.tensor(ids), factor=factor, positions="all")
            assert torch.allclose(found, by_hand(model, prompts, objective, ids, factor), atol=1e-10)
            assert found.abs().max() > 1e-3
            at_answer = judge.effects(prompts, objective, ids=torch.tensor(ids), factor=factor)
            assert not torch.allclose(found, at_answer, atol=1e-3)


@torch.no_grad()
def by_hand(model: Any, prompts: list[Prompt], objective: str, ids: list[int], factor: float) -> Tensor:
    """One forward a sequence, through hooks of the test's own."""
    rows = []
    for prompt in prompts:
        value_of, clean = plain_texts.objective_of(prompt, objective), plain_texts.option_scores(model, prompt)
        edits = [plain_texts.multiplied(model, prompt, [neuron], factor, "all") for neuron in ids]
        values = [value_of(plain_texts.option_scores(model, prompt, edit)) for edit in edits]
        rows.append(torch.stack([value_of(clean) - value for value in values]))
    return torch.stack(rows)


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_effects_are_what_a_live_edit_does(name, backend):
    """`nl.edit` and the answers that evaluation hears, which know nothing of effects."""
    model, prompts = tiny(name), [*random_prompts(2), *text_prompts((6, 9))]
    scores = nl.attribute(
        model, None, prompts[:2], "exact", positions="all", keep="all", backend=backend, progress=False
    )
    texts = nl.attribute(
        model, None, prompts[2:], "exact", positions="all", keep="all", backend=backend, progress=False
    )
    assert scores.provenance["positions"] == texts.provenance["positions"] == "all"
    assert scores.provenance["engine"] == texts.provenance["engine"] == backend
    found = torch.cat([scores.per_prompt, texts.per_prompt])
    clean = right_of(model, prompts)
    for neuron in (3, 30, 51):
        with nl.edit(model, [neuron], 0.0, positions="all"):
            expected = clean - right_of(model, prompts)
        assert torch.allclose(found[:, neuron], expected, atol=2e-5), neuron
    assert found.abs().max() > 1e-3


def right_of(model: Any, prompts: list[Prompt]) -> Tensor:
    """The right option's log-probability among the options, one prompt after the other."""
    return torch.stack([Asker(model, [prompt]).logprobs()[0, prompt.answer] for prompt in prompts])


# ---- the fast engine ----


@pytest.mark.parametrize("name", FAMILIES)
def test_letters_equal_the_judge_in_float64(name):
    check_equality(tiny(name), ragged())


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_equal_the_judge_in_float64(name):
    check_equality(tiny(name), few_prompts())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2_moe", "gpt_oss"])
def test_a_mixed_batch_and_open_questions_equal_the_judge(name):
    model = tiny(name)
    check_equality(model, mixed_prompts())
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        prompts = open_prompts()
        assert fast.unusable(prompts) is None
        found, expected = (e.effects(prompts, "logp_vocab", positions="all") for e in (fast, judge))
        assert differences(found, expected) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2"])
def test_effects_of_a_16_bit_model_are_those_of_its_weights_in_float32(name, dtype):
    model, prompts = tiny(name, dtype), [*random_prompts(1), *text_prompts((6,))]
    with FastEngine(model, dtype=torch.float32) as engine:
        truth = CALLS["all"](engine, prompts)
    with untouched(model), FastEngine(model) as engine:
        assert engine.unusable(prompts) is None
        assert differences(CALLS["all"](engine, prompts), truth) <= 1e-3
        assert 0 < engine.plan.noise < 1e-3


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_many_rows_are_cut_into_passes(name, tokens):
    """Passes of a single copy, and of a few, so that cuts fall inside layers and across them."""
    model, prompts = tiny(name), [ragged()[0], *text_prompts((6,))]
    plan = Plan(prompts=2, answer_tokens=tokens, window=2)
    with FastEngine(model) as engine, FastEngine(model, plan=plan) as small:
        for call in CALLS.values():
            assert differences(call(small, prompts), call(engine, prompts)) <= 1e-12


def test_memory_that_ends_makes_passes_shorter():
    model, prompts = tiny("gemma2"), random_prompts(2)
    with FastEngine(model) as engine:
        whole = CALLS["all"](engine, prompts)

    def scarce(module: Any, args: Any) -> None:
        if args[0].shape[0] > 5:
            raise torch.OutOfMemoryError("there are five rows' worth")

    model.model.layers[1].mlp.register_forward_pre_hook(scarce)
    with FastEngine(model) as engine:
        assert differences(CALLS["all"](engine, prompts), whole) <= 1e-12
        assert engine.plan.backoffs and "answer tokens a pass" in engine.plan.backoffs[-1]


@pytest.mark.parametrize(("name", "joined"), [("llama", 1), ("gemma2", 1 + 4)])
def test_layers_below_an_edit_are_run_once(name, joined, monkeypatch):
    """Copies run the layers above their own; where a layer adds W h as it is, they join behind it."""
    model, prompts = tiny(name, num_hidden_layers=3), random_prompts(1)
    monkeypatch.setattr(fast_module, "rounding", lambda batch: 0.0)
    with FastEngine(model) as engine:
        assert engine.unusable(prompts) is None
        rows: list[int] = []
        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
        engine.effects(prompts, "logp_options", ids=torch.arange(28, 32), positions="all")
    assert rows[-3:] == [1, joined, 1 + 4]


def test_no_neurons_repeated_ones_and_experts_that_nobody_meets():
    model, prompts = tiny("mixtral"), random_prompts(1, length=2)
    with FastEngine(model) as engine:
        every = CALLS["all"](engine, prompts)
        silent = (every[0] == 0).nonzero()[:, 0]
        twice = torch.tensor([3, 1, 3])
        assert torch.equal(engine.effects(prompts, "logp_options", ids=silent, positions="all"), every[:, silent])
        found = engine.effects(prompts, "logp_options", ids=twice, positions="all")
        assert torch.allclose(found, every[:, twice], atol=1e-12)
        assert engine.effects(prompts, "logp_options", ids=twice[:0], positions="all").shape == (1, 0)


def test_what_the_model_answers_is_heard_and_the_model_left_as_it_was():
    for name in ("llama", "mixtral"):
        model, prompts = tiny(name, torch.float32), mixed_prompts()
        with untouched(model), FastEngine(model) as engine:
            engine.unusable(prompts)
            CALLS["some, doubled"](engine, prompts)
            everywhere = engine.heard.taken()
            engine.effects(prompts, "p_vocab", ids=SOME)
            assert everywhere.counts == engine.heard.taken().counts and everywhere.prompts == len(prompts)


# ---- the method ----


def test_the_method_takes_all_positions_where_it_is_asked_to():
    model, prompts = tiny("llama", torch.float32), random_prompts(2)
    asked = {"keep": "all", "progress": False}
    scores = nl.attribute(model, None, prompts, "exact", positions="all", factor=2.0, **asked)
    with ReferenceEngine(model) as judge:
        truth = judge.effects(prompts, "logp_options", factor=2.0, positions="all")
    assert differences(scores.per_prompt, truth) <= 1e-4 and 0 < scores.provenance["noise"] < 1e-4
    assert nl.attribute(model, None, prompts, "exact", **asked).provenance["positions"] == "answer"


def test_a_model_out_of_reach_is_left_to_the_judge():
    model, prompts = tiny("openai-gpt"), random_prompts(2)
    scores = nl.attribute(model, None, prompts, "exact", positions="all", keep="all", progress=False)
    assert scores.provenance["engine"] == "reference"
    with ReferenceEngine(model) as judge:
        assert torch.equal(scores.per_prompt, CALLS["all"](judge, prompts).float())
