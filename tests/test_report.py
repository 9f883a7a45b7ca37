"""What a report prints: whose interval is whose, and which questions changed sides."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.common.statistics import bootstrap_interval
from neuronllm.data.prompts import Prompt, group_by_question
from neuronllm.judging.evaluate import _intervals
from neuronllm.judging.report import named
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.answers import Answers
from neuronllm.results.neurons import NeuronSet
from tests.checks import quiz
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level


def flipping(questions, tokenizer=None, **keywords):
    """The report of a strong edit of a random model."""
    extra = {} if tokenizer is None else {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    model = tiny("llama", **extra)
    ids = torch.arange(0, 56, 4)
    neurons = NeuronSet(ids, np.full(len(ids), "good"), torch.zeros(len(ids)), Anatomy.of(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return nl.evaluate(model, tokenizer, questions, neurons, good=-6.0, controls=0, progress=False, **keywords)


def test_flipped_questions_are_named_by_id_and_text():
    texts = [f"Which of these,\nif any, is word number {n}? Think of it before you answer" for n in range(48)]
    questions = [nl.Question(text, ("red", "blue", "seven"), n % 3, id=f"word-{n}") for n, text in enumerate(texts)]
    report = flipping(questions, byte_level(), orders="rotate", template="plain")
    lines = str(report).splitlines()
    for direction, listed in report.flipped.items():
        assert len(listed) == report.flips[direction]
        assert all(row["id"] == f"word-{row['number']}" for row in listed)
        assert all(row["question"] == questions[row["number"]].stem for row in listed)  # whole
        printed = [line for line in lines if line.startswith(f"  {direction.replace('_', ' ')}: ")]
        assert len(printed) == bool(listed)
        for row, line in zip(listed, printed, strict=False):
            assert f"{row['id']} 'Which of these, if any, is word number" in line and "before you answer" not in line
            assert ("more" in line) == (len(listed) > 3) and line.count("word-") == min(3, len(listed))
    assert max(report.flips.values()) > 3, "too few to see that the list is cut"
    assert json.loads(json.dumps(report.to_dict()))["flipped"] == report.flipped


def test_prompts_are_named_by_id_or_place():
    prompts = quiz(3)
    groups = group_by_question(prompts)
    named_prompts = named(prompts, groups, np.array([True, False, True]))
    assert named_prompts == [{"number": n, "id": f"q3-{n}", "question": None} for n in (0, 2)]
    plain = [nl.Prompt(p.input_ids, p.option_ids, p.answer) for p in quiz(12, variants=False)]
    report = flipping(plain)
    (direction, listed), *_ = [(d, rows) for d, rows in report.flipped.items() if rows]
    assert f"  {direction.replace('_', ' ')}: number {listed[0]['number']}" in str(report)


def test_every_interval_says_whose_it_is():
    report = flipping(quiz(12))
    for name, label in (("accuracy", "accuracy"), ("p_right", "P(right)")):
        (line,) = [line for line in str(report).splitlines() if line.startswith(f"95 % {label}")]
        base, edited, change = (report.ci[whose][name] for whose in ("base", "edited", "change"))
        assert f"base {base[0]:.3f} to {base[1]:.3f}, edited {edited[0]:.3f} to {edited[1]:.3f}" in line
        assert line.endswith(f"change {change[0]:+.3f} to {change[1]:+.3f}")
    assert report.ci["base"]["p_right"][0] <= report.base["p_right"] <= report.ci["base"]["p_right"][1]
    assert report.ci["edited"]["p_right"][0] <= report.p_right <= report.ci["edited"]["p_right"][1]
    with pytest.raises(KeyError):
        report.ci["accuracy"]
    alone = nl.evaluate(tiny("llama"), None, quiz(4), progress=False)
    assert list(alone.ci) == ["base"] and "95 % accuracy" in str(alone) and "edited" not in str(alone)


def test_changes_are_paired():
    """A change that is the same for every question has no spread, however much the questions differ."""
    prompts = [Prompt([3], [[4], [5]], 0) for _ in range(40)]
    before = torch.linspace(0.1, 0.8, 40)
    base, edited = (Answers(prompts, torch.stack([p, 1 - p], 1).log()) for p in (before, before + 0.1))
    found = _intervals(base, edited, 0)
    assert list(found) == ["base", "edited", "change"]
    low, high = found["change"]["p_right"]
    assert low == pytest.approx(0.1, abs=1e-6) and high == pytest.approx(0.1, abs=1e-6)
    for whose, answers in (("base", base), ("edited", edited)):
        assert found[whose]["p_right"] == bootstrap_interval(answers.p_right)
        low, high = found[whose]["p_right"]
        assert high - low > 0.1 and low < answers.mean_p_right < high
    assert found["edited"]["p_right"][0] > found["base"]["p_right"][0] + 0.09
