"""What an evaluation says unasked: too few controls, one right letter, a wording that nobody chose."""

from __future__ import annotations

import pytest

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
