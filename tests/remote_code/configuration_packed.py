"""The configuration of a model whose code comes with the checkpoint, in the style of Baichuan 2."""

from typing import Any

from transformers import PretrainedConfig


class PackedConfig(PretrainedConfig):
    model_type = "packed_for_tests"

    def __init__(
        self,
        vocab_size: int = 60,
        hidden_size: int = 16,
        intermediate_size: int = 28,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        max_position_embeddings: int = 96,
        **more: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.use_cache = True
        super().__init__(**{"tie_word_embeddings": False, **more})
