"""A model that leans on one option makes scores and judgements that say little: it is seen, said once, and recorded."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.attribution.leaning import Caution, Gathered
from neuronllm.engine.asking import Asker
from neuronllm.methods import Collector
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.answers import Heard
from neuronllm.results.neurons import NeuronSet
from tests.checks import letter_model, plant, quiz, with_every_letter
from tests.tiny import tiny

NAMES = "ABCD"


def heard(right: str, picked: str) -> Heard:
    found = Heard()
    numbers = ([NAMES.index(letter) for letter in letters] for letters in (picked, right))
    found.add(*(torch.tensor(some, dtype=torch.int64) for some in numbers))
    return found


@pytest.mark.parametrize(
    ("right", "picked", "expected"),
    [
        ("ABCD" * 5, "A" * 20, (0, 1.0)),
        ("ABCD" * 5, "ABCD" * 5, None),
        ("ABCD" * 5, "BCDA" * 5, None),
        ("ABCD" * 5, "C" * 13 + "ABDABDA", (2, 0.65)),  # more than its .25 and half of the rest, .625
        ("ABCD" * 10, "C" * 25 + "ABD" * 5, None),  # .625, not more
        ("A" * 20, "A" * 20, None),  # the questions' own doing
        ("ABCD", "DDDD", (3, 1.0)),  # few, but all alike
        ("ABCD", "DDDA", None),  # few: chance does as much
        ("ABC", "DDD", None),
        ("", "", None),
    ],
)
def test_what_counts_as_leaning(right, picked, expected):
    assert heard(right, picked).leaning() == expected


def test_counts_grow_are_taken_merged_and_kept():
    one, other = heard("AB", "AA"), heard("ABCD", "DDDD")
    one.merge(other)
    assert one.prompts == 6 and one.counts == [[2, 0, 0, 4], [2, 2, 1, 1]]
    again = Heard.of(one.counts)
    taken = one.taken()
    assert taken.counts == again.counts and one.prompts == 0
    fresh, target = Gathered(Collector(3), 5), Gathered(Collector(3), 5)
    fresh.heard.merge(again)
    target.load_state(fresh.state())
    assert target.heard.counts == [[2, 0, 0, 4, 0], [2, 2, 1, 1, 0]]
    target.merge(fresh)
    assert target.heard.prompts == 12


def test_it_is_said_once_and_as_soon_as_enough_was_heard():
    caution = Caution("letters", None, silent=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caution(heard("ABCD", "DDDD"))  # too early
    with pytest.warns(UserWarning, match="answers D in 100% of the prompts.*--answers texts"):
        caution(heard("ABCD" * 2, "D" * 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caution(heard("ABCD" * 2, "D" * 8), last=True)
        caution = Caution("letters", None, silent=False)
        caution(heard("ABCD" * 2, "ABCD" * 2))
        caution(heard("ABCD" * 4, "ABCD" + "D" * 12))  # looked before, and not yet the last
        Caution("letters", None, silent=True)(heard("ABCD" * 2, "D" * 8), last=True)
        Caution("letters", None, silent=False)(heard("ABCD" * 2, "ABCD" * 2), last=True)
    with pytest.warns(UserWarning, match="answers D in 81%"):
        caution(heard("ABCD" * 4, "ABC" + "D" * 13), last=True)
    with pytest.warns(UserWarning, match="picks option 4 in 100%.*--length unconditional"):
        Caution("texts", None, silent=False)(heard("ABCD", "DDDD"), last=True)
    with pytest.warns(UserWarning, match="answers D"):  # all were asked before: those that are right never show it
        Caution("letters", heard("ABCD" * 2, "D" * 8).counts, silent=False)(heard("D", "D"))


# ---- attribution ----


def saturated():
    """A GPT-2 that answers A whatever is asked."""
    model = tiny("gpt2", n_inner=28)
    plant(model, 0, 4, 60 * model.transformer.wte.weight[3].detach())
    return model


def attribute(model, prompts, **keywords):
    return nl.attribute(model, None, prompts, "gradient", positions="answer", progress=False, **keywords)


def test_attribution_of_a_saturated_model_says_so(tmp_path):
    model, prompts = saturated(), quiz(6, options=(4,))
    with pytest.warns(UserWarning, match="model answers A in 100% of the prompts whatever.*--answers texts") as caught:
        scores = attribute(model, prompts, output=tmp_path / "scores")
    (said,) = [warning for warning in caught if "unedited" in str(warning.message)]
    assert said.filename == __file__
    assert scores.provenance["leaning"] == {"option": "A", "share": 1.0}
    loaded = nl.Scores.load(tmp_path / "scores")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loaded.find(2, 2).provenance["leaning"] == scores.provenance["leaning"]  # said once is enough
    texts = [dataclasses.replace(p, texts=("a", "b", "c", "d")) for p in prompts]
    with pytest.warns(UserWarning, match="picks option 1 in 100%"):
        assert attribute(model, texts).provenance["leaning"] == {"option": "1", "share": 1.0}


def test_attribution_of_a_sound_model_says_nothing():
    model = letter_model()[0]
    prompts = with_every_letter(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = attribute(model, prompts)
        scores.find(1, 1)
    assert "leaning" not in scores.provenance


@pytest.mark.parametrize("backend", ["fast", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["gradient", "ace", "exact", "relp"])
def test_methods_hear_every_prompt_once(method, backend, monkeypatch):
    """The counts are those of asking, so that they do not depend on batches or on what was tried out before."""
    counted: list[Heard] = []
    monkeypatch.setattr(Caution, "__call__", lambda self, heard, last=False: counted.append(heard) if last else None)
    model, prompts = tiny("llama"), quiz(5)
    for size in (1, 4, "auto"):
        nl.attribute(model, None, prompts, method, batch_size=size, backend=backend, progress=False)
    picked = Asker(model, prompts)().picked
    expected = [
        np.bincount(picked, minlength=4).tolist(),
        np.bincount([p.answer for p in prompts], minlength=4).tolist(),
    ]
    assert [heard.counts for heard in counted] == [expected] * 3


@pytest.mark.parametrize("items", ["right", "wrong"])
def test_of_some_questions_all_count(items):
    model, prompts = saturated(), quiz(8, variants=False, options=(4,))
    with pytest.warns(UserWarning, match="answers A in 100%"):
        scores = attribute(model, prompts, items=items)
    assert scores.provenance["leaning"] == {"option": "A", "share": 1.0}
    assert scores.provenance["questions"] == {"right": 2, "wrong": 6}[items]


def test_contrast_asks_and_so_hears():
    model, prompts = saturated(), quiz(6, options=(4,))
    with pytest.warns(UserWarning, match="answers A in 100%"):
        scores = nl.attribute(model, None, prompts, "contrast", progress=False)
    assert scores.provenance["leaning"] == {"option": "A", "share": 1.0}


def test_a_run_that_was_stopped_remembers_what_it_heard(tmp_path):
    from tests.runs.tools import fail, in_window

    model, prompts = saturated(), quiz(6, options=(4,))
    more = {"batch_size": 4, "keep": "topk", "k": 2}
    with pytest.warns(UserWarning, match="answers A"):
        whole = attribute(model, prompts, output=tmp_path / "whole", **more)
    with in_window(4, fail), pytest.raises(RuntimeError):
        attribute(model, prompts, output=tmp_path / "stopped", **more)
    again = attribute(model, prompts, output=tmp_path / "stopped", resume=True, **more)
    assert again.provenance == whole.provenance and again.provenance["leaning"]["share"] == 1.0


# ---- judging ----


def test_a_judgement_of_a_saturated_model_says_what_means_nothing():
    model, prompts = saturated(), quiz(6, options=(4,))
    neurons = NeuronSet(torch.tensor([9]), np.array(["bad"]), torch.ones(1), Anatomy.of(model))
    with pytest.warns(UserWarning, match="the unedited model answers A in 100%.*--answers texts") as caught:
        report = nl.evaluate(model, None, prompts, neurons, "degrade", controls=0, progress=False)
    assert caught[0].filename == __file__
    assert report.base["collapsed"] and report.to_dict()["meaningless"] == ["p_right", "rcc"]
    assert "P(right) and RCC mean nothing here: the unedited model leans on one letter" in str(report)
    with pytest.warns(UserWarning, match="the unedited model answers A"):
        alone = nl.evaluate(model, None, prompts, progress=False)
    assert alone.meaningless == ["p_right"] and "P(right) means nothing here" in str(alone)
    with pytest.warns(UserWarning, match="the unedited model answers A") as caught:
        nl.tune(model, None, neurons, prompts, ks=[1], factors=[0.5], progress=False)
    assert caught[0].filename == __file__


def test_a_judgement_of_a_sound_model_means_something():
    model, towards, _ = letter_model()
    neurons = NeuronSet(torch.tensor([towards]), np.array(["good"]), torch.ones(1), Anatomy.of(model))
    with pytest.warns(UserWarning, match="letter collapse"):
        report = nl.evaluate(model, None, with_every_letter(model), neurons, "enhance", controls=0, progress=False)
    assert report.collapsed and report.meaningless == [] and "nothing here" not in str(report)
