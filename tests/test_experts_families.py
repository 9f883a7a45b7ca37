"""Mixtures of experts beyond those of the tables: other layouts, and those that are refused by name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from neuronllm.engine.borrowed import answer_logits
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.engine.relp import relp_rules
from neuronllm.model.anatomy import Anatomy
from neuronllm.model.hooks import visiting
from neuronllm.model.sites import DENSE, SHARED
from tests.checks import refused, untouched
from tests.tiny import random_prompts, tiny

# settings, and the sites of the last layer that has experts: (expert, experts, width, what the module is called)
OTHERS = {
    # one shared block, fused otherwise than the experts are
    "granitemoeshared": (
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 8, "shared_intermediate_size": 12},
        [(SHARED, 0, 12, "shared_mlp.output_linear"), (0, 4, 8, "block_sparse_moe.experts")],
    ),
    # no gate, and experts in a narrower space with projections of its own
    "nemotron_h": (
        {
            "layers_block_type": ["attention", "moe", "mlp"],
            "num_hidden_layers": None,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "moe_latent_size": 8,
            "moe_shared_expert_intermediate_size": 12,
            "n_group": 1,
            "topk_group": 1,
        },
        [(SHARED, 0, 12, "mixer.shared_experts.down_proj"), (0, 4, 8, "mixer.experts")],
    ),
    # a dense block beside the experts
    "gemma4_text": (
        {
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 8,
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "head_dim": None,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 60,
            "num_kv_shared_layers": 0,
        },
        [(DENSE, 0, 28, "mlp.down_proj"), (0, 4, 8, "experts")],
    ),
    # experts in every second layer
    "jamba": (
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 8,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 1,
            "attn_layer_offset": 0,
            "head_dim": None,
        },
        [(0, 4, 8, "feed_forward.experts")],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layouts_are_reached(name):
    settings, expected = OTHERS[name]
    model, prompts = tiny(name, torch.float32, **settings), random_prompts(1)
    anatomy = Anatomy.of(model)
    last = [s for s in anatomy.sites if s.layer == max(s.layer for s in anatomy.sites if s.experts)]
    assert [(s.expert, s.experts, s.width, s.down.removeprefix(f"{s.block}.")) for s in last] == expected

    clean = answer_logits(model, torch.tensor([prompts[0].input_ids]))
    with untouched(model), visiting(model, anatomy.sites, lambda site, h, routes: h.clone()):
        assert torch.equal(answer_logits(model, torch.tensor([prompts[0].input_ids])), clean)

    step = 1e-4
    with ReferenceEngine(model, dtype=torch.float64) as engine:
        score = engine.gradients(prompts, "logp_options")
        up = engine.effects(prompts, "logp_options", factor=1 - step)
        down = engine.effects(prompts, "logp_options", factor=1 + step)
        with relp_rules(engine.model, anatomy):
            under = answer_logits(engine.model, torch.tensor([prompts[0].input_ids]))
    assert (score - (up - down) / (2 * step)).norm() <= 1e-5 * score.norm()
    assert torch.allclose(under.float(), clean, atol=1e-4)


def refused_model(name: str, **settings):
    small = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **small | settings))


def test_llama4_is_refused():
    model = refused_model(
        "llama4_text",
        intermediate_size=8,
        intermediate_size_mlp=8,
        num_local_experts=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    with refused("Llama4ForCausalLM", "family llama4_text", "feed_forward.experts: Llama4TextExperts", "interface"):
        Anatomy.of(model)


def test_jetmoe_is_refused():
    model = refused_model("jetmoe", intermediate_size=8, num_local_experts=2, num_key_value_heads=1, kv_channels=4)
    with refused("JetMoeForCausalLM", "family jetmoe", "JetMoeParallelExperts"):
        Anatomy.of(model)


@pytest.mark.parametrize("packed", [torch.uint8, torch.float8_e4m3fn])
def test_packed_experts_are_refused(packed):
    model = tiny("gpt_oss", torch.float32)
    experts = model.model.layers[1].mlp.experts
    experts.down_proj = nn.Parameter(torch.zeros(4, 8, 16).to(packed), requires_grad=False)
    with refused("GptOssForCausalLM", "layer 1", "packed", "dequantised"):
        Anatomy.of(model)


def test_packed_experts_of_a_class_of_their_own_are_refused():
    """As MXFP4 checkpoints have them: another module, two numbers in a byte."""

    class Mxfp4GptOssExperts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj_blocks = nn.Parameter(torch.zeros(4, 16, 1, 8, dtype=torch.uint8), requires_grad=False)

    model = tiny("gpt_oss", torch.float32)
    model.model.layers[0].mlp.experts = Mxfp4GptOssExperts()
    with refused("GptOssForCausalLM", "mlp.experts: Mxfp4GptOssExperts", "packed", "dequantised"):
        Anatomy.of(model)


def test_dbrx_is_refused():
    from transformers.models.dbrx.modeling_dbrx import DbrxFFN

    settings = SimpleNamespace(
        hidden_size=16,
        ffn_hidden_size=8,
        ffn_act_fn={"name": "silu"},
        moe_num_experts=4,
        moe_top_k=1,
        moe_jitter_eps=None,
        moe_loss_weight=0.0,
        moe_normalize_expert_weights=1.0,
    )
    model = tiny("llama", torch.float32)
    model.model.layers[0].mlp = DbrxFFN(SimpleNamespace(ffn_config=settings))
    model.config.model_type = "dbrx"
    with refused("family dbrx", "mlp.experts: DbrxExperts", "interface"):
        Anatomy.of(model)
