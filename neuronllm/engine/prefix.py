"""The prefix of a prompt: every token before the answer position, whose keys and values no edit there can change.

It is computed once, without a graph; everything else then runs on answer tokens alone. Prompts of a batch are padded on
the right, and what is padding is known from their lengths, never guessed from token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .borrowed import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..prompts import Prompt


class PrefixCache:
    """Keys and values (prompts, groups, tokens, d) of every layer, and how many tokens of each prompt are real."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], lengths: Tensor) -> None:
        self.layers, self.lengths = layers, lengths
        self._visible: dict[int | None, Tensor] = {}

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        return self.layers[number]

    def visible(self, window: int | None) -> Tensor:
        """(prompts, tokens + 1): which prefix tokens an answer token sees, within a sliding window; last, itself."""
        if window not in self._visible:
            place = torch.arange(int(self.lengths.max()))
            seen = place < self.lengths[:, None]
            if window is not None:
                seen &= place > self.lengths[:, None] - window
            self._visible[window] = torch.nn.functional.pad(seen, (0, 1), value=True)
        return self._visible[window]


@torch.no_grad()
def prefill(model: PreTrainedModel, prompts: Sequence[Prompt]) -> PrefixCache:
    """Run the prompts without their last tokens and keep the keys and values."""
    from transformers import DynamicCache

    lengths = torch.tensor([len(p.input_ids) - 1 for p in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt.input_ids) - 1] = torch.tensor(prompt.input_ids[:-1])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    inputs: dict[str, Any] = {"input_ids": ids.to(input_device(model)), "use_cache": True}
    if not bool(mask.all()):
        inputs["attention_mask"] = mask.long().to(input_device(model))
    # A cache without a configuration keeps every key: a windowed one would drop keys that shorter prompts still see.
    cache = DynamicCache()
    model.get_decoder()(**inputs, past_key_values=cache)
    layers: Any = cache.layers
    return PrefixCache([(layer.keys, layer.values) for layer in layers], lengths)


def answer_cache(prefix: PrefixCache) -> Any:
    """A cache that says how long the prefix is and hands a layer its own new keys and values back."""
    from transformers import DynamicCache

    length = int(prefix.lengths.max())

    class AnswerCache(DynamicCache):
        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            return key_states, value_states

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return length

        def get_query_offset(self, *args: Any, **kwargs: Any) -> int:
            return length

        def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
            rows = query_length if isinstance(query_length, int) else len(query_length)
            return length + rows, 0

    return AnswerCache()
