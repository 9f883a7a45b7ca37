"""The tokens that neurons promote are those of the plain product, by hand, in every kind of norm and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.engine.promoted import passages, promoted
from tests.checks import Fuse, lived_in, refused, untouched
from tests.tiny import DENSE, EXPERTS, POST_NORMED, VOCABULARY, tiny


@torch.no_grad()
def uneven(name: str, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    """A tiny model in which no norm's weight is 1 and no bias is 0."""
    model = tiny(name, dtype, **more)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator).to(dtype))
    return model


def centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)


def gpt2(m: Any) -> Tensor:  # Conv1D, LayerNorm with a bias, tied head
    rows = torch.cat([block.mlp.c_proj.weight for block in m.transformer.h])
    return (centred(rows) * m.transformer.ln_f.weight) @ m.transformer.wte.weight.T


def opt(m: Any) -> Tensor:  # biases everywhere
    rows = torch.cat([layer.fc2.weight.T for layer in m.model.decoder.layers])
    return (centred(rows) * m.model.decoder.final_layer_norm.weight) @ m.lm_head.weight.T


def phi(m: Any) -> Tensor:  # attention and FFN side by side, a bias in the head
    rows = torch.cat([layer.mlp.fc2.weight.T for layer in m.model.layers])
    return (centred(rows) * m.model.final_layernorm.weight) @ m.lm_head.weight.T


def down(m: Any) -> Tensor:
    return torch.cat([layer.mlp.down_proj.weight.T for layer in m.model.layers])


def llama(m: Any) -> Tensor:  # RMSNorm, a head of its own; Granite adds multipliers
    return (down(m) * m.model.norm.weight) @ m.lm_head.weight.T


def cohere(m: Any) -> Tensor:  # LayerNorm without a bias, scaled logits, tied head
    return (centred(down(m)) * m.model.norm.weight) @ m.model.embed_tokens.weight.T


def gemma(m: Any) -> Tensor:  # 1 + w, tied head
    return (down(m) * (1 + m.model.norm.weight)) @ m.model.embed_tokens.weight.T


def gemma2(m: Any) -> Tensor:  # a norm behind the FFN, a soft cap
    parts = [layer.mlp.down_proj.weight.T * (1 + layer.post_feedforward_layernorm.weight) for layer in m.model.layers]
    return (torch.cat(parts) * (1 + m.model.norm.weight)) @ m.model.embed_tokens.weight.T


def olmo2(m: Any) -> Tensor:  # a norm behind the FFN
    parts = [layer.mlp.down_proj.weight.T * layer.post_feedforward_layernorm.weight for layer in m.model.layers]
    return (torch.cat(parts) * m.model.norm.weight) @ m.lm_head.weight.T


def mixtral(m: Any) -> Tensor:  # experts, (experts, D, width)
    rows = [w[:, i] for layer in m.model.layers for w in layer.mlp.experts.down_proj for i in range(w.shape[1])]
    return (torch.stack(rows) * m.model.norm.weight) @ m.lm_head.weight.T


def gpt_oss(m: Any) -> Tensor:  # experts the other way round, (experts, width, D)
    rows = torch.cat([layer.mlp.experts.down_proj.flatten(0, 1) for layer in m.model.layers])
    return (rows * m.model.norm.weight) @ m.lm_head.weight.T


def qwen2_moe(m: Any) -> Tensor:  # a gated expert that all tokens share, before the routed ones
    parts = []
    for layer in m.model.layers:
        parts += [layer.mlp.shared_expert.down_proj.weight.T]
        parts += [expert.T for expert in layer.mlp.experts.down_proj]
    return (torch.cat(parts) * m.model.norm.weight) @ m.lm_head.weight.T


BY_HAND: dict[str, Callable[[Any], Tensor]] = {
    "gpt2": gpt2,
    "opt": opt,
    "phi": phi,
    "llama": llama,
    "granite": llama,
    "cohere": cohere,
    "gemma": gemma,
    "gemma2": gemma2,
    "olmo2": olmo2,
    "mixtral": mixtral,
    "gpt_oss": gpt_oss,
    "qwen2_moe": qwen2_moe,
}


