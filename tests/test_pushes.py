"""Which option a neuron pushes."""

from __future__ import annotations

import pytest
import torch

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from tests import plain
from tests.checks import refused
from tests.tiny import random_prompts, tiny


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_pushes_are_the_gradients_of_single_options(backend):
    model, prompts = tiny("llama"), random_prompts(3)
    found = nl.pushes(model, None, prompts, backend=backend, progress=False)
    for prompt, row in zip(prompts, found, strict=True):
        for k in range(3):
            score = lambda logits, prompt, k=k: plain.option_scores(logits, prompt)[k]  # noqa: E731
            points, grads = plain.slopes(model, prompt, score)
            expected = torch.cat([h[-1] * g[-1] for h, g in zip(points, grads, strict=True)])
            assert torch.allclose(row[k].double(), expected, rtol=1e-4, atol=1e-7)


def test_variants_count_by_choice_not_by_letter():
    """The same prompt shown with two orders of its choices: each choice collects what its letters were pushed."""
    model, (first, *_) = tiny("llama"), random_prompts(1)
    shown = nl.pushes(model, None, [first])[0]
    turned = Prompt(first.input_ids, first.option_ids, 0, question_id="q", order=[1, 2, 0])
    straight = Prompt(first.input_ids, first.option_ids, 0, question_id="q", order=[0, 1, 2])
    both = nl.pushes(model, None, [straight, turned])
    assert both.shape == (1, 3, 56)
    assert torch.allclose(both[0], (shown + shown[[2, 0, 1]]) / 2)


def test_some_neurons_and_questions_with_fewer_choices():
    model, prompts = tiny("qwen3_moe"), [*random_prompts(1), *random_prompts(2, options=2)[1:]]
    every = nl.pushes(model, None, prompts)
    assert torch.equal(nl.pushes(model, None, prompts, [5, 3]), every[..., [5, 3]])
    assert torch.equal(every[1, 2], torch.zeros(every.shape[-1])) and every[1, :2].abs().sum() > 0
    with refused("ids must be whole numbers"):
        nl.pushes(model, None, prompts, "ab")
    with refused("ids must lie in"):
        nl.pushes(model, None, prompts, [10**6])
    with refused("batch_size=0"):
        nl.pushes(model, None, prompts, batch_size=0)
    with refused("dtype='float65'", '"float64"'):
        nl.pushes(model, None, prompts, dtype="float65")
