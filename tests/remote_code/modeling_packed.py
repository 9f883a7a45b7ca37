"""A decoder whose code comes with the checkpoint, in the style of Baichuan 2.

Queries, keys and values are packed into one projection, the cache is tuples of tensors, and the rows of the head are
normalised. Nothing of it goes through transformers' interfaces for attention, masks or caches.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_packed import PackedConfig

Past = tuple[tuple[torch.Tensor, torch.Tensor], ...]


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angles = positions[:, None, :, None].to(x.dtype) * frequencies
    first, second = x[..., :half], x[..., half:]
    turned = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
    return torch.cat(turned, -1)


class Attention(nn.Module):
    def __init__(self, config: PackedConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, past: Any) -> Any:
        batch, tokens, size = x.shape
        packed = self.W_pack(x).view(batch, tokens, 3, self.heads, -1)
        query, key, value = (part.transpose(1, 2) for part in packed.unbind(2))
        query, key = rotated(query, positions), rotated(key, positions)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        weights = (query @ key.mT / math.sqrt(query.shape[-1]) + mask).softmax(-1)
        return self.o_proj((weights @ value).transpose(1, 2).reshape(batch, tokens, size)), (key, value)


class MLP(nn.Module):
    def __init__(self, config: PackedConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: PackedConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = Norm(config.hidden_size)
        self.post_attention_layernorm = Norm(config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, past: Any) -> Any:
        mixed, present = self.self_attn(self.input_layernorm(hidden_states), mask, positions, past)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)), present


class PackedModelBase(PreTrainedModel):
    config_class = PackedConfig
    base_model_prefix = "model"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding, NormHead)):
            module.weight.data.normal_(0, 0.2)


class PackedModel(PackedModelBase):
    def __init__(self, config: PackedConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = Norm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        length = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        x = self.embed_tokens(input_ids)
        batch, tokens, _ = x.shape
        if position_ids is None:
            position_ids = torch.arange(length, length + tokens, device=x.device).expand(batch, -1)
        seen = torch.ones(tokens, length + tokens, dtype=torch.bool, device=x.device).tril(length)[None, None]
        if attention_mask is not None:
            seen = seen & attention_mask[:, None, None].bool()
        mask = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill(~seen, torch.finfo(x.dtype).min)
        present = []
        for n, layer in enumerate(self.layers):
            x, kept = layer(x, mask, position_ids, None if past_key_values is None else past_key_values[n])
            present.append(kept)
        return BaseModelOutputWithPast(self.norm(x), tuple(present) if use_cache else None)


class NormHead(nn.Module):
    def __init__(self, config: PackedConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, nn.functional.normalize(self.weight))


class PackedForCausalLM(PackedModelBase):
    def __init__(self, config: PackedConfig) -> None:
        super().__init__(config)
        self.model = PackedModel(config)
        self.lm_head = NormHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_decoder(self) -> nn.Module:
        return self.model

    def forward(self, input_ids: torch.Tensor, **more: Any) -> CausalLMOutputWithPast:
        out = self.model(input_ids, **more)
        return CausalLMOutputWithPast(logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values)
