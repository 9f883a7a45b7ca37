"""Reports of answers in texts: what is watched is place and length, and some changed answers are shown."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from neuronllm.judging.asking import warn_if_one_sided
from neuronllm.judging.evaluate import p_change
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.answers import Answers
from neuronllm.results.neurons import NeuronSet
from tests.checks import quiz, untouched
from tests.tiny import tiny

WORDS = ("Paris", "Rome", "Oslo", "Bern")


def texts(prompts: list[Prompt]) -> list[Prompt]:
    """The same prompts, whose options have words in the order in which they are displayed."""
    return [dataclasses.replace(p, texts=tuple(WORDS[choice] for choice in p.order)) for p in prompts]


def evaluate(model, prompts, *arguments, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return nl.evaluate(model, None, prompts, *arguments, progress=False, **keywords)


def edited(model) -> NeuronSet:
    ids = torch.arange(0, 56, 4)
    return NeuronSet(ids, np.full(len(ids), "good"), torch.zeros(len(ids)), Anatomy.of(model))


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


def test_the_numbers_are_those_of_letters_under_other_names(model):
    prompts = quiz()
    with untouched(model):
        report = evaluate(model, texts(prompts), edited(model), good=-6.0, controls=3)
    same = evaluate(model, prompts, edited(model), good=-6.0, controls=3)
    for name in ("accuracy", "balanced_accuracy", "p_right", "ci", "controls", "rac", "rcc", "flips", "mcnemar"):
        assert getattr(report, name) == getattr(same, name), name
    assert report.letters is None and "letters" not in report.base and same.options is None
    assert report.options == {str("ABCD".index(letter) + 1): share for letter, share in same.letters.items()}
    assert report.answers == "texts" and same.answers == "letters" and same.changed is None
    lines = str(report).splitlines()
    assert lines[0].startswith("10 questions answered in texts, edited")
    assert any(line.startswith("option-balanced") for line in lines) and "letter" not in str(report).lower()
    assert any(line.startswith("options           1 .") for line in lines)
    assert "options" not in str(same) and "letter-balanced" in str(same)


def test_changed_answers_are_shown(model):
    prompts = texts(quiz(12))
    report = evaluate(model, prompts, edited(model), good=-6.0, controls=0)
    expected = []
    for n in range(12):
        mine = [p for p in prompts if p.question_id == f"q3-{n}"]
        said = []
        for factor in (1.0, -6.0):
            total = dict.fromkeys(WORDS, 0.0)
            for prompt in mine:
                with edited(model).apply(model, good=factor, positions="all"), torch.no_grad():
                    logits = model(torch.tensor([prompt.input_ids])).logits[0, -1]
                scores = torch.stack([logits[ids].logsumexp(0) for ids in prompt.first_tokens]).softmax(0)
                for word, share in zip(prompt.texts, scores.tolist(), strict=True):
                    total[word] += share
            said.append(max(total, key=lambda word: total[word]))
        if said[0] != said[1]:
            right = mine[0].texts[mine[0].answer]
            row = {"number": n, "id": f"q3-{n}", "question": None}
            expected.append({**row, "before": said[0], "after": said[1], "right": right})
    assert report.changed == expected and len(expected) > 5
    assert json.loads(json.dumps(report.to_dict()))["changed"] == expected
    lines = str(report).splitlines()
    at = lines.index(f"{len(expected)} questions are answered otherwise, 5 of them:")
    shown = [f"  {row['id']}: {row['before']} -> {row['after']}" for row in expected[:5]]
    assert lines[at + 1 : at + 6] == shown and len(lines) == at + 6 + ("collapse" in lines[-1]) * (len(lines) - at - 6)


def test_options_without_words_are_named_by_their_place(model):
    prompts = [Prompt([4, n + 5], [[[7]], [[8]]], 0, lengths=[[2.0], [2.0]]) for n in range(6)]
    answers = [Answers(prompts, torch.tensor([[-0.1, -3.0]] * 6)), Answers(prompts, torch.tensor([[-3.0, -0.1]] * 6))]
    from neuronllm.judging.report import changed_answers

    (first, *_) = changed_answers(prompts, *answers)
    assert first == {
        "number": 0, "id": "", "question": None, "before": "option 1", "after": "option 2", "right": "option 1"
    }  # fmt: skip


# ---- length ----


def sized(*lengths: int, answer: int = 0) -> Prompt:
    """A prompt whose options have so many tokens."""
    sequences = [[[10 * (n + 1) + k for k in range(length)]] for n, length in enumerate(lengths)]
    return Prompt([3], sequences, answer, texts=tuple(f"option {n}" for n in range(len(lengths))))


def test_shares_of_short_and_long_options():
    prompts = [
        sized(1, 2, 3, answer=1),
        sized(2, 2, 2),
        sized(3, 1, answer=1),
        sized(1, 1, 4),
        sized(2, 5, 3, answer=2),
    ]
    picked = [2, 0, 1, 1, 1]
    logprobs = torch.full((5, 3), -9.0)
    logprobs[torch.arange(5), torch.tensor(picked)] = -0.1
    found = Answers(prompts, logprobs).lengths
    assert found == {
        "prompts": 4,  # one has options of the same length
        "picked": {"shortest": 0.5, "between": 0.0, "longest": 0.5},
        "right": {"shortest": 0.5, "between": 0.5, "longest": 0.0},
    }
    assert Answers(prompts[1:2], logprobs[1:2]).lengths is None
    assert Answers(prompts, logprobs).summary().keys() >= {"options", "lengths"}


def test_a_report_prints_the_lengths():
    from neuronllm.judging.report import Report

    lengths = {
        "prompts": 8,
        "picked": {"shortest": 0.75, "between": 0.25, "longest": 0.0},
        "right": {"shortest": 0.5, "between": 0.25, "longest": 0.25},
    }
    ci = {"base": {"accuracy": (0.1, 0.2), "p_right": (0.1, 0.2)}}
    numbers = {"accuracy": 0.5, "balanced_accuracy": 0.5, "p_right": 0.5, "collapsed": False, "questions": 8, "ci": ci}
    report = Report(**numbers, answers="texts", length="tokens", options={"1": 1.0}, lengths=lengths)
    (line,) = [line for line in str(report).splitlines() if line.startswith("lengths")]
    assert line == (
        "lengths           shortest .75 (right .50), between .25 (right .25), longest .00 (right .25); 8 prompts"
    )
    assert str(report).splitlines()[0] == "8 questions answered in texts, length tokens"


@pytest.mark.parametrize(
    ("picked", "prompts", "said"),
    [
        ({"shortest": 0.8, "between": 0.2, "longest": 0.0}, 10, "the shortest one is picked in 80% of the prompts"),
        ({"shortest": 0.0, "between": 0.3, "longest": 0.7}, 10, "the longest one is picked in 70% of the prompts"),
        ({"shortest": 0.75, "between": 0.25, "longest": 0.0}, 10, ""),  # half of the way to always
        ({"shortest": 0.8, "between": 0.2, "longest": 0.0}, 9, ""),  # too few to tell
    ],
)
def test_a_collapse_to_short_or_long_answers_is_reported(picked, prompts, said):
    from neuronllm.judging.report import Report

    lengths = {"prompts": prompts, "picked": picked, "right": {"shortest": 0.5, "between": 0.25, "longest": 0.25}}
    ci = {"base": {"accuracy": (0.1, 0.2), "p_right": (0.1, 0.2)}}
    numbers = {"accuracy": 0.5, "balanced_accuracy": 0.5, "p_right": 0.5, "collapsed": False, "questions": 8, "ci": ci}
    report = Report(**numbers, answers="texts", options={"1": 1.0}, lengths=lengths)
    lines = [line for line in str(report).splitlines() if line.startswith("length collapse")]
    assert len(lines) == bool(said) and said in "".join(lines)


def test_where_the_right_answer_is_nearly_always_the_shortest_it_is_said():
    short = [sized(1, 3) for _ in range(9)] + [sized(1, 3, answer=1)]
    with pytest.warns(UserWarning, match="the shortest option is the right one in 90% of the prompts.*--length tokens"):
        warn_if_one_sided(short)
    with pytest.warns(UserWarning, match="the longest option is the right one in 100%"):
        warn_if_one_sided([sized(1, 2, 3, answer=2)] * 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_one_sided(short[:9])  # too few to tell
        warn_if_one_sided([dataclasses.replace(p, lengths=[[1.0], [3.0]]) for p in short])  # told as advised already
        warn_if_one_sided([dataclasses.replace(p, offsets=[[-4.0], [-9.0]]) for p in short])
        warn_if_one_sided([sized(1, 3, answer=n % 2) for n in range(10)])
        warn_if_one_sided([sized(2, 2)] * 10)  # the first is always right, which is no letter that a model can like


# ---- collapse ----


def test_a_collapse_to_one_place_is_reported():
    from tests.checks import letter_model, with_every_letter

    model, towards, _ = letter_model()
    prompts = [dataclasses.replace(p, texts=WORDS) for p in with_every_letter(model)]
    towards_first = NeuronSet(torch.tensor([towards]), np.array(["good"]), torch.ones(1), Anatomy.of(model))
    with pytest.warns(UserWarning, match="option collapse: the edited model answers option 1 in 100% of the prompts"):
        report = nl.evaluate(model, None, prompts, towards_first, "enhance", progress=False)
    assert report.collapsed and report.options == {"1": 1.0, "2": 0.0, "3": 0.0, "4": 0.0}
    assert "option collapse: the predictions lean on one option" in str(report)
    tuned = nl.tune(model, None, towards_first, prompts, ks=[1], progress=False)
    assert len(tuned) == 0  # an edit that collapses is never better


# ---- PCR ----


@pytest.mark.slow
def test_the_pcr_is_that_of_two_separate_evaluations(model):
    here, elsewhere = quiz(), quiz(6, seed=11)
    together = evaluate(model, here, edited(model), good=-2.0, controls=0, unrelated=elsewhere)
    first, second = (evaluate(model, some, edited(model), good=-2.0, controls=0) for some in (here, elsewhere))
    assert together.pcr == abs(first.p_change) / abs(second.p_change) and together.p_change == first.p_change
    assert together.p_change_unrelated == second.p_change and first.pcr is None

    # And one prompt at a time, from what a report says of P(right) before and after.
    single = [evaluate(model, [prompt], edited(model), good=-2.0, controls=0) for prompt in here]
    changes = [(one.p_right - one.base["p_right"]) / one.base["p_right"] for one in single]
    assert first.p_change == pytest.approx(np.mean(changes), rel=1e-4)
    (line,) = [line for line in str(together).splitlines() if line.startswith("PCR")]
    assert line.startswith(f"PCR {together.pcr:.3f} = |{first.p_change:+.2%}| here / |{second.p_change:+.2%}| on the ")
    assert line.endswith("each the mean over prompts of the relative change of P(right)")
    assert "PCR" not in str(first)


def test_a_right_text_that_was_out_of_the_question_has_no_relative_change():
    """Options of many tokens lie further apart than float32 reaches: e**-150 is 0 there."""
    prompts = texts(quiz(2))[:2]
    right = [prompt.answer for prompt in prompts]

    def answered(*logprobs: float) -> Answers:
        table = torch.full((2, 4), -1.0)
        table[torch.arange(2), torch.tensor(right)] = torch.tensor(logprobs)
        return Answers(prompts, table)

    assert p_change(answered(-150.0, -2.0), answered(-3.0, -1.0)) == pytest.approx(np.e - 1)
    assert p_change(answered(-150.0, -150.0), answered(-3.0, -1.0)) is None
