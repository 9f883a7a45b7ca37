"""What a report says against a learned edit, beside the same numbers worked out by plain forward passes."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.common.statistics import holm, mcnemar
from neuronllm.data.plain_text import plain_sentences
from neuronllm.judging.report import HARM, Report
from neuronllm.results.learned import Controls
from neuronllm.results.neurons import NeuronSet
from tests.checks import quiz, untouched
from tests.test_evaluate import ask, evaluate, work_out
from tests.test_learn import learn
from tests.test_tune import CULPRIT, a_set, answers_of, harmed, labelled
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

MEASURES = ("accuracy", "balanced_accuracy", "p_right")


@pytest.fixture(scope="module")
def broken():
    model, prompts = harmed()
    return model, prompts, a_set(model, good=[2, 9, 40], bad=[CULPRIT, 7, 50, 11])


@pytest.fixture(scope="module")
def learned(broken):
    model, prompts, neurons = broken
    return learn(model, prompts, neurons, margin=None, lr=0.2, controls=3)


def worked_out(model: Any, prompts: Any, controls: Controls, positions: str) -> list[dict[str, Any]]:
    """Of every set, by hooks and forward passes of single prompts."""
    found = []
    for ids, factors in zip(controls.ids.tolist(), controls.factors.tolist(), strict=True):
        edited = ask(model, prompts, dict(zip(ids, factors, strict=True)), positions)
        found.append(work_out(prompts, edited))
    return found


def percentile(drawn: list[float], own: float) -> float:
    below = [100 * (value < own - 1e-9) + 50 * (abs(value - own) <= 1e-9) for value in drawn]
    return float(np.mean(below))


# ---- among sets learned the same way ----


def test_where_the_edit_stands_is_what_a_loop_says(broken, learned):
    model, _, _ = broken
    test = quiz(14, seed=8)
    with untouched(model):
        report = evaluate(model, test, learned, controls=0)
    own, *others = worked_out(model, test, learned.controls, "answer")
    kinds = learned.controls.kind[1:]
    assert set(report.learned) == {"forced", "plain", "matched"}
    for kind in ("plain", "matched"):
        said = report.learned[kind]
        drawn = [one for one, its in zip(others, kinds, strict=True) if its == kind]
        assert said["sets"] == len(drawn) == 3
        for name in MEASURES:
            values = [one[name] for one in drawn]
            assert said[name]["percentile_of_edit"] == pytest.approx(percentile(values, own[name]))
            for key, percent in (("p2.5", 2.5), ("p50", 50), ("p97.5", 97.5)):
                assert said[name][key] == pytest.approx(np.percentile(values, percent), abs=1e-6)
        at_least = sum(one["accuracy"] >= own["accuracy"] - 1e-9 for one in drawn)
        assert said["p"] == (1 + at_least) / 4
    for name in MEASURES:  # every seed took a step, so that the set is the one that was forced
        assert report.learned["forced"][name] == getattr(report, name) == pytest.approx(own[name], abs=1e-6)
    lost, won = report.flips.values()
    tests = [mcnemar(lost, won), report.learned["plain"]["p"], report.learned["matched"]["p"]]
    assert list(report.holm) == ["McNemar", "plain", "matched"] and list(report.holm.values()) == holm(tests)
    lines = str(report).splitlines()
    assert sum(line.startswith(("3 plain sets ", "3 matched sets ")) for line in lines) == 2
    assert any(line.startswith("p, Holm ") for line in lines) and "forced" not in str(report)
    assert max(len(line) for line in lines) < 180 and json.loads(json.dumps(report.to_dict()))


def test_the_set_without_its_edit_is_compared_forced():
    """Where learning chose no edit, random sets that had to choose one are compared with one that had to."""
    model = tiny("llama")
    prompts = quiz(18, variants=False)
    right = labelled(prompts, answers_of(model, prompts))
    learned = learn(model, right, a_set(model, good=[2, 9, 40], bad=[30, 7]), controls=2, lr=1.0)
    assert not len(learned)
    report = evaluate(model, right, learned, controls=0)
    assert report.accuracy == report.base["accuracy"] == 1.0 and report.edit["neurons"] == 0
    own, *others = worked_out(model, right, learned.controls, "answer")
    assert report.learned["forced"]["accuracy"] == pytest.approx(own["accuracy"]) and own["accuracy"] < 1
    values = [one["p_right"] for one in others[:2]]
    assert report.learned["plain"]["p_right"]["percentile_of_edit"] == pytest.approx(percentile(values, own["p_right"]))
    assert any(line.startswith("the same, forced") for line in str(report).splitlines())


def test_of_a_degrading_edit_less_is_better(broken):
    model = tiny("llama")
    prompts = quiz(24, variants=False, options=(4,))
    right = labelled(prompts, answers_of(model, prompts))
    degraded = learn(
        model, right, a_set(model, good=[2, 9, 40, 13, 30], bad=[50]), goal="degrade", margin=None, lr=0.2, controls=2
    )
    report = evaluate(model, right, degraded, controls=0)
    own, *others = worked_out(model, right, degraded.controls, "answer")
    at_most = sum(one["accuracy"] <= own["accuracy"] + 1e-9 for one in others[:2])
    assert report.learned["plain"]["p"] == (1 + at_most) / 3 and report.bias is None


def test_another_edit_does_not_stand_among_them(broken, learned):
    model, prompts, _ = broken
    others = [{"mode": "enhance"}, {"good": 1.5}, {"positions": "all"}]
    for other in others:
        report = evaluate(model, prompts, learned, controls=0, **other)
        assert report.learned is None and report.holm is None and report.bias is not None
    without = evaluate(model, prompts, learned.take(range(len(learned))), controls=0)
    assert without.learned is None and without.accuracy == evaluate(model, prompts, learned, controls=0).accuracy
    found = evaluate(model, prompts, replace(learned, provenance={}, controls=None), controls=0, positions="answer")
    assert found.learned is found.bias is found.plain_text is None


# ---- a bias alone ----


def test_a_task_that_is_a_bias_is_unmasked():
    """Where the right letter is always the same, learned factors gain, and so does a number for that letter."""
    model = tiny("llama")
    prompts = [replace(p, answer=0, order=()) for p in quiz(24, variants=False, options=(4,))]
    search, test = prompts[:16], prompts[16:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        learned = learn(model, search, a_set(model, good=range(0, 56, 4)), margin=None, lr=0.2)
    report = evaluate(model, test, learned, controls=0)
    assert report.base["accuracy"] < report.accuracy <= report.bias["accuracy"] == 1
    assert "a bias alone" in str(report) and "one number for each letter" in str(report)


def test_the_bias_of_another_form_says_nothing(learned, broken):
    model, prompts, _ = broken
    options = [[[3, 9], [4, 8]], [[5, 6]], [[7]]]
    texts = [replace(p, option_ids=options, answer=0, order=()) for p in prompts]
    assert evaluate(model, texts, learned, controls=0).bias is None


# ---- side effects ----


@pytest.fixture(scope="module")
def reader():
    """A model with a tokenizer, questions, and a set learned on them at all positions."""
    tokenizer = byte_level()
    model = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    questions = [nl.Question(f"which of these is n{n}?", ["red", "blue", "door"], n % 3, id=f"q{n}") for n in range(8)]
    neurons = a_set(model, good=[2, 9, 40], bad=[30, 7])
    sets = {}
    for positions in ("all", "answer"):
        sets[positions] = nl.learn(
            model, tokenizer, questions, neurons=neurons, positions=positions, steps=2, seeds=1, margin=None, lr=0.5,
            retain_weight=0, progress=False,
        )  # fmt: skip
    return model, tokenizer, questions, sets


def judged(reader: Any, neurons: NeuronSet, **more: Any) -> Report:
    model, tokenizer, questions, _ = reader
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return nl.evaluate(model, tokenizer, questions, neurons, controls=0, progress=False, **more)


@torch.no_grad()
def test_plain_text_before_and_after(reader):
    model, tokenizer, _, sets = reader
    learned = sets["all"].with_factors([3.0, 0.0, 2.0, 0.0, 2.0])
    said = judged(reader, learned).plain_text
    means: dict[str, list[float]] = {"base": [], "edited": []}
    for sentence in plain_sentences("judge"):
        tokens = torch.tensor([tokenizer(sentence).input_ids[:128]])
        for whose, factors in (("base", torch.ones(5)), ("edited", learned.factor)):
            with nl.edit(model, learned.ids, factors):
                logp = model(tokens).logits[0, :-1].log_softmax(-1)
            means[whose].append(float(logp.gather(1, tokens[0, 1:, None]).mean()))
    assert said["sentences"] == len(means["base"]) == 24
    for whose, values in means.items():
        assert said[whose] == pytest.approx(np.mean(values), abs=1e-5)
    low, high = said["change"]
    assert low <= said["edited"] - said["base"] <= high and said["edited"] != said["base"]


def test_at_the_answer_the_beginning_of_a_sentence_is_left_alone(reader):
    learned = reader[3]["answer"]
    where = {at: judged(reader, learned, positions=at).plain_text for at in ("answer", "all")}
    assert where["answer"]["base"] != where["all"]["base"]  # other tokens are counted
    assert where["answer"]["edited"] != where["answer"]["base"]


def test_harm_is_said_in_numbers(reader):
    report = judged(reader, reader[3]["all"])
    assert any(line.startswith("plain text  ") and "24 sentences" in line for line in str(report).splitlines())
    for lost, told in ((-0.3, False), (HARM, False), (HARM + 0.01, True), (2.0, True)):
        harmed = replace(report, plain_text={**report.plain_text, "base": 0.0, "edited": -lost})
        said = [line for line in str(harmed).splitlines() if line.startswith("plain text loses")]
        expected = f"plain text loses {lost:.2f} nats a token, more than 0.1: the edit costs elsewhere"
        assert [line.split(" (")[0] for line in said] == [expected] * told


def test_accuracy_on_unrelated_questions(broken, learned):
    model, prompts, _ = broken
    unrelated = quiz(9, seed=11)
    report = evaluate(model, prompts, learned, controls=0, unrelated=unrelated)
    factors = dict(zip(learned.ids.tolist(), learned.factor.tolist(), strict=True))
    before, after = (work_out(unrelated, ask(model, unrelated, f, "answer")) for f in (None, factors))
    said = report.unrelated
    assert said["questions"] == 9 and set(said["ci"]) == {"base", "edited", "change"}
    assert (said["base"], said["edited"]) == pytest.approx((before["accuracy"], after["accuracy"]))
    low, high = said["ci"]["change"]
    assert low <= said["edited"] - said["base"] <= high
    assert any(line.startswith("unrelated ") and "9 questions" in line for line in str(report).splitlines())


# ---- statistics ----


def test_holm():
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    p_values = np.random.default_rng(0).random(9) ** 3
    order = np.argsort(p_values)
    expected = np.empty(9)
    for rank, n in enumerate(order):
        expected[n] = min(1.0, max((9 - other) * p_values[order[other]] for other in range(rank + 1)))
    assert holm(p_values.tolist()) == pytest.approx(expected.tolist())
