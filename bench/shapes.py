"""Models by name, with random weights at real shapes, and prompts of random tokens for them.

Models are made where they will run, in the type they will run in: a 30 B model never passes through the CPU.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from neuronllm import Prompt


@dataclass(frozen=True)
class Shape:
    """A configuration and the sizes that the engine suite uses it at."""

    name: str
    family: str
    config: dict[str, Any] = field(hash=False)
    dtype: torch.dtype = torch.float32
    std: float = 0.02
    tokens: int = 120
    prompts: int = 64
    batches: tuple[int, ...] = (4, 8, 16, 64)  # tried for plain batched inference
    copies: tuple[int, ...] = (1, 4, 16, 32, 64)  # tried for the plain loop over neurons
    rows: tuple[int, ...] = (16, 32, 128, 512)  # and for the one behind a kept prefix
    options: int = 4  # of a prompt
    answer_tokens: int = 1  # of an option
    sampled_layers: tuple[int, ...] = ()  # dear plain methods are timed on these layers only: empty means on all
    sampled_neurons: int = 0  # and exact effects on so many neurons: 0 means all
    dear: tuple[str, ...] = ()  # methods whose plain way takes minutes or more a prompt
    memory: int = 0  # GiB that a machine without a GPU should have

    @property
    def moe(self) -> bool:
        return "num_experts" in self.config

    def __str__(self) -> str:
        c = self.config
        experts = f", {c['num_experts']} experts of {c['moe_intermediate_size']}" if self.moe else ""
        kind = str(self.dtype).removeprefix("torch.")
        width = "" if self.moe else f", FFN {c['intermediate_size']}"
        return f"{self.family}, {c['num_hidden_layers']} layers, width {c['hidden_size']}{width}{experts}, {kind}"


def _dense(layers: int, width: int, ffn: int, heads: int, groups: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
    } | more


_ON_GPU: dict[str, Any] = {
    "dtype": torch.bfloat16,
    "tokens": 512,
    "prompts": 32,
    "batches": (8, 16, 32),
    "copies": (16, 32, 64),
    "rows": (32, 128),
}
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("toy", "llama", _dense(2, 32, 48, 4, 2, 120), std=0.2, tokens=12, prompts=4, batches=(2, 4)),
        # Small enough for thousands of prompts.
        Shape("narrow", "llama", _dense(4, 128, 352, 4, 4, 1000), std=0.1, tokens=40),
        # Norms behind the FFN; and an FFN of two matrices.
        Shape("narrow-neox", "gpt_neox", _dense(4, 128, 352, 4, 4, 1000), std=0.1, tokens=40),
        # Many neurons in few layers, whose exact effects are all within reach.
        Shape("wide", "llama", _dense(2, 64, 12288, 4, 4, 1000), std=0.1, tokens=40, prompts=4),
        Shape("wide-neox", "gpt_neox", _dense(2, 64, 12288, 4, 4, 1000), std=0.1, tokens=40, prompts=4),
        Shape("small", "llama", _dense(8, 512, 1408, 8, 8, 8000), std=0.05, dear=("logprob",)),
        # Three layers of linear attention to one that attends, as large as the one above.
        Shape(
            "small-hybrid",
            "qwen3_5_text",
            _dense(
                8,
                512,
                1408,
                8,
                8,
                8000,
                head_dim=64,
                layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 2,
                linear_num_key_heads=4,
                linear_num_value_heads=8,
                linear_key_head_dim=64,
                linear_value_head_dim=64,
            ),
            std=0.05,
        ),
        # Answers of three tokens, whose normaliser is over the vocabulary.
        *(
            Shape(
                name,
                "llama",
                _dense(8, 512, 1408, 8, 8, vocabulary),
                std=0.05,
                prompts=16,
                batches=(4, 8, 16, 32, 64),
                rows=(4, 16, 64),
                copies=(1, 4, 16),
                answer_tokens=3,
            )
            for name, vocabulary in (("small-32k", 32000), ("small-128k", 128256))
        ),
        # The real model of `make real`, here with random weights.
        Shape(
            "smollm2-135m",
            "llama",
            _dense(30, 576, 1536, 9, 3, 49152, tie_word_embeddings=True),
            prompts=4,
            batches=(2, 4),
        ),
        Shape(
            "llama-3.2-1b",
            "llama",
            _dense(16, 2048, 8192, 32, 8, 128256, tie_word_embeddings=True),
            prompts=4,
            batches=(2, 4),
            copies=(4, 8),
            rows=(32, 128, 512),
            sampled_layers=(4, 11),  # as far from the middle: their mean is that of all layers
            sampled_neurons=2048,
            dear=("ace", "qrnca", "knowledge", "logprob"),
            memory=20,
        ),
        Shape("llama-2-7b", "llama", _dense(32, 4096, 11008, 32, 32, 32000), **_ON_GPU),
        Shape(
            "llama-3.1-8b",
            "llama",
            _dense(32, 4096, 14336, 32, 8, 128256, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
            **_ON_GPU,
        ),
        Shape(
            "qwen3-30b-a3b",
            "qwen3_moe",
            _dense(
                48,
                2048,
                6144,
                32,
                4,
                151936,
                head_dim=128,
                num_experts=128,
                num_experts_per_tok=8,
                moe_intermediate_size=768,
                norm_topk_prob=True,
                decoder_sparse_step=1,
                mlp_only_layers=[],
            ),
            **_ON_GPU,
        ),
    )
}


def random_model(shape: Shape, device: str = "cpu", seed: int = 0) -> Any:
    """The model of a shape, weights drawn from a normal distribution, frozen, scaled-dot-product attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(shape.family, **shape.config)
    with torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=shape.dtype, attn_implementation="sdpa").eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.ndim > 1:
                parameter.normal_(0, shape.std)
    return model


