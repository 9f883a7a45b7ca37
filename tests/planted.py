"""A world whose neurons are known: a GPT-2 without attention, in which each neuron fires on words and pushes words.

Words are unit vectors, only some of them are ever said, and the last word of a prompt decides everything.
`World.probabilities` says what the model must give, worked out in NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WIDTH, LAYERS, SIZE = 40, 2, 64
THRESHOLD = 3.0


class Neuron(NamedTuple):
    """Fires on words, alike on each, and pushes others."""

    fires: Sequence[str]
    pushes: Mapping[str, float]
    layer: int = 0


class World:
    """The model, its tokenizer, and which neuron is which: neuron n of the list is `ids[n]`, the others do nothing."""

    def __init__(self, neurons: Sequence[Neuron], said: Sequence[str], others: Sequence[str], seed: int = 0) -> None:
        self.neurons, self.words = neurons, ["[UNK]", "[EOS]", *others, *said]
        self.said = np.isin(self.words, said)
        assert len(self.words) < SIZE
        generator = torch.Generator().manual_seed(seed)
        place = [torch.randperm(WIDTH, generator=generator).tolist() for _ in range(LAYERS)]
        taken = [place[neuron.layer].pop() for neuron in neurons]
        self.ids = [neuron.layer * WIDTH + index for neuron, index in zip(neurons, taken, strict=True)]
        self.model, self.tokenizer = self._model(taken), self._tokenizer()

    def _model(self, taken: Sequence[int]) -> Any:
        config = GPT2Config(
            vocab_size=len(self.words),
            n_embd=SIZE,
            n_layer=LAYERS,
            n_head=4,
            n_positions=64,
            n_inner=WIDTH,
            activation_function="relu",
            bos_token_id=1,
            eos_token_id=1,
            tie_word_embeddings=False,
        )
        model = GPT2LMHeadModel(config).double().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "ln_" not in name:
                    parameter.zero_()
            model.transformer.wte.weight[:, : len(self.words)] = torch.eye(len(self.words), dtype=torch.float64)
            spoken = torch.from_numpy(self.said).double().diag()
            model.lm_head.weight[:, : len(self.words)] = spoken
            for neuron, index in zip(self.neurons, taken, strict=True):
                mlp = model.transformer.h[neuron.layer].mlp
                mlp.c_fc.weight[[self.words.index(word) for word in neuron.fires], index] = 1.0
                mlp.c_fc.bias[index] = -THRESHOLD
                for word, strength in neuron.pushes.items():
                    mlp.c_proj.weight[index, self.words.index(word)] = strength
        return model

    def _tokenizer(self) -> Any:
        vocabulary = {word: number for number, word in enumerate(self.words)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]")

    def activations(self, last: str) -> dict[int, float]:
        """What each neuron holds at a word, by its flat id, without an edit."""
        return self._run(last, {})[1]

    def probabilities(
        self, last: str, options: Sequence[str], factors: Mapping[int, float] | None = None
    ) -> np.ndarray:
        """How likely each option is among these behind a text that ends with this word; factors by flat ids."""
        logits = self._run(last, factors or {})[0]
        weights = np.exp([logits[self.words.index(option)] for option in options])
        return weights / weights.sum()

    def _run(self, last: str, factors: Mapping[int, float]) -> tuple[np.ndarray, dict[int, float]]:
        x = np.eye(SIZE)[self.words.index(last)]
        held = {}
        for layer in range(LAYERS):
            seen, push = _normed(x), np.zeros(SIZE)
            for number, neuron in zip(self.ids, self.neurons, strict=True):
                if neuron.layer == layer:
                    held[number] = max(0.0, sum(seen[self.words.index(word)] for word in neuron.fires) - THRESHOLD)
                    for word, strength in neuron.pushes.items():
                        push[self.words.index(word)] += factors.get(number, 1.0) * held[number] * strength
            x = x + push
        return _normed(x)[: len(self.words)] * self.said, held


def _normed(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5)
