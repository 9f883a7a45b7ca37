"""Random sets learned the same way as a set, shuffled answers, and what a set keeps of them."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import neuronllm as nl
from neuronllm.data.prompts import Prompt, group_by_question
from neuronllm.judging.bias import Bias
from neuronllm.results.neurons import NeuronSet
from neuronllm.steering import learning
from neuronllm.steering.controls import shuffled
from tests.checks import quiz, refused, untouched
from tests.test_learn import QUICK, learn
from tests.test_tune import CULPRIT, a_set, answers_of, harmed, labelled, one_by_one
from tests.texts import random_tokens
from tests.tiny import tiny

KINDS = ("learned", "plain", "plain", "matched", "matched")


@pytest.fixture(scope="module")
def broken():
    """A model that one neuron spoils, its prompts, and a set with that neuron."""
    model, prompts = harmed()
    return model, prompts, a_set(model, good=[2, 9, 40], bad=[CULPRIT, 7, 50, 11])


@pytest.fixture(scope="module")
def learned(broken):
    model, prompts, neurons = broken
    with untouched(model):
        return learn(model, prompts, neurons, margin=None, lr=0.2, controls=2, shuffled=True)


# ---- random sets ----


def test_random_sets_keep_blocks_and_stand_behind_the_set(learned):
    controls, anatomy = learned.controls, learned.anatomy
    assert controls.kind == KINDS and controls.ids.shape == controls.factors.shape == (5, 7)
    assert torch.equal(controls.ids[0], learned.ids)
    for ids in controls.ids:
        assert torch.equal(anatomy.site_of(ids), anatomy.site_of(learned.ids)) and len(ids.unique()) == 7
    assert len({tuple(ids.tolist()) for ids in controls.ids}) == 5
    assert bool((controls.factors != 1).any(1).all())  # none is left without an edit
    assert float(controls.factors.min()) >= 0 and float(controls.factors.max()) <= 4
    told = learned.provenance["learned"]
    assert all(told["steps_taken"]) and torch.equal(controls.factors[0], learned.factor)


def test_few_random_sets_are_called_so(broken):
    model, prompts, neurons = broken
    with pytest.warns(UserWarning, match="controls=1: with fewer than 20 random sets") as told:
        nl.learn(model, None, prompts, neurons=neurons, steps=1, seeds=1, controls=1, **QUICK)
    assert [warning.filename for warning in told if "controls=1" in str(warning.message)] == [__file__]


@pytest.mark.slow
def test_the_same_call_learns_the_same_sets(broken, learned):
    model, prompts, neurons = broken
    again = learn(model, prompts, neurons, margin=None, lr=0.2, controls=2, shuffled=True)
    assert torch.equal(again.controls.ids, learned.controls.ids)
    assert torch.equal(again.controls.factors, learned.controls.factors) and again.provenance == learned.provenance
    one = learn(model, prompts, neurons, margin=None, lr=0.2, controls=1).controls
    places = [0, 1, 3]  # a set does not depend on how many there are
    assert one.kind == ("learned", "plain", "matched")
    assert torch.equal(one.ids, learned.controls.ids[places])
    assert torch.equal(one.factors, learned.controls.factors[places])


def test_they_are_learned_by_the_same_recipe(broken, learned):
    """Learned as a set of its own, a random set gets the same factors."""
    model, prompts, _ = broken
    for place in (1, 3):
        alone = a_set(model, good=learned.controls.ids[place].tolist())
        again = learn(model, prompts, alone, margin=None, lr=0.2, controls=1)
        assert torch.equal(again.controls.ids[0], learned.controls.ids[place])
        assert torch.equal(again.controls.factors[0], learned.controls.factors[place])


def test_controls_change_nothing_else(broken, learned):
    model, prompts, neurons = broken
    alone = learn(model, prompts, neurons, margin=None, lr=0.2)
    assert alone.controls is None and torch.equal(alone.factor, learned.factor)
    told = dict(learned.provenance["learned"])
    told.pop("shuffled")
    assert told == alone.provenance["learned"]


def test_where_no_edit_won_the_forced_factors_stay():
    model = tiny("llama")
    prompts = quiz(18, variants=False)
    right = labelled(prompts, answers_of(model, prompts))
    learned = learn(model, right, a_set(model, good=[2, 9, 40], bad=[30, 7]), controls=1)
    assert not len(learned) and not learned.provenance["learned"]["kept"]
    controls = learned.controls
    assert controls.kind == ("learned", "plain", "matched") and controls.ids[0].tolist() == [2, 9, 40, 30, 7]
    assert bool((controls.factors[0] != 1).any())


def test_with_k_the_sets_are_as_large_as_what_is_kept(broken):
    model, prompts, _ = broken
    few = learn(model, prompts, k=4, margin=None, controls=1, steps=2, seeds=1)
    assert len(few) == 4 and few.controls.ids.shape == (3, 4) and torch.equal(few.controls.ids[0], few.ids)


def test_progress_counts_them(broken, monkeypatch):
    model, prompts, neurons = broken
    bars: list[Any] = []

    class Bar(learning.tqdm):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more | {"disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(learning, "tqdm", Bar)
    learn(model, prompts, neurons, margin=None, controls=2, shuffled=True, steps=2, seeds=2)
    assert [(bar.total, bar.n) for bar in bars] == [(24, 24)]  # 1 + 2 + 2 + 1 sets of 2 seeds of 2 steps


# ---- what a set keeps of them ----


def test_they_are_saved_with_the_set(broken, learned, tmp_path):
    learned.save_pretrained(tmp_path / "set")
    assert "controls.safetensors" in os.listdir(tmp_path / "set")
    loaded = NeuronSet.from_pretrained(tmp_path / "set")
    assert loaded.controls.kind == learned.controls.kind
    assert torch.equal(loaded.controls.ids, learned.controls.ids)
    assert torch.equal(loaded.controls.factors, learned.controls.factors)
    assert "2 plain and 2 matched" in loaded.describe() and "shuffled answers" in loaded.describe()
    loaded.with_factors(learned.factor).save_pretrained(tmp_path / "set")  # ours, so it may be replaced
    assert sorted(os.listdir(tmp_path / "set")) == ["README.md", "neuron_config.json", "neurons.safetensors"]
    assert NeuronSet.from_pretrained(tmp_path / "set").controls is None


def test_another_set_has_none(learned):
    other = a_set(tiny("llama"), good=[1, 2])
    others = [learned.take([0, 1]), learned.top(2, 2), learned.without([2]), learned.with_factors(None)]
    others += [learned | other, other | learned, learned & learned, learned - other]
    assert [some.controls for some in others] == [None] * len(others)


def test_broken_controls_are_one_line(learned, tmp_path):
    learned.save_pretrained(tmp_path / "set")
    path = tmp_path / "set" / "controls.safetensors"
    whole = load_file(path)
    wrong = {
        "do not belong together": {**whole, "factors": whole["factors"][:, 1:].contiguous()},
        "neuron ids must lie in": {**whole, "ids": whole["ids"] + 100},
        "not as written here": {"ids": whole["ids"], "factors": whole["factors"]},
        "the first is learned": {**whole, "kind": whole["kind"].flip(0)},
    }
    for said, tensors in wrong.items():
        save_file(tensors, path)
        with refused(said):
            NeuronSet.from_pretrained(tmp_path / "set")
    path.write_bytes(b"nothing")
    with refused("controls.safetensors", "not a valid safetensors file"):
        NeuronSet.from_pretrained(tmp_path / "set")


# ---- shuffled answers ----


def test_answers_are_shuffled_by_choice_and_seed():
    prompts = quiz(30)
    groups = group_by_question(prompts)
    found, again, other = (shuffled(groups, seed) for seed in (0, 0, 1))
    moved = 0
    for before, after, same in zip(groups, found, again, strict=True):
        (choice,) = {prompt.order[prompt.answer] for prompt in after}  # the same one in all variants
        moved += choice != before[0].order[before[0].answer]
        assert [prompt.input_ids for prompt in after] == [prompt.input_ids for prompt in before] and same == after
    assert 10 <= moved < 30 and found != other


def test_shuffled_answers_teach_less(broken, learned):
    told = learned.provenance["learned"]
    assert told["shuffled"]["gain"]["mean"] < told["gain"]["mean"]
    assert told["shuffled"]["accuracy"][0] == told["accuracy"][0]  # judged by the true answers
    assert told["shuffled"]["validation_questions"] == told["validation_questions"]
    model, prompts, neurons = broken
    again = learn(model, prompts[:8], neurons, validation=prompts[8:], margin=None, shuffled=True)
    told = again.provenance["learned"]
    assert told["shuffled"]["gain"] != told["gain"] and told["shuffled"]["validation_questions"] == 8


# ---- one bias ----


def test_the_bias_is_that_of_the_unedited_model(broken, learned):
    model, prompts, _ = broken
    bias = Bias.of(learned.provenance["learned"]["bias"])
    expected = Bias.fitted(one_by_one(model, prompts))
    assert bias.by == expected.by == "letter"
    assert list(bias.values.values()) == pytest.approx(list(expected.values.values()), abs=1e-3)
    degraded = learn(model, prompts, steps=2, seeds=1, goal="degrade", margin=None)
    assert "bias" not in degraded.provenance["learned"]


# ---- bad input ----


def test_bad_input_is_one_line(broken):
    model, prompts, neurons = broken
    with refused("controls=-1", "0 or more"):
        learn(model, prompts, neurons, controls=-1)
    with refused("controls=2.5"):
        learn(model, prompts, neurons, controls=2.5)
    for every in ({}, {"neurons": a_set(model, good=range(56))}, {"k": 56}):
        with refused("controls=1", "all 56 neurons", "neurons= or k="):
            learn(model, prompts, controls=1, **every)
    single = [Prompt(random_tokens(7, n), [[[41, 42, 43]]], 0, question_id=f"o{n}") for n in range(8)]
    with refused("shuffled=True", "only one option"):
        learn(model, single, neurons, goal="logp_vocab", shuffled=True)
