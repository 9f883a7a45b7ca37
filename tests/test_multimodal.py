"""Models that read images or sound too: the language model inside gives what a text model of the same weights gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

import neuronllm as nl
from neuronllm.engine.fast import FastEngine
from neuronllm.model.anatomy import Anatomy
from tests.checks import refused, untouched
from tests.tiny import VOCABULARY, random_prompts
from tests.tiny_tokenizers import numbered

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# A tower that is larger than the language model.
SEEING = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
# the wrapper: its text part, its tower, and the family that the text part is alone
WRAPPERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "gemma3": (
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 4},
        SEEING | {"image_size": 28, "patch_size": 14},
        "gemma3_text",
    ),
    "mistral3": ({"model_type": "mistral"}, SEEING | {"model_type": "pixtral", "head_dim": 8}, "mistral"),
    "qwen3_vl": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]}},
        {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 16},
        "qwen3",
    ),
}


def wrapper(name: str) -> Any:
    text, tower, _ = WRAPPERS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, text_config=TEXT | text, vision_config=tower)
    model = AutoModelForMultimodalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model


def alone(name: str, model: Any) -> Any:
    """The text model of the same family with the wrapper's weights."""
    text, _, family = WRAPPERS[name]
    config = AutoConfig.for_model(family, **TEXT | {k: v for k, v in text.items() if k != "model_type"})
    config.tie_word_embeddings = False
    twin = AutoModelForCausalLM.from_config(config).double().eval()
    twin.model.load_state_dict(model.model.language_model.state_dict())
    twin.lm_head.load_state_dict(model.lm_head.state_dict())
    return twin


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    numbered(VOCABULARY).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_language_model_inside_is_found_and_steered(name: str, tmp_path: Path) -> None:
    right = wrapper(name)
    twin, prompts = alone(name, right), random_prompts(3)
    model, _ = nl.load_model(saved(right, tmp_path / "model"))
    assert type(model) is type(right) and Anatomy.of(model).sizes == Anatomy.of(twin).sizes == [28, 28]
    assert all("language_model" in site.down for site in Anatomy.of(model).sites)
    with FastEngine(model) as fast:
        assert fast.unusable(prompts) is None
    for method in ("gradient", "ace", "exact"):
        with untouched(model):
            found = nl.attribute(model, None, prompts, method, progress=False).values
        expected = nl.attribute(twin, None, prompts, method, progress=False).values
        assert torch.allclose(found, expected, atol=1e-6) and expected.abs().max() > 1e-3

    neurons = nl.attribute(model, None, prompts, "gradient", progress=False).find(good=4, bad=4)
    ids = torch.tensor([prompts[0].input_ids])
    with torch.no_grad():
        plain = model(ids).logits
        assert torch.allclose(plain, twin(ids).logits, atol=1e-10)
        with neurons.degrade(model, positions="all"):
            live = model(ids).logits
        nl.bake(model, neurons, mode="degrade", positions="all")
        baked = nl.load_model(saved(model, tmp_path / "baked"))[0](ids).logits
    assert not torch.allclose(live, plain) and torch.allclose(live, baked, atol=1e-10)


def test_what_is_no_language_model_is_refused_in_one_line(tmp_path: Path) -> None:
    numbered().save_pretrained(tmp_path)
    for family, words in (("siglip_vision_model", "no language model"), ("t5", "an encoder-decoder")):
        AutoConfig.for_model(family).save_pretrained(tmp_path)
        with refused(str(tmp_path), family, words, "decoder"):
            nl.load_model(tmp_path)


def test_a_model_that_wants_images_is_refused_in_one_line() -> None:
    """BLIP's forward takes an image before anything else."""
    small = {"hidden_size": 16, "intermediate_size": 28, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "blip",
        text_config=small | {"vocab_size": VOCABULARY, "encoder_hidden_size": 16, "is_decoder": True},
        vision_config=small | {"image_size": 28, "patch_size": 14},
    )
    model = AutoModelForMultimodalLM.from_config(config).eval()
    for backend in ("fast", "reference"):
        with refused("BlipForConditionalGeneration", "tokens alone", "decoder language model"):
            nl.attribute(model, None, random_prompts(1), "gradient", backend=backend, progress=False)
