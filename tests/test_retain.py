"""How far an edit moves other texts: the distance, its gradient, and what counts at which positions."""

from __future__ import annotations

import pytest
import torch

import neuronllm as nl
from neuronllm.engine.borrowed import DoublePrecision, borrowed
from neuronllm.engine.retain import Text, divergences, text_logprobs
from neuronllm.model.anatomy import Anatomy
from tests.test_factor_gradients import some_neurons
from tests.texts import random_tokens
from tests.tiny import tiny

TEXTS = [Text(random_tokens(12, 1)), Text(random_tokens(7, 2), 3), Text(random_tokens(9, 3), 8)]


def by_hand(model, text, ids=None, factors=None):
    """Log-probabilities (tokens, vocabulary) of one text."""
    tokens = torch.tensor([text.tokens])
    if ids is None:
        return model(tokens).logits[0].log_softmax(-1)
    with nl.edit(model, ids, factors, positions=slice(text.start, None)):
        return model(tokens).logits[0].log_softmax(-1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2_moe"])
@torch.no_grad()
def test_distances_are_the_mean_over_the_edited_tokens(name):
    model = tiny(name)
    ids, factors = some_neurons(model)
    with borrowed(model):
        found = divergences(model, Anatomy.of(model), TEXTS, ids, factors)
    for text, value in zip(TEXTS, found.values, strict=True):
        before, after = by_hand(model, text), by_hand(model, text, ids, factors)
        far = (before.exp() * (before - after)).sum(-1)
        assert float(far[: text.start].abs().sum()) == pytest.approx(0, abs=1e-12)
        assert float(value) == pytest.approx(float(far[text.start :].mean()), rel=1e-9) and value > 1e-4


@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_the_gradient_is_that_of_the_distance(name):
    model, step = tiny(name), 1e-5
    ids, factors = some_neurons(model, 4)
    anatomy = Anatomy.of(model)
    with borrowed(model), DoublePrecision():
        found = divergences(model, anatomy, TEXTS, ids, factors)
        for n, push in enumerate(torch.eye(4, dtype=torch.float64) * step):
            up, down = (divergences(model, anatomy, TEXTS, ids, factors + way * push).values for way in (1, -1))
            assert torch.allclose(found.gradients[:, n], (up - down) / (2 * step), rtol=1e-4, atol=1e-7)
        nothing = divergences(model, anatomy, TEXTS, ids, torch.ones(4))
    assert nothing.values.abs().max() < 1e-12 and nothing.gradients.abs().max() < 1e-9


@torch.no_grad()
def test_the_log_probability_of_texts():
    model = tiny("llama")
    ids, factors = some_neurons(model)
    with borrowed(model):
        plain = text_logprobs(model, Anatomy.of(model), TEXTS[:2])
        edited = text_logprobs(model, Anatomy.of(model), TEXTS[:2], ids, factors)
    for text, before, after in zip(TEXTS, plain, edited, strict=False):
        following = torch.tensor(text.tokens[1:])[:, None]
        for value, logp in ((before, by_hand(model, text)), (after, by_hand(model, text, ids, factors))):
            own = logp[:-1].gather(1, following)[text.start :, 0]
            assert float(value) == pytest.approx(float(own.mean()), rel=1e-9)