def twin(model: Any) -> Any:
    """A second model on the same weights: whatever an engine does to the first, the baseline runs on its own."""
    shared = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, shared)


def random_prompts(shape: Shape, count: int, seed: int) -> list[Prompt]:
    """Prompts that share nothing, options of one token each."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, shape.config["vocab_size"], (count, shape.tokens), generator=draw)
    return [_prompt(row, shape, draw, question=str(n)) for n, row in enumerate(ids)]


def shared_prompts(shape: Shape, questions: int, variants: int, seed: int) -> list[Prompt]:
    """Variants of questions: half of a prompt is common to all, a sixth more to the variants of its question."""
    draw = torch.Generator().manual_seed(seed)
    common, stem = shape.tokens // 2, shape.tokens // 6

    def piece(length: int) -> torch.Tensor:
        return torch.randint(1, shape.config["vocab_size"], (length,), generator=draw)

    demonstration, prompts = piece(common), []
    for question in range(questions):
        asked = torch.cat([demonstration, piece(stem)])
        rows = [torch.cat([asked, piece(shape.tokens - len(asked))]) for _ in range(variants)]
        prompts += [_prompt(row, shape, draw, str(question)) for row in rows]
    return prompts


def _prompt(ids: torch.Tensor, shape: Shape, draw: torch.Generator, question: str) -> Prompt:
    from neuronllm import Prompt

    answer = int(torch.randint(shape.options, (1,), generator=draw))
    if shape.answer_tokens == 1:
        letters = range(1, 1 + shape.options)  # the same letters in every prompt, as a template has them
        return Prompt(input_ids=ids.tolist(), option_ids=[[n] for n in letters], answer=answer, question_id=question)
    size = (shape.options, shape.answer_tokens)
    texts = torch.randint(1, shape.config["vocab_size"], size, generator=draw).tolist()
    return Prompt(input_ids=ids.tolist(), option_ids=[[text] for text in texts], answer=answer, question_id=question)