def check(model: Any, expected: Tensor, ids: Tensor, rel: float = 1e-5) -> None:
    """Both ends of the plain product, token by token, best first."""
    found = promoted(model, nl.Anatomy.of(model), ids, k=5)
    for end, order in ((found.largest, expected.sort(-1, descending=True)), (found.smallest, expected.sort(-1))):
        assert end.indices.tolist() == order.indices[ids, :5].tolist()
        assert torch.allclose(end.values.double(), order.values[ids, :5].double(), rtol=rel, atol=rel)


@torch.no_grad()
@pytest.mark.parametrize("name", BY_HAND)
def test_promoted_tokens_are_the_plain_product(name):
    model = uneven(name)
    expected = BY_HAND[name](model)
    anatomy = nl.Anatomy.of(model)
    assert expected.shape == (anatomy.n_neurons, VOCABULARY)
    with untouched(model):
        check(model, expected, torch.arange(anatomy.n_neurons))
        check(model, expected, torch.tensor([anatomy.n_neurons - 1, 3, 40, 0]))  # in the order asked for


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma2", "llama", "gpt2"])
def test_weights_in_sixteen_bits(name):
    """Products are those of the weights as they are, in float32; the norms are read off passes in bfloat16."""
    model = uneven(name, torch.bfloat16)
    expected = BY_HAND[name](model.float())
    found = promoted(model.bfloat16(), nl.Anatomy.of(model), torch.arange(56), k=VOCABULARY)
    products = torch.zeros(56, VOCABULARY).scatter_(1, found.largest.indices, found.largest.values)
    assert found.largest.values.dtype == torch.float32
    # "1 + w" of Gemma is rounded to bfloat16 by the model itself
    assert (products - expected).norm() <= 0.005 * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("name", DENSE + EXPERTS)
def test_every_family_tells(name):
    """No family is refused, and a norm is seen behind the FFN where there is one."""
    model = uneven(name)
    anatomy = nl.Anatomy.of(model)
    with untouched(model):
        found = promoted(model, anatomy, torch.tensor([1, anatomy.n_neurons - 1]), k=2)
    assert found.largest.values.isfinite().all() and (found.largest.values > found.smallest.values).all()
    behind, last = passages(model, anatomy.sites)
    assert {passage.divides for passage in behind.values()} == {name in POST_NORMED} and last.divides


def test_a_model_in_use_is_left_as_found():
    model = lived_in(uneven("llama", torch.float32))
    with untouched(model):
        promoted(model, nl.Anatomy.of(model), torch.tensor([4]), k=1)

    def blow(*_: Any) -> None:
        raise Fuse

    model.model.norm.register_forward_pre_hook(blow)
    with untouched(model), pytest.raises(Fuse):
        promoted(model, nl.Anatomy.of(model), torch.tensor([4]), k=1)


def test_only_the_tokens_that_there_are():
    """Rows of a padded head stand for no token."""
    model = uneven("llama")
    found = promoted(model, nl.Anatomy.of(model), torch.arange(8), k=9, vocabulary=7)
    assert found.largest.indices.shape == (8, 7) and found.largest.indices.max() == 6


def test_what_cannot_be_told_is_refused():
    model = uneven("llama")
    anatomy = nl.Anatomy.of(model)
    bent = model.model.norm.register_forward_hook(lambda module, args, output: output.abs() * output)
    with refused("LlamaForCausalLM is not a norm", "tokens=0"):
        promoted(model, anatomy, torch.tensor([4]), k=1)
    bent.remove()
    model.model.layers[1].register_forward_hook(lambda module, args, output: output**3)
    with refused("model.layers.1.mlp.down_proj", "neither a sum nor a norm"):
        promoted(model, anatomy, torch.tensor([4, 40]), k=1)
