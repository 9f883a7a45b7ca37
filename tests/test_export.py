"""Baking: the weights do what the live edit does, and the handle takes it back to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import neuronllm as nl
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.neurons import NeuronSet
from tests.checks import refused, snapshot, untouched
from tests.tiny import DENSE, VOCABULARY, tiny

FAMILIES = ("llama", "phi3", "gpt2", "opt")
DTYPES = (torch.float32, torch.bfloat16)


def some_neurons(model, **provenance) -> NeuronSet:
    ids = torch.tensor([3, 11, 20, 30, 39])  # in both layers of every family
    role = np.array(["good", "good", "bad", "bad", "good"])
    return NeuronSet(ids, role, torch.zeros(5), Anatomy.of(model), provenance)


def logits(model) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("good", "bad"), [(2.0, 0.0), (0.0, 2.0), (4.0, 0.5), (0.5, 4.0)])
def test_powers_of_two_equal_the_live_edit_to_the_bit(name, dtype, good, bad):
    model = tiny(name, dtype)
    neurons, clean = some_neurons(model), logits(model)
    with neurons.apply(model, good, bad):
        live = logits(model)
    with untouched(model):
        handle = nl.bake(model, neurons, good, bad)
        assert same_bits(logits(model), live)
        assert not torch.equal(live, clean)
        handle.undo()
        assert same_bits(logits(model), clean)


@pytest.mark.parametrize("name", DENSE)
def test_baking_reaches_every_family(name):
    model = tiny(name)
    neurons = some_neurons(model)
    with neurons.apply(model, 1.5, 0.3):
        live = logits(model)
    with untouched(model):
        handle = nl.bake(model, neurons, 1.5, 0.3)
        assert torch.allclose(logits(model), live, rtol=0, atol=1e-12)
        handle.undo()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_other_factors_agree_within_rounding(name, dtype, tolerance):
    model = tiny(name, dtype, std=0.1)
    neurons = some_neurons(model)
    with neurons.apply(model, 1.25, 0.3):
        live = logits(model)
    clean = logits(model)
    handle = nl.bake(model, neurons, 1.25, 0.3)
    assert (logits(model) - live).abs().max() <= tolerance * live.abs().max()
    assert (live - clean).abs().max() > 0
    handle.undo()
    assert same_bits(logits(model), clean)


def test_only_the_named_columns_change():
    model = tiny("llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    nl.bake(model, some_neurons(model), mode="degrade")
    for name, parameter in model.named_parameters():
        changed = (parameter != before[name]).nonzero()
        columns = sorted(set(changed[:, -1].tolist())) if len(changed) else []
        layer = {"model.layers.0.mlp.down_proj.weight": [3, 11, 20], "model.layers.1.mlp.down_proj.weight": [2, 11]}
        assert columns == layer.get(name, [])


def test_modes_and_one_factor_alone():
    model = tiny("llama")
    neurons = some_neurons(model)
    for baked, live in (
        ({"mode": "enhance"}, neurons.enhance(model)),
        ({"mode": "degrade"}, neurons.degrade(model)),
        ({"mode": "enhance", "good": 4.0}, neurons.enhance(model, good=4.0)),
        ({"bad": 0.5}, neurons.apply(model, bad=0.5)),
        ({"good": 0.0}, neurons.apply(model, good=0.0)),
    ):
        with live:
            expected = logits(model)
        handle = nl.bake(model, neurons, **baked)
        assert torch.equal(logits(model), expected)
        handle.undo()


def test_undo_of_baking_twice_and_undo_twice():
    model = tiny("llama")
    neurons = some_neurons(model)
    with untouched(model):
        first = nl.bake(model, neurons, mode="enhance")
        second = nl.bake(model, neurons, good=0.0)
        with refused(
            "undo what was baked later first"
        ):  # its columns would come back with the second bake's zeros lost
            first.undo()
        second.undo()
        first.undo()
        first.undo()


def test_undo_follows_a_model_that_was_cast():
    model = tiny("llama", torch.float32)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    handle = nl.bake(model, some_neurons(model), mode="enhance")
    model.double()
    handle.undo()
    assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())


def test_a_frozen_or_trained_weight_keeps_its_place_in_the_graph():
    model = tiny("llama").train()
    weight = model.model.layers[0].mlp.down_proj.weight
    nl.bake(model, some_neurons(model), mode="enhance")
    assert model.model.layers[0].mlp.down_proj.weight is weight and weight.requires_grad and weight.is_leaf
    model(torch.arange(3, 9)[None]).logits.sum().backward()
    assert weight.grad is not None


def test_a_baked_model_is_an_ordinary_model(tmp_path):
    model = tiny("gpt2", torch.bfloat16)
    nl.bake(model, some_neurons(model), mode="enhance")
    model.save_pretrained(tmp_path / "baked")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype="auto").eval()
    assert same_bits(logits(again), logits(model))


def test_a_baked_model_can_be_steered_further():
    model = tiny("llama")
    neurons = some_neurons(model)
    with neurons.apply(model, 4.0, 0.0):
        expected = logits(model)
    nl.bake(model, neurons, good=2.0)
    with neurons.apply(model, 2.0, 0.0):
        assert torch.equal(logits(model), expected)


def test_the_tuned_factors_are_the_default():
    model = tiny("llama")
    neurons = some_neurons(model, tuned={"good": 1.5, "bad": 0.25, "positions": "all"})
    with neurons.apply(model):
        expected = logits(model)
    for arguments in ({}, {"mode": "tuned"}):
        handle = nl.bake(model, neurons, **arguments)
        assert torch.allclose(logits(model), expected, atol=1e-12)
        handle.undo()


@pytest.mark.parametrize("provenance", [{}, {"positions": "answer"}, {"positions": "all"}])
def test_a_set_of_the_answer_position_is_baked_only_by_name(provenance):
    model = tiny("llama")
    provenance = {**provenance, "tuned": {"good": 1.5, "bad": 0.25, "positions": "answer"}}
    neurons = some_neurons(model, **provenance)
    ways = ({}, {"mode": "tuned"}, {"mode": "tuned", "good": 2.0}, {"mode": "enhance"}, {"good": 2.0})
    for arguments in ways:
        with untouched(model), refused("the set is for edits at the answer position", 'positions="all"'):
            nl.bake(model, neurons, **arguments)
        how = neurons.steering(arguments.get("mode"), arguments.get("good"))
        with neurons.apply(model, how.good, how.bad, positions="all"):
            expected = logits(model)
        handle = nl.bake(model, neurons, **arguments, positions="all")
        assert torch.allclose(logits(model), expected, rtol=0, atol=1e-12)
        handle.undo()
    everywhere = some_neurons(model, positions="all")
    for where, part in (("answer", "positions='answer', which weights cannot hold"), ("last", "positions='last'")):
        with untouched(model), refused(part):
            nl.bake(model, everywhere, mode="enhance", positions=where)


class Quantised(nn.Linear):
    """A linear module as quantising libraries leave it: the weight is packed into another type."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_before_any_is_changed(dtype):
    model = tiny("llama", torch.float32)
    model.model.layers[1].mlp.down_proj = Quantised(model.model.layers[1].mlp.down_proj, dtype)
    with untouched(model), refused("model.layers.1.mlp.down_proj", "quantised", "live edit"):
        nl.bake(model, some_neurons(model), mode="enhance")


