"""Attention to keys that an indexer chooses: which ones depends on the branch, so that it runs as the model decodes."""

from __future__ import annotations

import pytest
import torch

from neuronllm.engine.fast import FastEngine
from neuronllm.engine.handed import find_mixers
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.engine.relp import relp_rules
from neuronllm.model.anatomy import Anatomy
from tests.test_fast import CALLS, differences, ragged
from tests.test_mixers import agrees, does_not_depend_on_its_batch, family
from tests.texts import text_prompts
from tests.tiny import SPARSE, in_time, tiny


@pytest.mark.parametrize("name", in_time(SPARSE))
def test_equals_the_judge(name):
    agrees(name, ragged())


@pytest.mark.parametrize("name", ["deepseek_v4", pytest.param("glm_moe_dsa", marks=pytest.mark.slow)])
def test_gradients_and_effects_are_the_judges(name):
    model, prompts = tiny(name), ragged()[1:3]
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        for label in ("gradient", "some effects"):
            assert differences(CALLS[label](fast, prompts), CALLS[label](judge, prompts)) <= 1e-9, label


@pytest.mark.parametrize("name", in_time(SPARSE))
def test_equals_the_judge_where_prompts_share_what_they_begin_with(name):
    fast = agrees(name, family())
    assert fast.plan.root == 34


@pytest.mark.parametrize("name", in_time(SPARSE))
def test_equals_the_judge_for_answers_in_words(name):
    agrees(name, text_prompts((5, 9, 6)))


@pytest.mark.parametrize("name", in_time(SPARSE))
def test_a_prompt_does_not_depend_on_its_batch(name):
    does_not_depend_on_its_batch(name)


def test_attention_is_one_mixer_with_its_indexer():
    mixers = find_mixers(tiny("deepseek_v32", torch.float32))
    assert mixers is not None and mixers.own and not mixers.passing
    assert mixers.names == ("model.layers.0.self_attn", "model.layers.1.self_attn")


def test_keys_that_one_layer_chose_and_another_takes_are_found():
    mixers = find_mixers(tiny("glm_moe_dsa", torch.float32))
    assert mixers is not None and ("model.layers.0.self_attn", 2) in mixers.given
    assert mixers.taken == {("model.layers.1.self_attn", "prev_topk_indices", 0)}


@torch.no_grad()
def test_constant_patterns_leave_the_choice_of_keys_as_it_is():
    model, ids = tiny("deepseek_v32", torch.float32), torch.arange(3, 20)[None]
    plain = model(ids).logits
    with relp_rules(model, Anatomy.of(model), detach_attention=True):
        assert torch.equal(model(ids).logits, plain)
    assert torch.equal(model(ids).logits, plain)
