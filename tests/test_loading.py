"""Loading: checkpoints in one GGUF file become ordinary models, and what cannot be loaded is one clear line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import neuronllm as nl
from neuronllm.model import loading
from tests.checks import refused

TOKENS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "cd"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def tiny() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=len(TOKENS), max_position_embeddings=64)
    return LlamaForCausalLM(config).eval()


def test_a_type_is_named_or_given() -> None:
    for dtype in (torch.float64, "float64", "torch.float64", "double"):
        assert nl.load_model("demo", dtype=dtype)[0].dtype == torch.float64
    for dtype in ("float65", "int8", ""):
        with refused(f"dtype={dtype!r}", '"float64"'):
            nl.load_model("demo", dtype=dtype)


def test_the_bundled_model_is_held_in_float32() -> None:
    """Whoever loads it: lm-eval and transformers take the type that its configuration names."""
    assert nl.load_model("demo")[0].dtype == torch.float32
    assert AutoModelForCausalLM.from_pretrained(loading.demo_path(), dtype="auto").dtype == torch.float32


@pytest.mark.parametrize("supported", [True, False])
def test_a_cpu_that_is_slow_in_a_half_type_says_so(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda: supported)
    for dtype in ("bfloat16", "float16", "float32", "float64"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            nl.load_model("demo", dtype=dtype)
        told = [str(warning.message) for warning in caught if "no instructions" in str(warning.message)]
        assert len(told) == (not supported and dtype.endswith("16")) and all(dtype in line for line in told)


def write_gguf(path: Path, model: Any) -> None:
    """The model as one file, with a byte-pair tokenizer: the names and the order of rows that llama.cpp writes."""
    gguf = pytest.importorskip("gguf")
    writer, config = gguf.GGUFWriter(path, "llama"), model.config
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        writer.add_tensor(_named(name), _ordered(name, weight.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _named(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    whole["lm_head.weight"] = "output.weight"
    if name in whole:
        return whole[name]
    _, _, layer, *rest = name.split(".")
    parts = {"self_attn": "attn", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    if len(rest) == 2:
        return f"blk.{layer}.{parts[rest[0]]}.weight"
    last = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    last |= {f"{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    return f"blk.{layer}.{last[rest[1]]}.weight"


def _ordered(name: str, weight: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    """llama.cpp turns pairs of neighbouring rows where transformers turns halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            halves = weight.reshape(count, 2, -1, weight.shape[1])
            return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
    return weight


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("packed")
    write_gguf(found / "tiny.gguf", tiny())
    return found


def test_a_gguf_file_becomes_an_ordinary_model(folder: Path, tmp_path: Path) -> None:
    right = tiny()
    for given in (folder, folder / "tiny.gguf", f"{folder}:tiny.gguf"):
        model, tokenizer = nl.load_model(given)
        assert model.dtype == torch.float32 and not model.training
        for (name, found), expected in zip(model.state_dict().items(), right.state_dict().values(), strict=True):
            assert torch.equal(found, expected), name
    ids = tokenizer("abcd", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["ab", "cd"]
    assert torch.equal(model(torch.tensor([ids])).logits, right(torch.tensor([ids])).logits)

    model.save_pretrained(tmp_path / "ordinary")
    tokenizer.save_pretrained(tmp_path / "ordinary")
    again, _ = nl.load_model(tmp_path / "ordinary")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), right.parameters(), strict=True))


def test_scores_and_baking_know_the_file(folder: Path, tmp_path: Path) -> None:
    model, _ = nl.load_model(folder, dtype=torch.float64)
    assert model.dtype == torch.float64
    prompt = nl.Prompt([5, 6, 7, 8], [[9], [10]], 0)
    scores = nl.attribute(model, None, [prompt], "gradient", positions="all", progress=False)
    assert scores.provenance["model"] == "tiny.gguf"
    handle = nl.bake(model, scores.find(good=2, bad=2), mode="degrade")
    model.save_pretrained(tmp_path / "baked")
    handle.undo()


def test_gguf_files_that_cannot_be_taken(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("nothing.gguf", "no such file"):
        nl.load_model("nothing.gguf")
    with refused(f"{folder}:other.gguf", "no such file"):
        nl.load_model(f"{folder}:other.gguf")
    with refused(str(tmp_path), "no tokenizer there"):
        nl.load_model(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"no model")
    with refused("2 GGUF files", f"{tmp_path}:a.gguf"):
        nl.load_model(tmp_path)
    with refused(str(tmp_path / "a.gguf"), "cannot be loaded"):
        nl.load_model(tmp_path / "a.gguf")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with refused("neuronllm[gguf]"):
        nl.load_model(folder)
