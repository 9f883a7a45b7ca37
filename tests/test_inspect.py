"""Inspect runs a task with neurons under a live edit, and the model answers as under `neurons.apply`.

Inspect is not part of `make test`: where it is not installed, this is left out (`make test-doors` installs it).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("inspect_ai", reason="it is not installed: make test-doors")

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model

import neuronllm as nl
import neuronllm.bridges.inspect
from neuronllm.model.anatomy import Anatomy
from tests.checks import refused
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

pytestmark = pytest.mark.doors

ASKED = ["the sky", "a door in the rain", "snow"]
TOKENS = 6


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model and a neuron set in folders."""
    folder, tokenizer = tmp_path_factory.mktemp("inspect"), byte_level()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    role, ids = np.array(["good"] * 6 + ["bad"] * 6), torch.arange(0, 48, 4)
    neurons = nl.NeuronSet(ids, role, torch.linspace(1, -1, 12), Anatomy.of(model))
    neurons.save_pretrained(folder / "set")
    return SimpleNamespace(folder=folder, model=model, tokenizer=tokenizer, neurons=neurons)


def by_inspect(saved: SimpleNamespace, log: Path, **how: Any) -> list[tuple[str, list[float]]]:
    """Every answer, and the log-probabilities of its tokens."""
    config = GenerateConfig(max_tokens=TOKENS, logprobs=True)
    provided = get_model("neuronllm/tiny", config=config, memoize=False, **arguments(saved), **how)
    task = Task(dataset=[Sample(input=text, target="none") for text in ASKED])
    (done,) = eval(task, model=provided, log_dir=str(log), display="none")
    assert done.status == "success" and done.eval.model == "neuronllm/tiny"
    outputs = [sample.output for sample in sorted(done.samples or [], key=lambda sample: sample.id)]
    return [(out.completion, [token.logprob for token in out.choices[0].logprobs.content]) for out in outputs]


def arguments(saved: SimpleNamespace) -> dict[str, Any]:
    return {"model_path": str(saved.folder / "model"), "device": "cpu", "do_sample": False}


def by_hand(saved: SimpleNamespace) -> list[tuple[str, list[float]]]:
    """The same greedily, a row at a time, in the words that Inspect uses where there is no chat template."""
    found = []
    for text in ASKED:
        ids = torch.tensor([saved.tokenizer(f"user: {text}\n").input_ids])
        values = []
        for _ in range(TOKENS):
            with torch.no_grad():
                logprobs = saved.model(ids, use_cache=False).logits[0, -1].log_softmax(-1)
            values.append(float(logprobs.max()))
            ids = torch.cat([ids, logprobs.argmax().reshape(1, 1)], 1)
        found.append((saved.tokenizer.decode(ids[0, -TOKENS:], skip_special_tokens=True), values))
    return found


def test_inspect_asks_the_edited_model(saved: SimpleNamespace, tmp_path: Path) -> None:
    found = by_inspect(saved, tmp_path, neurons=str(saved.folder / "set"), mode="enhance")
    with saved.neurons.enhance(saved.model):
        right = by_hand(saved)
    assert [text for text, _ in found] == [text for text, _ in right]
    assert [values for _, values in found] == [pytest.approx(values, abs=1e-5) for _, values in right]
    plain = by_inspect(saved, tmp_path, neurons=str(saved.folder / "set"), good=1.0)
    assert [values for _, values in plain] == [pytest.approx(values, abs=1e-5) for _, values in by_hand(saved)]
    assert [values for _, values in plain] != [values for _, values in found]


def test_what_inspect_is_told_wrongly_is_one_line(saved: SimpleNamespace) -> None:
    with refused("neurons: name a neuron set"):
        get_model("neuronllm/tiny", memoize=False, **arguments(saved))
    with refused("no neuron set there"):
        get_model("neuronllm/tiny", memoize=False, neurons=str(saved.folder), **arguments(saved))
    with refused("mode='louder': known modes are"):
        get_model("neuronllm/tiny", memoize=False, neurons=str(saved.folder / "set"), mode="louder")
