"""Tiny random models of every family, built from their Hugging Face configurations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch

VOCABULARY = 60
GLU = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "granite",
    "cohere",
    "cohere2",
    "smollm3",
    "stablelm",
    "seed_oss",
    "phi3",
    "glm4",
    "lfm2",
]
PLAIN = ["gpt2", "opt", "gpt_neox", "falcon", "phi", "gptj", "nemotron", "starcoder2", "bloom", "gpt_bigcode"]
DENSE = GLU + PLAIN
POST_NORMED = {"gemma2", "gemma3_text", "olmo2", "glm4"}
# One of their two layers carries a state from token to token, the second one but in LFM2.
HYBRIDS = [
    "lfm2",
    "qwen3_next",
    "qwen3_5_text",
    "minimax",
    "falcon_h1",
    "bamba",
    "jamba",
    "nemotron_h",
    "granitemoehybrid",
]
# These attend without transformers' interface, or twice, or with a bias of their own making.
OWN_ATTENTION = ["gptj", "bloom", "falcon", "codegen", "xglm", "mpt", "diffllama", "megatron-bert", "rembert", "doge"]
# An indexer chooses which keys each token attends to; in the last layer of some it is that of the layer before.
SPARSE = ["deepseek_v32", "glm_moe_dsa", "hy_v4", "axk2", "dots3_note_text", "deepseek_v4"]
# Their states stand elsewhere than in a layer's own cache, or more is handed from layer to layer than the stream.
OTHER_STATES = ["lfm3", "inkling_text", "inkling2_text", "qwen4_exp_text", "zaya", "recurrent_gemma"]
# These count positions themselves: from the length of their cache, by a sinusoid, or by what does not pad.
COUNTING = ["bart", "marian", "trocr", "roberta", "xlm-roberta"]
# One or more of each of these lists, with other mechanisms each; above and below them all that norms, biases, gates,
# windows and routers come in.
STAND_INS = {
    "llama",
    "gemma2",
    "gemma3_text",
    "cohere",
    "granite",
    "phi3",
    "glm4",
    "gpt2",
    "opt",
    "starcoder2",
    "mixtral",
    "qwen2_moe",
    "deepseek_v3",
    "gpt_oss",
    "qwen3_next",
    "falcon_h1",
    "jamba",
    "bloom",
    "diffllama",
    "glm_moe_dsa",
    "trocr",
    "roberta",
}
EXPERTS = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"]

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MIXTURE = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
_DELTA = {
    "layer_types": ["full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
}
_INKLING = {
    "layer_types": ["hybrid_sliding", "hybrid"],
    "sliding_window_size": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 4,
    "moe_intermediate_size": 8,
    "n_routed_experts": 3,
    "num_experts_per_tok": 2,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 96, "n_inner": 28}
_GPT |= dict.fromkeys(["hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"])
# So many heads of the indexer that no two keys have a score of 0.
_INDEXED = {
    "index_n_heads": 16,
    "index_head_dim": 8,
    "index_topk": 4,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "qk_rope_head_dim": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "mlp_layer_types": ["dense", "sparse"],
}
_DECODER = {"is_decoder": True}
_BART = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 28, "is_decoder": True}
_BART |= {"is_encoder_decoder": False} | dict.fromkeys(["hidden_size", "num_hidden_layers", "num_attention_heads"])
# The last two of four layers attend to the keys and values of the first two.
_SHARED_KEYS = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 8,
    "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": VOCABULARY,
}
# None takes a setting away.
_SPECIAL: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 4},
    "gemma3_text": {
        "sliding_window": 8,
        "query_pre_attn_scalar": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 96, "n_inner": 28},
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 96, "n_inner": 28, "rotary_dim": 4},
    "opt": {"ffn_dim": 28, "word_embed_proj_dim": 16},
    "falcon": {"head_dim": None, "ffn_hidden_size": 28, "new_decoder_architecture": False, "alibi": False},
    "bloom": {"n_head": 4, "n_layer": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": True, "block_multiple_of": 4},
    "cohere": {"logit_scale": 0.5},
    # Mixtures of experts: 4 experts of 8 neurons, of which a token meets 2.
    "mixtral": {"intermediate_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": _MIXTURE | {"shared_expert_intermediate_size": 20},
    "qwen3_moe": _MIXTURE,
    "olmoe": {"intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": None},
    "deepseek_v3": {
        "first_k_dense_replace": 1,
        "head_dim": None,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 4,
    },
    "gpt_oss": {"intermediate_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "qwen3_next": _MIXTURE | _DELTA | {"shared_expert_intermediate_size": 20, "decoder_sparse_step": 1},
    "qwen3_5_text": _DELTA,
    "minimax": {
        "layer_types": ["full_attention", "linear_attention"],
        "intermediate_size": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "block_size": 8,
    },
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 32},
    "bamba": _MAMBA | {"mamba_expand": 2, "attn_layer_indices": [0]},
    "granitemoehybrid": _MAMBA
    | {"mamba_expand": 2, "layer_types": ["full_attention", "linear_attention"], "shared_intermediate_size": 28}
    | {"num_local_experts": 0, "num_experts_per_tok": 0},
    "jamba": {
        "attn_layer_offset": 0,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "head_dim": None,
    },
    "nemotron_h": {
        "layers_block_type": ["full_attention", "mlp", "linear_attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 8,
        "chunk_size": 8,
        "num_hidden_layers": None,
    },
    "lfm3": {"layer_types": ["sliding_attention", "conv"], "sliding_window": 8},
    "inkling_text": _INKLING | {"mlp_layer_types": ["sparse", "dense"], "n_shared_experts": 1},
    "inkling2_text": _INKLING | {"n_layers_per_attn_res_block": 1},
    "qwen4_exp_text": _MIXTURE
    | _DELTA
    | {"layer_types": ["linear_attention", "indexed_attention"], "shared_expert_intermediate_size": 20}
    | {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 4, "indexer_budget": 4}
    | {"indexer_compress_ratio": 2, "ple_layer_ids": [1], "ple_embed_dim": 16, "heads_per_ngram": 2, "ngram_size": 3}
    | {"ngram_vocab_size_base": 50, "make_ngram_vocab_size_divisible_by": 8},
    "zaya": _MIXTURE | {"num_experts_per_tok": 1, "router_hidden_size": 4},
    "recurrent_gemma": {
        "intermediate_size": 56,
        "block_types": ["recurrent", "attention"],
        "lru_width": 16,
        "attention_window_size": 8,
    },
    "codegen": _GPT | {"n_ctx": 96, "rotary_dim": 4},
    "gpt_bigcode": _GPT,
    "openai-gpt": _GPT,
    "xglm": {"d_model": 16, "ffn_dim": 28, "num_layers": 2, "attention_heads": 4}
    | dict.fromkeys(["hidden_size", "num_hidden_layers", "num_attention_heads"]),
    "mpt": {"d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 96, "expansion_ratio": 2}
    | dict.fromkeys(["hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"]),
    "megatron-bert": _DECODER,
    "rembert": _DECODER | {"input_embedding_size": 8, "output_embedding_size": 8},
    "deepseek_v32": _INDEXED,
    "axk2": _INDEXED,
    "glm_moe_dsa": _INDEXED | {"indexer_types": ["full", "shared"]},
    "hy_v4": _INDEXED | {"indexer_types": ["full", "shared"]},
    "dots3_note_text": _INDEXED
    | {"layer_types": ["indexed_attention", "sliding_attention"], "sliding_window": 8}
    | {f"swa_{part}": 4 for part in ("num_attention_heads", "num_key_value_heads", "qk_nope_head_dim", "v_head_dim")}
    | {"swa_kv_lora_rank": 8, "swa_q_lora_rank": 8, "swa_head_dim": 8, "shared_experts_intermediate_size": 8},
    "deepseek_v4": _INDEXED
    | {"layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"], "sliding_window": 8}
    | {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 3}, "index_topk": 2}
    | {"mlp_layer_types": ["hash_moe", "moe"], "o_groups": 2, "o_lora_rank": 4, "num_hash_layers": 1}
    | {"intermediate_size": 8},
    "bart": _BART,
    "marian": _BART,
    "trocr": _BART | {"use_learned_position_embeddings": False},
    "roberta": {"is_decoder": True},
    "roformer": {"is_decoder": True},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "xlm-roberta": {"is_decoder": True, "pad_token_id": 1, "bos_token_id": 0},
    "gemma3n_text": _SHARED_KEYS | {"laurel_rank": 4, "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0]},
    "gemma4_text": _SHARED_KEYS | {"global_head_dim": 4},
    "modernbert-decoder": {"local_attention": 8, "layer_types": ["full_attention", "sliding_attention"]},
    "granite": {"residual_multiplier": 0.7, "logits_scaling": 2.0, "attention_multiplier": 0.5},
}


def in_time(names: Sequence[str], quick: Collection[str] = (), stand_ins: Collection[str] = STAND_INS) -> list[Any]:
    """Parameters of a test that takes seconds a family: slow but the quick ones, and most part of the survey."""
    slow, survey = [pytest.mark.slow], [pytest.mark.slow, pytest.mark.survey]
    marks = {name: [] if name in quick else slow if name in stand_ins else survey for name in names}
    return [pytest.param(name, marks=marks[name]) for name in names]


def tiny(name: str, dtype: torch.dtype = torch.float64, std: float = 0.2, **extra: Any) -> Any:
    """A random model of the family `name` in eval mode; larger weights than usual, so that every edit shows."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**_COMMON, "intermediate_size": 28, "num_key_value_heads": 2, "head_dim": 4}
    settings |= _SPECIAL.get(name, {}) | extra
    settings = {key: value for key, value in settings.items() if value is not None}
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **settings)
    # Scaled-dot-product attention leaves Gemma 2's soft cap out, and some versions choose it unasked.
    chosen = {"attn_implementation": "eager"} if name == "gemma2" else {}
    # transformers' grouped products of experts, its default, take no float64.
    chosen |= {"experts_implementation": "eager"} if name in EXPERTS + SPARSE and dtype == torch.float64 else {}
    model = AutoModelForCausalLM.from_config(config, **chosen).to(dtype).eval()
    with torch.no_grad():
        for of, parameter in model.named_parameters():
            if parameter.ndim > 1 or of.endswith("self_attn.A"):  # Doge's, by which values count
                parameter.normal_(0, std)
        for name, table in model.named_buffers():
            if name.endswith("tid2eid"):  # the experts of every token, which are not to be the same one twice
                table.copy_(torch.arange(len(table))[:, None] % 4 ^ torch.arange(table.shape[1]))
    return model


def random_prompts(count: int = 2, length: int = 11, options: int = 3) -> list[Any]:
    """Prompts of random tokens; each option has two token ids."""
    from neuronllm.data.prompts import Prompt

    generator = torch.Generator().manual_seed(7)
    prompts = []
    for n in range(count):
        ids = torch.randint(3, VOCABULARY, (length + n,), generator=generator).tolist()
        option_ids = [[[3 + 2 * k], [4 + 2 * k]] for k in range(options)]
        prompts.append(Prompt(input_ids=ids, option_ids=option_ids, answer=n % options, question_id=f"q{n}"))
    return prompts