@pytest.mark.parametrize("how", ["weight", "module"])
def test_tied_weights_are_refused(how):
    """One weight in two places: a factor for one layer's neuron would be a factor for the other's too."""
    model = tiny("llama")
    first, second = (layer.mlp for layer in model.model.layers)
    if how == "weight":
        second.down_proj.weight = first.down_proj.weight
    else:
        second.down_proj = first.down_proj
    with untouched(model), refused("model.layers.0.mlp.down_proj", "shared"):
        nl.bake(model, some_neurons(model), mode="enhance")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({}, ["nl.tune"]),
        ({"mode": "tuned"}, ["nl.tune"]),
        ({"mode": "stronger"}, ["mode='stronger'", "enhance"]),
        ({"good": float("nan")}, ["good", "finite"]),
        ({"good": 2.0, "bad": float("inf")}, ["bad", "finite"]),
    ],
)
def test_bad_arguments_change_nothing(arguments, parts):
    model = tiny("llama")
    with untouched(model), refused(*parts):
        nl.bake(model, some_neurons(model), **arguments)


def test_a_factor_beyond_the_type_of_the_weights_changes_nothing():
    model = tiny("llama", torch.float16)
    with untouched(model), refused("layers.0.mlp.down_proj", "1e+06", "float16", "bfloat16"):
        nl.bake(model, some_neurons(model), good=1e6)


def test_a_set_of_another_model_is_refused():
    model, other = tiny("llama"), tiny("llama", intermediate_size=40)
    before = snapshot(other)
    with refused("28", "40"):
        nl.bake(other, some_neurons(model), mode="enhance")
    assert snapshot(other) == before
