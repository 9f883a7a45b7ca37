"""Twenty seeds: an edit is found where one neuron does the harm, and none where answers mean nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from neuronllm.data.prompts import Prompt
from tests.checks import quiz
from tests.test_learn import learn
from tests.test_tune import CULPRIT, a_set, answers_of, labelled
from tests.tiny import tiny

pytestmark = pytest.mark.slow  # twenty trainings each

SEEDS, MOST = 20, 18


@pytest.fixture(scope="module")
def task() -> tuple[Any, list[Prompt]]:
    """A model, and prompts that it answers right."""
    model, prompts = tiny("llama"), quiz(36, variants=False, options=(4,))
    return model, labelled(prompts, answers_of(model, prompts))


def harm(model: Any) -> Any:
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, CULPRIT - 28] *= 40
    return model


def with_any_answers(prompts: list[Prompt]) -> list[Prompt]:
    generator = torch.Generator().manual_seed(1)
    answers = torch.randint(4, (len(prompts),), generator=generator).tolist()
    return [dataclasses.replace(prompt, answer=answer) for prompt, answer in zip(prompts, answers, strict=True)]


def told(model: Any, prompts: list[Prompt]) -> list[Any]:
    neurons = a_set(model, good=[2, 9, 40], bad=[CULPRIT, 7, 50, 11])
    return [learn(model, prompts, neurons, seed=seed, seeds=1 + seed % 3, lr=0.2, steps=12) for seed in range(SEEDS)]


def test_the_neuron_that_does_the_harm_is_found(task):
    _, prompts = task
    found = [learned for learned in told(harm(tiny("llama")), prompts) if len(learned)]
    turned_down = [float(learned.factor[learned.ids == CULPRIT]) < 0.7 for learned in found]
    assert len(found) >= MOST and sum(turned_down) >= MOST


def test_nothing_is_found_where_the_model_is_right(task):
    assert sum(len(learned) == 0 for learned in told(*task)) >= MOST


@pytest.mark.parametrize("harmed", [False, True])
def test_nothing_is_found_where_any_answer_is_called_right(task, harmed):
    model, prompts = task
    model = harm(tiny("llama")) if harmed else model
    assert sum(len(learned) == 0 for learned in told(model, with_any_answers(prompts))) >= MOST
