"""Neurons with factors of their own: what comes first, where they go, and that everything honours them."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import neuronllm as nl
from neuronllm.model.anatomy import Anatomy
from neuronllm.model.edit import edit
from neuronllm.results.neurons import NeuronSet
from tests.checks import quiz, refused, untouched
from tests.tiny import VOCABULARY, tiny

NAN = float("nan")
IDS, ROLE = [1, 40, 2, 30], ["good", "good", "bad", "bad"]
OWN = [0.5, NAN, 1.75, -2.0]
TUNED = {"good": 3.0, "bad": 0.25, "positions": "all"}


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


def make(owner, factor=None, ids=IDS, role=ROLE, **provenance) -> NeuronSet:
    score = torch.tensor([float(10 - n) for n in range(len(ids))])
    return NeuronSet(torch.tensor(ids), np.array(role), score, Anatomy.of(owner), provenance, factor)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 14)[None] % VOCABULARY).logits


def by_hand(model, factors: list[float]) -> torch.Tensor:
    with edit(model, IDS, factors):
        return logits(model)


# What is asked, of a set with own factors and perhaps tuned ones, and the factor of each neuron that it means.
CASES = [
    ({}, None, [0.5, 0.75, 1.75, -2.0], [0.5, 0.75, 1.75, -2.0]),
    ({}, TUNED, OWN, [0.5, 3.0, 1.75, -2.0]),
    ({"mode": "own"}, TUNED, OWN, [0.5, 3.0, 1.75, -2.0]),
    ({"mode": "own", "good": 7.0}, TUNED, OWN, [7.0, 7.0, 1.75, -2.0]),
    ({"mode": "own", "good": 7.0}, None, OWN, [7.0, 7.0, 1.75, -2.0]),
    ({"mode": "tuned"}, TUNED, OWN, [3.0, 3.0, 0.25, 0.25]),
    ({"mode": "tuned", "bad": 0.0}, TUNED, OWN, [3.0, 3.0, 0.0, 0.0]),
    ({"mode": "tuned"}, TUNED | {"good": None}, [0.5, 6.0, NAN, NAN], [0.5, 6.0, 0.25, 0.25]),
    ({}, TUNED | {"good": None}, [0.5, 6.0, NAN, NAN], [0.5, 6.0, 0.25, 0.25]),
    ({}, TUNED | {"good": None}, [0.5, NAN, NAN, NAN], [0.5, 1.0, 0.25, 0.25]),
    ({"mode": "enhance"}, TUNED, OWN, [2.0, 2.0, 0.0, 0.0]),
    ({"mode": "degrade", "bad": 5.0}, None, OWN, [0.0, 0.0, 5.0, 5.0]),
    ({"good": 4.0}, TUNED, OWN, [4.0, 4.0, 1.0, 1.0]),
    ({"good": 4.0, "bad": -1.0}, None, OWN, [4.0, 4.0, -1.0, -1.0]),
]


@pytest.mark.parametrize(("asked", "tuned", "own", "expected"), CASES)
def test_a_mode_or_factors_by_hand_then_own_then_tuned(model, asked, tuned, own, expected):
    neurons = make(model, own, **({"tuned": tuned} if tuned else {}))
    ids, factors = neurons.edits(model, neurons.steering(**asked))
    found = dict(zip(ids.tolist(), factors.tolist(), strict=True))
    assert factors.dtype == torch.float64
    assert found == {i: f for i, f in zip(IDS, expected, strict=True) if f != 1}
    right = by_hand(model, expected)
    with untouched(model):
        handle = nl.bake(model, neurons, **asked)
        assert torch.allclose(logits(model), right, rtol=0, atol=1e-12)
        handle.undo()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            report = nl.evaluate(model, None, quiz(4), neurons, **asked, controls=0, progress=False)
            plain = make(model, expected)
            same = nl.evaluate(model, None, quiz(4), plain, mode="own", controls=0, progress=False)
    assert report.p_right == same.p_right and report.edit["neurons"] == len(found)
    if "mode" not in asked:
        with neurons.apply(model, **asked):
            assert torch.equal(logits(model), right)


def test_neurons_without_a_factor_and_without_tuning_are_refused(model):
    neurons = make(model, OWN)
    for call in (lambda: neurons.steering(), lambda: neurons.steering("own"), lambda: nl.bake(model, neurons)):
        with untouched(model), refused("1 of 4 neurons have no factor of their own", "with_factors"):
            call()
    with neurons.take([0, 2, 3]).apply(model):  # the others have one
        logits(model)


# ---- what they are ----


def test_they_are_float32_and_given_or_taken(model):
    neurons = make(model)
    assert neurons.factor is None and "own" not in repr(neurons)
    given = neurons.with_factors(OWN)
    assert given.factor.dtype == torch.float32 and given.factor[:1].tolist() == [0.5] and neurons.factor is None
    assert "3 with own factors" in repr(given)
    for factors in (np.array(OWN), torch.tensor(OWN, dtype=torch.float64), torch.tensor([1, 2, 3, 4])):
        assert neurons.with_factors(factors).factor.dtype == torch.float32
    assert given.with_factors(None).factor is None
    assert neurons.with_factors([NAN] * 4).factor is None  # nothing said
    learned = torch.ones(4, requires_grad=True)
    assert not neurons.with_factors(learned).factor.requires_grad
    text = given.describe()
    assert "own factors of good neurons: x0.5, their own" in text
    assert "own factors of bad neurons: x-2 to x1.75, their own" in text


@pytest.mark.parametrize(
    ("factor", "parts"),
    [
        ([1.0, 2.0], ["4 neurons", "(2,)"]),
        (2.0, ["4 neurons", "()"]),
        ([[1.0]] * 4, ["4 neurons", "(4, 1)"]),
        ([1.0, 2.0, float("inf"), 1.0], ["finite"]),
        ([True] * 4, ["not bool"]),
        (["a"] * 4, ["one number a neuron"]),
    ],
)
def test_nonsense_is_refused(model, factor, parts):
    with refused("factor:", *parts):
        make(model).with_factors(factor)
    with refused("factor:", *parts):
        make(model, factor)


def test_they_follow_their_neurons(model):
    neurons = make(model, OWN)
    assert neurons.take([3, 0]).factor.tolist() == [-2.0, 0.5]
    assert neurons.top(1, 1).factor.tolist() == [0.5, 1.75]
    other = make(model, None, [30, 31], ["bad", "good"])
    more = make(model, [9.0, 8.0], [30, 31], ["bad", "good"])
    assert torch.equal((neurons | other).factor.nan_to_num(7.0), torch.tensor([0.5, 7.0, 1.75, -2.0, 7.0]))
    assert (other | neurons).factor.nan_to_num(7.0).tolist() == [7.0, 7.0, 0.5, 7.0, 1.75]
    assert (neurons | more).factor[3:].tolist() == [-2.0, 8.0]  # the left's
    assert (other | other).factor is None and (neurons & more).factor.tolist() == [-2.0]
    assert (neurons - more).factor.nan_to_num(7.0).tolist() == [0.5, 7.0, 1.75]


# ---- files ----


@pytest.mark.noext
def test_what_is_saved_is_loaded(model, tmp_path):
    neurons = make(model, OWN, tuned=TUNED | {"good": None}, method="by hand")
    neurons.save_pretrained(tmp_path / "own")
    again = NeuronSet.from_pretrained(tmp_path / "own")
    assert torch.equal(again.factor.nan_to_num(7.0), neurons.factor.nan_to_num(7.0))
    assert load_file(tmp_path / "own" / "neurons.safetensors")["factor"].dtype == torch.float32
    card = (tmp_path / "own" / "README.md").read_text()
    assert "neurons.apply(model)" in card and "own factors of bad neurons: x-2 to x1.75" in card
    assert "tuned: good x0.5, their own; bad x-2 to x1.75, their own (else x0.25); positions all" in card
    make(model).save_pretrained(tmp_path / "none")  # as older folders are
    assert "factor" not in load_file(tmp_path / "none" / "neurons.safetensors")
    assert NeuronSet.from_pretrained(tmp_path / "none").factor is None


# ---- reports and tuning ----


def test_a_report_says_which_factors(model):
    def line(neurons, **asked) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            report = nl.evaluate(model, None, quiz(3), neurons, **asked, controls=2, progress=False)
        json.dumps(report.to_dict())
        return str(report).splitlines()[0]

    own = make(model, [0.5, 1.5, NAN, NAN], tuned=TUNED)
    assert "own: 4 neurons, good x0.5 to x1.5, their own (else x3), bad x0.25, positions all" in line(own)
    assert "enhance: 4 neurons, good x2, bad x0, positions all" in line(own, mode="enhance")
    assert "edited: 2 neurons, good x4, bad as they are, positions" in line(own, good=4.0)


def harmed():
    """A Llama that is right on every prompt until two neurons' columns are blown up."""
    import dataclasses

    model, prompts = tiny("llama"), quiz(16, variants=False)

    def letter(prompt) -> int:
        with torch.no_grad():
            row = model(torch.tensor([prompt.input_ids])).logits[0, -1]
        return int(torch.stack([row[ids].logsumexp(0) for ids in prompt.first_tokens]).argmax())

    prompts = [dataclasses.replace(prompt, answer=letter(prompt)) for prompt in prompts]
    with torch.no_grad():
        for index, factor in ((2, 8.0), (5, -4.0)):
            model.model.layers[1].mlp.down_proj.weight[:, index] *= factor
    return model, prompts


