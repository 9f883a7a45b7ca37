"""One bias and nothing else: the likeliest one, of letters, labels or places, and what it makes of answers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from neuronllm.judging.bias import RIDGE, Bias
from neuronllm.results.answers import Answers
from tests.checks import refused
from tests.tiny_tokenizers import byte_level

PLANTED = [1.5, 0.0, -1.0, 0.5]


def letters(count: int, options: int = 4) -> list[Prompt]:
    return [Prompt([3], [[4 + k] for k in range(options)], 0, question_id=f"q{n}") for n in range(count)]


def planted(count: int, seed: int = 0) -> Answers:
    """Answers of a model that says of every option what is true of it, less a number that goes by its letter."""
    generator = torch.Generator().manual_seed(seed)
    truth = 2 * torch.randn(count, 4, generator=generator)
    right = truth.softmax(-1).multinomial(1, generator=generator)[:, 0].tolist()
    prompts = [replace(p, answer=answer) for p, answer in zip(letters(count), right, strict=True)]
    return Answers(prompts, (truth - torch.tensor(PLANTED)).log_softmax(-1))


def test_a_planted_bias_is_found():
    answers = planted(4000)
    bias = Bias.fitted(answers)
    assert bias.by == "letter" and list(bias.values) == ["A", "B", "C", "D"]
    found, true = np.array(list(bias.values.values())), np.array(PLANTED)
    assert found - found.mean() == pytest.approx(true - true.mean(), abs=0.15)
    assert bias.added(answers).accuracy > answers.accuracy + 0.03


def test_it_is_the_likeliest():
    """Of the maximum, options are as likely in the mean as they are right; no step in any direction is better."""
    answers = planted(60)
    values = np.array(list(Bias.fitted(answers).values.values()))

    def loss(values: np.ndarray) -> float:
        total = RIDGE / 2 * float((values**2).sum())
        for row, right in zip(answers.logprobs.double().numpy(), answers.right_option, strict=True):
            total -= ((row + values)[right] - np.logaddexp.reduce(row + values)) / len(answers.right_option)
        return total

    for push in np.vstack([np.eye(4), -np.eye(4)]) * 0.01:
        assert loss(values + push) > loss(values)
    probabilities = Bias.fitted(answers).added(answers).logprobs.exp().mean(0).numpy()
    shares = np.bincount(answers.right_option, minlength=4) / 60
    assert probabilities == pytest.approx(shares, abs=1e-3)


def test_one_letter_that_is_always_right_is_unmasked():
    prompts = letters(12)
    answers = Answers(prompts, torch.randn(12, 4, generator=torch.Generator().manual_seed(2)).log_softmax(-1))
    bias = Bias.fitted(answers)
    assert answers.accuracy < 1 == bias.added(answers).accuracy
    assert all(np.isfinite(list(bias.values.values())))


def test_questions_count_alike_whatever_their_variants():
    once = planted(40)
    prompts = [p for group in once.groups for p in group]
    rows = [n for n in range(40) for _ in range(3 if n % 2 else 1)]
    often = Answers([prompts[n] for n in rows], once.logprobs[rows])
    assert len(often.groups) == 40
    assert list(Bias.fitted(often).values.values()) == pytest.approx(list(Bias.fitted(once).values.values()), abs=1e-4)


def test_options_that_are_not_there_count_for_nothing():
    answers = planted(50)
    prompts = [p for group in answers.groups for p in group]
    few = [Prompt([3], [[4], [5]], n % 2, question_id=f"f{n}") for n in range(10)]
    rows = torch.full((10, 4), -torch.inf)
    rows[:, :2] = torch.tensor([0.3, 0.7]).log()
    bias = Bias.fitted(mixed := Answers([*prompts, *few], torch.cat([answers.logprobs, rows])))
    added = bias.added(mixed).logprobs
    assert bool(added[-10:, 2:].isneginf().all()) and torch.allclose(added.exp().sum(-1), torch.ones(60))


def asked(choices: list[tuple[str, ...]], template: str | None = None) -> Answers:
    questions = [nl.Question(f"what is n{n}?", some, n % len(some), id=f"q{n}") for n, some in enumerate(choices)]
    prompts = nl.render(byte_level(), questions, "none", template, answers="texts")
    generator = torch.Generator().manual_seed(0)
    return Answers(prompts, torch.randn(len(prompts), len(choices[0]), generator=generator).log_softmax(-1))


def test_texts_have_a_bias_by_label_where_labels_come_back():
    answers = asked([("good", "bad") if n % 2 else ("bad", "good") for n in range(12)])
    bias = Bias.fitted(answers)
    assert bias.by == "label" and set(bias.values) == {"good", "bad"}
    # Whatever is right stands first or second in turn, and it is "bad" in both places.
    assert bias.values["bad"] > bias.values["good"] and bias.added(answers).accuracy == 1
    other = asked([("good", "awful")])
    assert float(bias.added(other).logprobs.softmax(-1).sum()) == pytest.approx(1)


def test_other_texts_have_one_by_place_where_places_are_displayed():
    different = [(f"word {n}", f"thing {n}") for n in range(12)]
    assert Bias.fitted(asked(different)) is None
    bias = Bias.fitted(asked(different, "cloze_options"))
    assert bias.by == "place" and list(bias.values) == ["1", "2"]
    by_hand = [Prompt([3], [[[4, 5]], [[6, 7]]], n % 2, question_id=f"h{n}") for n in range(8)]
    assert Bias.fitted(Answers(by_hand, torch.full((8, 2), 0.5).log())).by == "place"
    named = [replace(prompt, template="mine") for prompt in by_hand]
    assert Bias.fitted(Answers(named, torch.full((8, 2), 0.5).log())).by == "place"


def test_a_single_option_has_no_bias():
    assert Bias.fitted(Answers([Prompt([3], [[[4, 5]]], 0)], torch.zeros(1, 1))) is None


def test_it_is_plain_data():
    bias = Bias.fitted(planted(30))
    assert Bias.of(json.loads(json.dumps(bias.to_dict()))) == bias
    with refused("bias", "not as written here"):
        Bias.of({"values": {"A": 1.0}})
