"""Warnings point at the line that called the package, whatever stands between: decorators, contexts, functions."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm.common.warning import warn
from neuronllm.results.neurons import NeuronSet
from tests.checks import quiz
from tests.test_tune import a_set, labelled
from tests.tiny import random_prompts, tiny

BAD_ROW = {"question": "Which?", "choices": ["red", "red"], "answer": 0}
GOOD_ROW = {"question": "Which?", "choices": ["red", "blue"], "answer": 0}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama")


@pytest.fixture(scope="module")
def empty(model: Any) -> NeuronSet:
    return a_set(model, good=[2]).take([])


def told(call: Callable[[], Any], said: str) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    found = [each for each in caught if said in str(each.message)]
    assert found, [str(each.message) for each in caught]
    return found


def all_here(call: Callable[[], Any], said: str) -> None:
    """The warning stands at a line of the call itself, which is a lambda of this file."""
    lines, first = inspect.getsourcelines(call)
    for each in told(call, said):
        assert each.filename == __file__ and first <= each.lineno < first + len(lines), (each.filename, each.lineno)


def test_of_a_context(model: Any, empty: NeuronSet) -> None:
    def steered() -> None:
        with empty.enhance(model):
            pass

    def elsewhere() -> None:
        with a_set(tiny("qwen2"), good=[2]).enhance(model):
            pass

    all_here(steered, "the neuron set is empty")
    all_here(elsewhere, "of the same shape")
    all_here(lambda: nl.bake(model, empty, mode="enhance"), "the neuron set is empty")


def test_of_a_judgement(model: Any, empty: NeuronSet) -> None:
    one_letter = [nl.Prompt(p.input_ids, p.option_ids, 0, p.question_id) for p in random_prompts(6)]
    evaluate = nl.evaluate
    all_here(lambda: evaluate(model, None, one_letter, progress=False), "A is the right letter")
    some = a_set(model, good=[2, 3])
    all_here(lambda: evaluate(model, None, quiz(4), some, good=2.0, controls=1, progress=False), "controls=1")
    all_here(lambda: evaluate(model, None, quiz(4), empty, good=2.0, controls=0, progress=False), "set is empty")
    leaning = labelled(quiz(30, variants=False), [0] * 30)
    all_here(lambda: nl.tune(model, None, some, leaning, progress=False), "A is the right letter")


def test_of_learning(model: Any) -> None:
    prompts = quiz(12, variants=False)
    few: dict[str, Any] = {"steps": 1, "seeds": 1, "progress": False, "retain_weight": 0}
    shared: dict[str, Any] = {"validation": prompts[:4], "margin": None, **few}
    some = a_set(model, good=[2, 3])
    all_here(lambda: nl.learn(model, None, prompts, neurons=some, **shared), "questions are learned on too")
    all_here(lambda: nl.learn(model, None, prompts, neurons=some, controls=1, **few), "controls=1")


def test_of_scores_and_files(model: Any, tmp_path: Path) -> None:
    scores = nl.attribute(model, None, quiz(4), "gradient", positions="answer", progress=False)
    all_here(lambda: scores.find(10**6, 0), "were asked for")
    all_here(lambda: nl.attribute(model, None, quiz(1), "qrnca", steps=2, progress=False), "qrnca of one question")
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (GOOD_ROW, BAD_ROW)))
    all_here(lambda: nl.load_questions(path, skip_bad=True), "left out 1 rows")


def test_of_a_decorated_function_of_the_user() -> None:
    """A user's own frames are never passed over, whatever calls them."""

    @torch.no_grad()
    def mine() -> None:
        warn("few")

    all_here(mine.__wrapped__, "few")
    (each,) = told(mine, "few")
    assert (each.filename, each.category) == (__file__, UserWarning)
