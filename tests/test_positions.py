"""One rule: an edit is judged where it is lived with. What `nl.evaluate` edits is what a steered model edits.

The tokens are read off the first FFN: they are those for which it gives other numbers than it gave unedited.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.neurons import NeuronSet
from tests.checks import refused, untouched
from tests.test_answer_edits import GREEDY, NEW, first_layer, watched
from tests.tiny import tiny

# Prompts that begin alike, as those of a task do, and end in a token that stands nowhere else.
BEGIN = [3, 4, 5, 6]
PROMPTS = [Prompt([*BEGIN, *own], [[50], [51]], n % 2) for n, own in enumerate([[11, 12, 13], [21], [31, 32], [4, 41]])]
LAST = {13, 21, 32, 41}
EVERY = LAST.union(BEGIN, [11, 12, 31])
PADDING = 0
HALVED = {"good": 0.5, "bad": 0.5}
MODELS = ["llama", "opt", "mixtral", "qwen2_moe"]


def found_at(model: Any, positions: str | None) -> NeuronSet:
    ids = first_layer(model)
    role = np.array(["good", "bad"] * len(ids), dtype="<U4")[: len(ids)]
    return NeuronSet(ids, role, torch.zeros(len(ids)), Anatomy.of(model), {"positions": positions})


def edited(passes: Any) -> set[int]:
    """The ids of the edited tokens, without padding."""
    return {int(token) for tokens, _, differs in passes for token in tokens[differs]} - {PADDING}


def padded(side: str) -> dict[str, torch.Tensor]:
    width = max(len(prompt.input_ids) for prompt in PROMPTS)
    rows = []
    for prompt in PROMPTS:
        padding = [PADDING] * (width - len(prompt.input_ids))
        rows.append(padding + prompt.input_ids if side == "left" else prompt.input_ids + padding)
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != PADDING).long()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("found", "asked", "expected"),
    [
        ("answer", None, LAST),
        ("all", None, EVERY),
        (None, None, EVERY),
        ("answer", "all", EVERY),
        ("all", "answer", LAST),
    ],
)
def test_the_tokens_of_an_edit_are_the_same_wherever_it_is_judged_or_lived_with(name, found, asked, expected):
    model = tiny(name)
    neurons, positions = found_at(model, found), {} if asked is None else {"positions": asked}

    with watched(model) as passes, untouched(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        nl.evaluate(model, None, PROMPTS, neurons, **HALVED, **positions, controls=0, progress=False)
    assert edited(passes) == expected

    with watched(model) as passes, untouched(model):
        nl.tune(model, None, neurons, PROMPTS, factors=[0.5], **positions, ks=[99], progress=False)
    assert edited(passes) == expected

    for side in ("left", "right"):
        for cache in (True, False):
            inputs = padded(side)
            with watched(model) as passes, untouched(model), neurons.apply(model, **HALVED, **positions):
                model.generate(**inputs, **GREEDY, use_cache=cache)
            width = inputs["input_ids"].shape[1]
            assert edited((t[:, :width], 0, d[:, :width]) for t, place, d in passes if place == 0) == expected
            new = {place + column for _, place, d in passes for column in d.all(0).nonzero().flatten().tolist()}
            assert new >= set(range(width, width + NEW - 1))  # and all that was written but the last, which is not read

    where = asked or found or "all"
    if where == "answer":
        with untouched(model), refused("which weights cannot hold", 'positions="all"'):
            nl.bake(model, neurons, **HALVED, **positions)
    else:
        with watched(model) as passes, untouched(model):
            handle = nl.bake(model, neurons, **HALVED, **positions)
            with torch.no_grad():
                model(**padded("right"))
            handle.undo()
        assert edited(passes) == expected
