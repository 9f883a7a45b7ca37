"""Adapters read back: a set comes back as it was written, and what PEFT has learned becomes one."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import neuronllm as nl
from neuronllm.model.identity import identity
from neuronllm.results.neurons import NeuronSet
from tests.test_adapters import DTYPES, QUICK, live, logits, some_neurons
from tests.tiny import tiny

peft = pytest.importorskip("peft")


def same_set(a: NeuronSet, b: NeuronSet) -> bool:
    """Neurons in their order, roles, scores, own factors and provenance."""
    assert a.ids.tolist() == b.ids.tolist() and a.role.tolist() == b.role.tolist() and torch.equal(a.score, b.score)
    if a.factor is None or b.factor is None:
        return a.factor is b.factor
    return torch.equal(a.factor.nan_to_num(9), b.factor.nan_to_num(9)) and a.provenance == b.provenance


def found_on(model, **more: Any) -> NeuronSet:
    """The neurons of `some_neurons` with all that says which model they are of, as a search leaves it."""
    story = identity(model) | {"method": "gradient", "positions": "all"} | more
    return replace(some_neurons(model), provenance=story)


TUNED = {"good": 1.3, "bad": 0.3, "positions": "all"}
SETS = [  # own factors, tuned factors
    (torch.tensor([1.3, 1.0, 0.1, 1.0, 1.001, -0.7]), None),  # factors of 1 too
    (torch.tensor([1.3, 0.2, 1.7, 0.0, 1.001, -0.7]), None),  # against their roles
    (torch.tensor([np.nan, 0.2, 1.7, np.nan, 1.001, np.nan]), TUNED),
    (None, TUNED),
    (torch.tensor([np.nan, np.nan, 1.7, 0.2, np.nan, 1.0]), TUNED | {"bad": None}),
]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", range(len(SETS)))
def test_a_set_comes_back_as_it_was(case, dtype, tmp_path, recwarn):
    model, (own, tuned) = tiny("llama", dtype), SETS[case]
    neurons = found_on(model, **({"tuned": tuned} if tuned else {})).with_factors(own)
    nl.to_peft(model, neurons, tmp_path / "adapter")
    recwarn.clear()
    again = NeuronSet.from_peft(tmp_path / "adapter", model)
    assert same_set(again, neurons) and again.provenance == neurons.provenance and not recwarn
    nl.to_peft(model, again, tmp_path / "again")
    first, second = (load_file(tmp_path / which / "adapter_model.safetensors") for which in ("adapter", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("how", [{"mode": "enhance"}, {"mode": "tuned"}, {"good": 1.7}, {"good": 0.3, "bad": 4.0}])
def test_factors_given_for_the_adapter_come_back_as_own_ones(how, tmp_path):
    model = tiny("llama", torch.bfloat16)
    neurons = found_on(model, tuned=TUNED)
    nl.to_peft(model, neurons, tmp_path / "adapter", **how)
    again = NeuronSet.from_peft(tmp_path / "adapter", model)
    good, bad = {"enhance": (2.0, 0.0), "tuned": (1.3, 0.3)}.get(how.get("mode"), (how.get("good"), how.get("bad", 1)))
    expected = torch.tensor([good if role == "good" else bad for role in neurons.role])
    assert same_set(again, neurons.with_factors(expected))
    assert torch.equal(live(model, again), live(model, neurons, **how))


def test_a_set_of_the_answer_position_comes_back_as_what_the_adapter_is(tmp_path):
    model = tiny("llama", torch.float32)
    neurons = found_on(model, positions="answer", tuned=TUNED | {"positions": "answer"})
    neurons = neurons.with_factors(None)
    nl.to_peft(model, neurons, tmp_path / "adapter", positions="all")
    again = NeuronSet.from_peft(tmp_path / "adapter", model)
    assert again.positions == "all" and again.tuned is None and again.provenance["adapter_of"] == neurons.provenance
    assert again.role.tolist() == neurons.role.tolist() and torch.equal(again.score, neurons.score)
    assert torch.equal(live(model, again), live(model, neurons))


def test_an_adapter_that_was_trained_further_is_read_off_its_tensors(tmp_path):
    model = tiny("llama", torch.float32)
    nl.to_peft(model, found_on(model), tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.down_proj.ia3_l"
    for place, value in ((3, 1.25), (4, 1.25)):  # a neuron of the set, and another one
        save_file(tensors | {name: tensors[name].index_fill(1, torch.tensor([place]), value)}, tmp_path / "new")
        (tmp_path / "new").replace(tmp_path / "adapter" / "adapter_model.safetensors")
        again = NeuronSet.from_peft(tmp_path / "adapter", model)
        factors = dict(zip(again.ids.tolist(), again.factor.tolist(), strict=True))
        assert factors[place] == 1.25 and len(factors) == (6 if place == 3 else 7)
        assert again.provenance["method"] == "ia3" and torch.equal(again.score, again.factor - 1)
    (tmp_path / "adapter" / "neuronllm_adapter.json").unlink()
    assert NeuronSet.from_peft(tmp_path / "adapter", model).provenance["method"] == "ia3"


def test_an_adapter_of_another_model_of_the_same_shape_warns_and_says_whose_it_is(tmp_path):
    model, other = tiny("llama", torch.float32), tiny("llama", torch.float32, rope_theta=500.0)
    model.config._name_or_path, other.config._name_or_path = "somebody/theirs", "somebody/others"
    nl.to_peft(model, some_neurons(model), tmp_path / "adapter")
    with pytest.warns(UserWarning, match="adapter: .* found on somebody/theirs .*, this is somebody/others") as warned:
        again = NeuronSet.from_peft(tmp_path / "adapter", other)
    assert len(warned) == 1
    assert {key: again.provenance[key] for key in identity(model)} == identity(model)
    with pytest.warns(UserWarning, match="found on a llama, this is a mistral"):
        NeuronSet.from_peft(tmp_path / "adapter", tiny("mistral", torch.float32))


@pytest.mark.parametrize("name", QUICK)
def test_the_tensors_alone_are_read_too(name, tmp_path):
    model = tiny(name, torch.float32)
    neurons = some_neurons(model)
    nl.to_peft(model, neurons, tmp_path / "adapter")
    (tmp_path / "adapter" / "neuronllm_adapter.json").unlink()
    again = NeuronSet.from_peft(tmp_path / "adapter", model)
    factors = dict(zip(neurons.ids.tolist(), neurons.factor.tolist(), strict=True))
    assert dict(zip(again.ids.tolist(), again.factor.tolist(), strict=True)) == factors  # floats, to the bit
    assert dict(zip(again.ids.tolist(), again.role.tolist(), strict=True)) == {
        i: "good" if factor > 1 else "bad" for i, factor in factors.items()
    }
    size = (again.factor - 1).abs()
    assert torch.equal(size, size.sort(descending=True).values) and torch.equal(again.score, again.factor - 1)
    assert again.positions == "all" and again.provenance["model_type"] == model.config.model_type
    assert torch.equal(live(model, again), live(model, neurons))
    nl.to_peft(model, again, tmp_path / "again")
    first, second = (load_file(tmp_path / which / "adapter_model.safetensors") for which in ("adapter", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_an_ia3_that_peft_has_learned_is_a_neuron_set(tmp_path):
    model = tiny("llama", torch.float32)
    config = peft.IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"])
    wrapped = peft.get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "ia3_l" in name:
                parameter[0, 5:9] = torch.tensor([0.5, 1.5, 1.25, 0.0])
    wrapped.save_pretrained(tmp_path / "learned")
    neurons = NeuronSet.from_peft(tmp_path / "learned", model)
    assert sorted(neurons.ids.tolist()) == [5, 6, 7, 8, 33, 34, 35, 36] and neurons.role.tolist().count("good") == 4
    assert torch.equal(live(model, neurons), logits(wrapped))
