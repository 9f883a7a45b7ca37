"""What an evaluation says unasked: too few controls, one right letter, a wording that nobody chose."""

from __future__ import annotations

import warnings

import pytest
import torch

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from tests.tiny import random_prompts, tiny
from tests.tiny_tokenizers import byte_level


def test_few_controls_and_one_right_letter_are_warned_about():
    model, prompts = tiny("llama"), random_prompts(6)
    neurons = nl.attribute(model, None, prompts, "gradient", positions="answer", progress=False).find(2, 2)
    with pytest.warns(UserWarning, match="controls=3: with fewer than 20 random sets"):
        nl.evaluate(model, None, prompts, neurons, "enhance", controls=3, progress=False)
    one_letter = [Prompt(p.input_ids, p.option_ids, 0, p.question_id) for p in prompts]
    with pytest.warns(UserWarning, match="A is the right letter of 100% of the prompts"):
        nl.evaluate(model, None, one_letter, progress=False)


def test_neurons_are_judged_in_the_wording_they_were_found_with():
    tokenizer = byte_level()
    model = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    questions = [nl.Question(f"which {n}?", ("red", "blue", "seven"), n % 3, id=f"q{n}") for n in range(6)]
    neurons = nl.attribute(
        model, tokenizer, questions, "gradient", positions="answer", template="plain", progress=False
    ).find(3, 3)
    assert neurons.provenance["template"] == "plain"

    def p_right(template):
        report = nl.evaluate(model, tokenizer, questions, neurons, "enhance", template=template, progress=False)
        return report.p_right

    assert p_right(None) == p_right("plain") != p_right("default")


def test_one_label_for_all_questions_is_warned_about():
    tokenizer = byte_level()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=512)

    def told(questions, **more):
        given = {"steps": 1, "seeds": 1, "margin": None, "retain_weight": 0, "progress": False}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            nl.learn(model, tokenizer, questions, **given | more)
        return [str(each.message) for each in caught if "the right answer of all of them" in str(each.message)]

    def asked(count, right, labels=("good", "bad")):
        return [nl.Question(f"is {n} good?", labels, right(n), id=f"q{n}") for n in range(count)]

    line = (
        "questions: 'bad' is the right answer of all of them, so an edit that gives it whatever is asked looks like "
        "one that has learned the task: give questions of every answer"
    )
    one = asked(6, lambda n: 1)
    assert told(one, answers="texts") == told(one, orders="rotate") == [line]
    assert told(nl.render(tokenizer, one, answers="texts")) == [line]
    assert told(one[:5] + asked(6, lambda n: 0)[5:], answers="texts") == []
    moved = [nl.Question(q.stem, q.choices[:: 1 - 2 * (n % 2)], n % 2 ^ 1, id=q.id) for n, q in enumerate(one)]
    assert {q.choices[q.answer] for q in moved} == {"bad"} and told(moved, answers="texts") == [line]