def test_tuning_tries_own_factors_and_keeps_them_where_they_win():
    """Only factors of their own undo two different harms at once."""
    model, prompts = harmed()
    found = make(model, [0.125, -0.25, 1.0], [30, 33, 3], ["bad", "bad", "good"], positions="all")
    with untouched(model):
        tuned = nl.tune(model, None, found, prompts, criterion="p_right", ks=[2], margin=0.0, progress=False)
    assert tuned.tuned["bad"] is None and sorted(tuned.ids[tuned.role == "bad"].tolist()) == [30, 33]
    own = dict(zip(tuned.ids.tolist(), tuned.factor.tolist(), strict=True))
    assert own[30] == 0.125 and own[33] == -0.25
    assert {(p["good"], p["bad"]) for p in tuned.tuned["curve"]} >= {(None, None), (2.0, 0.0)}
    chosen = tuned.tuned["curve"]
    best = max(point["p_right"] for point in chosen)
    for mode in (None, "own", "tuned"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            report = nl.evaluate(model, None, prompts, tuned, mode, controls=0, progress=False)
        assert report.p_right == pytest.approx(best, abs=1e-9)
    assert tuned.factor is not None and "bad" in report.edit["own"]


def test_a_role_that_was_tuned_to_one_factor_loses_its_own():
    model, prompts = harmed()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 5] /= -4.0
    found = make(model, [9.0, 1.0], [30, 3], ["bad", "good"], positions="all")
    asked = {"criterion": "p_right", "factors": [0.125], "ks": [1], "margin": 0.0}
    tuned = nl.tune(model, None, found, prompts, **asked, progress=False)
    assert tuned.tuned["bad"] in (0.0, 0.125, 0.5)
    assert tuned.factor is None or 9.0 not in tuned.factor.tolist()
    ids, factors = tuned.edits(model, tuned.steering())
    assert dict(zip(ids.tolist(), factors.tolist(), strict=True))[30] == tuned.tuned["bad"]
