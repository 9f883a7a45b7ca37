"""Every causal language model that transformers can configure, as small as its code allows.

One recipe serves nearly all: settings by the usual names get small values, in a configuration's parts too, and of the
layers only the first of each kind stay. What a family needs beside that, or instead, stands in `SPECIAL`.
"""

from __future__ import annotations

from typing import Any

VOCABULARY, HIDDEN, WIDTH, HEADS, HEAD = 60, 32, 40, 4, 8
LONGEST = 96  # tokens that fit

_BY_VALUE: list[tuple[Any, str]] = [
    (VOCABULARY, "vocab_size vocab_size_per_layer_input decoder_vocab_size"),
    (HIDDEN, "hidden_size d_model n_embd dim_model lru_width emb_dim embedding_size embedding_dim word_embed_proj_dim"),
    (
        HIDDEN,
        "adapter_input_size out_hidden_size attention_hidden_size backbone_hidden_size adapter_in_dim adapter_out_dim",
    ),
    (WIDTH, "intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim dim_ff dff ffn_hidden_size"),
    (WIDTH, "dense_intermediate_size intermediate_size_mlp feed_forward_size d_inner d_ff mlp_dim"),
    (HEADS, "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"),
    (HEADS, "attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads"),
    (HEADS, "mamba_n_heads mamba_num_heads linear_num_value_heads linear_num_heads"),
    (2, "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads"),
    (2, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers"),
    (2, "num_encoder_layers depth num_blocks"),
    (HEAD, "head_dim kv_channels swa_head_dim d_kv d_head dim_head v_head_dim qk_nope_head_dim kv_lora_rank"),
    (HEAD, "q_lora_rank index_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim"),
    (HEAD, "attention_head_dim attention_head_size index_topk laurel_rank"),
    (HEAD, "mamba_d_state state_size ssm_state_size mamba_dt_rank time_step_rank mamba_chunk_size chunk_size"),
    (HEAD, "sliding_window sliding_window_size window_size local_attention attention_window_size block_size"),
    (HEAD, "attention_chunk_size"),
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts qk_rope_head_dim rotary_dim"),
    (2, "num_experts_per_tok num_experts_per_token moe_topk moe_top_k top_k_experts moe_k n_group topk_group"),
    (2, "num_expert_group mamba_n_groups mamba_ngroups n_groups"),
    (12, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size"),
    (12, "shared_experts_intermediate_size moe_shared_expert_intermediate_size"),
    (1, "num_shared_experts n_shared_experts moe_num_shared_experts first_k_dense_replace num_dense_layers"),
    (1, "moe_layer_start_index num_mem_blocks"),
    (16, "mamba_d_head mamba_head_dim mamba_headdim"),
    (16, "index_n_heads"),  # so many that no key has a score of 0, like another one
    (LONGEST, "max_position_embeddings n_positions max_seq_len n_ctx model_max_length context_length"),
    (LONGEST, "max_target_positions"),
    (0, "pad_token_id"),
    (1, "bos_token_id"),
    (2, "eos_token_id"),
]
SMALL: dict[str, Any] = {name: value for value, names in _BY_VALUE for name in names.split()}

# Where a configuration leaves these open, they follow from others in ways that need not fit small ones.
_FILLED = {"head_dim", "num_key_value_heads"}
# Low-rank attention: every head has keys of its own, and the rotary part of them is what is called the head.
_LOW_RANK = {"num_key_value_heads": HEADS, "head_dim": 4, "qk_rope_head_dim": 4, "qk_head_dim": HEAD + 4}
_LAYERS = {"layer_types": ["linear_attention", "full_attention"]}
_CONVOLUTION = {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}
# Positions of images are three numbers, which have a share each of a head's angles.
_THREE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
_SHARED = {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3}
_DECODER = {"is_decoder": True}
_ASSISTANT = {
    "text_config": {
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "vocab_size": VOCABULARY,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": HEAD,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "backbone_hidden_size": HIDDEN,
}
_PART = {"hidden_size_per_layer_input": HEAD}  # of Gemma's inputs to single layers
# By model type, also of a part of a configuration; None takes a setting away.
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_groups": 1},
    "bert": _DECODER,
    "bert-generation": _DECODER,
    "big_bird": _DECODER | {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "camembert": _DECODER,
    "cohere_compass_text": {"rope_parameters": {"full_attention": _THREE}},
    "data2vec-text": _DECODER,
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "index_topk": 4,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note_text": {f"swa_{name}": HEAD for name in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim")}
    | {"swa_num_attention_heads": HEADS, "swa_num_key_value_heads": HEADS, "swa_head_dim": HEAD + 4},
    "electra": _DECODER,
    "ernie": _DECODER,
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": _PART | {"num_kv_shared_layers": 2, "intermediate_size": WIDTH},
    "gemma4_text": _PART,
    "gemma4_unified_text": _PART,
    "glm_moe_dsa": {"indexer_types": ["full", "full", "shared"]},
    "glm4v_text": {"rope_parameters": _THREE | {"partial_rotary_factor": 1.0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "granitemoehybrid": _LAYERS | {"mamba_n_groups": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 4},
    "lfm2": _CONVOLUTION | {"block_auto_adjust_ff_dim": False, "full_attn_idxs": None},
    "lfm2_moe": _CONVOLUTION,
    "longcat_flash": {"zero_expert_num": 1},
    "mamba2": {"head_dim": 16},
    "megatron-bert": _DECODER,
    "qwen2_5_vl_text": {"rope_parameters": _THREE},
    "qwen2_vl_text": {"rope_parameters": _THREE},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "ple_layer_ids": [2],
        "ple_embed_dim": HIDDEN,
        "heads_per_ngram": 2,
        "ngram_size": 3,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 8,
        "eos_token_id": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": _DECODER | {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 12]},
    "rembert": _DECODER | {"input_embedding_size": HEAD, "output_embedding_size": HEAD},
    "roberta": _DECODER,
    "roberta-prelayernorm": _DECODER,
    "roc_bert": _DECODER | {"pronunciation_vocab_size": VOCABULARY, "shape_vocab_size": VOCABULARY},
    "roformer": _DECODER,
    "xlm-roberta": _DECODER,
    "xlm-roberta-xl": _DECODER,
    "xlstm": {"chunk_size": 16},
    "xmod": _DECODER | {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": _SHARED | {"attention_hidden_size": 2 * HIDDEN, "attention_head_dim": 2 * HEAD},
    "zamba2": _SHARED
    | {"mamba_headdim": HEAD, "attention_hidden_size": None, "attention_head_dim": None, "kv_channels": None},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": HEAD},
}
# Models that read images or sound too, and are no causal language model to transformers.
MULTIMODAL = (
    "aya_vision",
    "glm4v",
    "idefics3",
    "internvl",
    "lfm2_vl",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "paligemma",
    "qwen2_5_vl",
    "qwen2_audio",
    "qwen2_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
    "vipllava",
    "voxtral",
)
# Their defaults contradict each other, so that there is nothing to shrink.
WHOLE: dict[str, dict[str, Any]] = {"gemma4_assistant": _ASSISTANT, "gemma4_unified_assistant": _ASSISTANT}


def names() -> list[str]:
    """The families that `AutoModelForCausalLM` can build, by `config.model_type`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def settings(family: str) -> dict[str, Any]:
    """What a tiny configuration of the family is made of."""
    from transformers import CONFIG_MAPPING

    return WHOLE.get(family) or _shrunk(CONFIG_MAPPING[family]().to_dict())


def _shrunk(full: dict[str, Any]) -> dict[str, Any]:
    small = {name: value for name, value in SMALL.items() if full.get(name) is not None or name in _FILLED & {*full}}
    small |= _LOW_RANK if "qk_rope_head_dim" in full else {}
    small |= {name: _shrunk(part) for name, part in full.items() if isinstance(part, dict) and "model_type" in part}
    small |= _one_of_each_kind(full) | SPECIAL.get(full["model_type"], {})
    return {name: value for name, value in small.items() if value is not None}


def _one_of_each_kind(full: dict[str, Any]) -> dict[str, Any]:
    """Two layers, or the first of each kind, where lists say of what kind each layer is."""
    count = full.get("num_hidden_layers")
    lists = {name: value for name, value in full.items() if isinstance(value, list) and len(value) == count}
    if not lists:
        return {}
    kinds = [str(kind) for kind in zip(*lists.values(), strict=True)]
    kept = sorted({0, 1, *(kinds.index(kind) for kind in kinds)})
    return {"num_hidden_layers": len(kept)} | {name: [value[n] for n in kept] for name, value in lists.items()}


def tiny(family: str) -> Any:
    """A random model of the family in eval mode; its weights are larger than usual, so that every edit shows."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMultimodalLM

    torch.manual_seed(0)
    auto = AutoModelForMultimodalLM if family in MULTIMODAL else AutoModelForCausalLM
    model = auto.from_config(CONFIG_MAPPING[family](**settings(family)))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.2 * torch.randn(parameter.shape)
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise / 2)
        for name, table in model.named_buffers():
            if name.endswith("tid2eid"):  # the experts of every token, which are not to be the same one twice
                table.copy_(torch.arange(len(table))[:, None] % 4 ^ torch.arange(table.shape[1]))
    return model.eval()
