"""States that stand elsewhere than in a layer of the cache, and layers that hand on more than the residual stream."""

from __future__ import annotations

import pytest
import torch

from neuronllm.engine.fast import FastEngine
from neuronllm.engine.handed import find_mixers
from tests.checks import untouched
from tests.test_fast import CALLS, differences, ragged
from tests.test_mixers import agrees, family
from tests.texts import text_prompts
from tests.tiny import OTHER_STATES, in_time, random_prompts, tiny

QUICK = ("recurrent_gemma",)
SLOWLY = in_time(OTHER_STATES, QUICK)
FLOAT32 = {"gradient": 1e-5, "gradient everywhere": 1e-5, "integrate": 1e-5, "effects": 1e-4}


@pytest.mark.parametrize("name", SLOWLY)
def test_equals_the_judge(name):
    fast = agrees(name, ragged())
    assert fast._together == (name == "inkling2_text")  # every layer is handed the streams of all before it


@pytest.mark.parametrize("name", in_time(OTHER_STATES))
def test_equals_the_judge_where_prompts_share_what_they_begin_with(name):
    slow = name == "qwen4_exp_text"  # its indexer goes token by token
    fast = agrees(name, family()[3 if slow else 0 :])
    assert fast.plan.root == 34


@pytest.mark.parametrize("name", in_time(OTHER_STATES))
def test_equals_the_judge_for_answers_in_words(name):
    agrees(name, text_prompts((5, 9)))


@pytest.mark.parametrize("name", SLOWLY)
def test_a_prompt_does_not_depend_on_its_batch(name):
    """Alone, and among others with root and stems shared: no state leaks into another row."""
    # Inkling's effects are so small that in float32 what is rounded away of the answers is 7e-4 of them.
    dtype = torch.float64 if name == "inkling_text" else torch.float32
    model, prompts = tiny(name, dtype), family()
    with FastEngine(model, dtype=dtype) as together, FastEngine(model, dtype=dtype, batch_size=1) as alone:
        assert together.unusable(prompts) is None and alone.unusable(prompts[:1]) is None
        for label, limit in FLOAT32.items():
            limit = limit if dtype == torch.float32 else 1e-9
            apart = torch.cat([CALLS[label](alone, [prompt]) for prompt in prompts])
            assert differences(CALLS[label](together, prompts), apart) <= limit, label


def test_attention_is_one_mixer_with_the_convolutions_within_it():
    mixers = find_mixers(tiny("inkling_text", torch.float32))
    assert mixers is not None and mixers.own
    parts = ("self_attn", "attn_sconv", "mlp_sconv")
    assert mixers.names == tuple(f"model.layers.{layer}.{part}" for layer in range(2) for part in parts)


def test_what_hands_the_cache_on_and_writes_to_it_is_one_mixer():
    """The embeddings of pairs of tokens remember tokens, the module around them has a convolution."""
    mixers = find_mixers(tiny("qwen4_exp_text", torch.float32))
    assert mixers is not None
    assert mixers.names == ("model.layers.0.ple", "model.layers.0.linear_attn", "model.layers.1.self_attn")
    assert mixers.axes == {"indexer_position_ids": 1}


def test_attention_beside_a_convolution_is_that_of_the_tree():
    """Its cache holds a number beside keys and values: that of its window."""
    mixers = find_mixers(tiny("lfm3", torch.float32))
    assert mixers is not None and not mixers.own
    assert mixers.names == ("model.layers.1.conv",) and mixers.passing == {0}


def test_states_that_modules_keep_are_put_back():
    model, prompts = tiny("recurrent_gemma", torch.float32), random_prompts(2)
    block = model.model.layers[0].temporal_block
    mixers = find_mixers(model)
    assert mixers is not None and mixers.slots == (
        ("model.layers.0.temporal_block", "conv1d_state"),
        ("model.layers.0.temporal_block.rg_lru", "recurrent_states"),
    )
    held = block.conv1d_state, block.rg_lru.recurrent_states = torch.ones(1, 16, 3), None
    with untouched(model), FastEngine(model) as fast:
        assert fast.unusable(prompts) is None
        for label in ("integrate", "gradient everywhere", "effects"):
            CALLS[label](fast, prompts)
    assert (block.conv1d_state, block.rg_lru.recurrent_states) == held
