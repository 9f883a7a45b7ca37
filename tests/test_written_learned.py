"""Written answers under a learned edit: beside sets learned the same way, and what the edit does to plain text."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.results.learned import Controls
from neuronllm.results.neurons import NeuronSet
from tests.checks import untouched
from tests.test_written import NEW, evaluate, prompts_of, shares, some_neurons, written_to
from tests.tiny import VOCABULARY, tiny
from tests.tiny_tokenizers import numbered

FACTORS = [[6.0, -3.0, 0.0, 4.0, 1.5, 2.0], [3.0, -4.0, 5.0, 0.0, 2.0, -2.0], [1.5, 0.5, 2.0, 0.0, 1.0, 1.0]]
NEURONS = [[3, 11, 20, 30, 39, 50], [4, 12, 21, 31, 40, 51], [5, 13, 22, 32, 41, 52]]
KINDS = ("learned", "plain", "matched")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return numbered(VOCABULARY)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", torch.float32)


def learned_set(model: Any, **more: Any) -> NeuronSet:
    """As learning leaves it; what is not said here has no say in a judgement."""
    provenance = {"learned": {"positions": "all", "goal": "enhance", "answers": "letters"} | more}
    controls = Controls(KINDS, torch.tensor(NEURONS), torch.tensor(FACTORS))
    return replace(some_neurons(model, **provenance).with_factors(FACTORS[0]), controls=controls)


@pytest.fixture(scope="module")
def prompts(model: Any, tokenizer: Any) -> list[nl.Prompt]:
    """A third each accepts what the model writes, what the edited one writes, and what none does."""
    asked = prompts_of([("no", "yes")] * 9)
    plain = written_to(model, tokenizer, asked)
    with learned_set(model).apply(model, positions="all"):
        edited = written_to(model, tokenizer, asked)
    pairs = enumerate(zip(plain, edited, strict=True))
    return prompts_of([("no", ((*texts, "")[n % 3]) or "nowhere") for n, texts in pairs])


@pytest.mark.parametrize("goal", ["enhance", "degrade"])
def test_it_stands_among_sets_learned_the_same_way(model: Any, tokenizer: Any, prompts: Any, goal: str) -> None:
    neurons = learned_set(model, goal=goal)
    with untouched(model):
        report = evaluate(model, tokenizer, prompts, neurons, controls=0)
    found = []
    for ids, factors in zip(NEURONS, FACTORS, strict=True):
        other = NeuronSet(torch.tensor(ids), neurons.role, torch.zeros(6), neurons.anatomy, {}, torch.tensor(factors))
        with other.apply(model, positions="all"):
            found.append(shares(written_to(model, tokenizer, prompts), prompts))
    own, *others = found
    assert len({each["inclusion"] for each in found}) > 1
    assert report.learned["forced"] == pytest.approx(own) and report.inclusion == pytest.approx(own["inclusion"])
    for kind, each in zip(KINDS[1:], others, strict=True):
        told, value = report.learned[kind], each["inclusion"]
        as_good = value <= own["inclusion"] if goal == "degrade" else value >= own["inclusion"]
        assert told["sets"] == 1 and told["inclusion"]["p50"] == pytest.approx(value)
        assert told["p"] == (1.0 if as_good else 0.5)
    single = {"McNemar": report.mcnemar} | {kind: report.learned[kind]["p"] for kind in KINDS[1:]}
    assert report.holm.keys() == single.keys() and min(report.holm.values()) == min(1.0, 3 * min(single.values()))
    printed = str(report)
    for part in ("1 plain sets", "1 matched sets", "p, Holm", "plain text"):
        assert part in printed
    assert "a bias alone" not in printed and report.not_judged == []


def test_plain_text_is_told_and_the_bias_is_not_judged(model: Any, tokenizer: Any, prompts: Any) -> None:
    neurons = learned_set(model, bias={"by": "letter", "values": {"A": 0.1}})
    report = evaluate(model, tokenizer, prompts, neurons, controls=0)
    asked = nl.evaluate(model, tokenizer, prompts_of([("no", "yes")] * 12), neurons, controls=0, progress=False)
    assert report.plain_text == asked.plain_text and report.plain_text["sentences"] == 24
    assert report.plain_text["edited"] != report.plain_text["base"]
    assert report.not_judged == ["bias"] and "a bias alone      not judged" in str(report)
    assert report.to_dict()["plain_text"] == report.plain_text


def test_another_edit_of_the_set_is_not_compared(model: Any, tokenizer: Any, prompts: Any) -> None:
    neurons = learned_set(model)
    for other in ({"good": 2.0}, {"positions": "answer"}):
        report = evaluate(model, tokenizer, prompts, neurons, controls=0, **other)
        assert report.learned is report.holm is None and report.plain_text is not None


def test_no_edit_where_learning_found_none(model: Any, tokenizer: Any, prompts: Any) -> None:
    """The set is empty, and the forced factors are what is compared."""
    empty = replace(learned_set(model).take([]), controls=learned_set(model).controls)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the set is empty
        report = evaluate(model, tokenizer, prompts, empty, controls=0)
    with learned_set(model).apply(model, positions="all"):
        forced = shares(written_to(model, tokenizer, prompts, NEW), prompts)
    assert report.changed == [] and report.learned["forced"] == pytest.approx(forced)
    assert "the same, forced" in str(report) and np.isclose(report.plain_text["base"], report.plain_text["edited"])
