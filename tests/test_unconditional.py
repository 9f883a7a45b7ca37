"""length="unconditional": what a text is worth after a bare "Answer:" is taken off, once and for every verb alike."""

from __future__ import annotations

import pytest
import torch

import neuronllm as nl
from neuronllm.attribution.job import Job
from neuronllm.attribution.request import Request
from neuronllm.runs.provenance import prompt_hash
from tests.checks import untouched
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

QUESTIONS = [
    nl.Question("Capital of France?", ("Oslo", "Paris", "a town"), 1, id="a"),
    nl.Question("Colour of snow?", ("white", "no colour"), 0, id="b"),
]


@pytest.fixture(scope="module")
def asked():
    tokenizer = byte_level()
    return tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=256), tokenizer


def logp(model, tokenizer, before: str, after: str) -> float:
    """The log-probability of a text behind another, token by token."""
    start, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, before + after))
    assert ids[: len(start)] == start
    with torch.no_grad():
        rows = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(rows[n - 1, ids[n]]) for n in range(len(start), len(ids)))


def test_what_a_text_gains_is_what_counts(asked):
    model, tokenizer = asked
    p_right = []
    for question in QUESTIONS:
        scores = torch.tensor(
            [
                logp(model, tokenizer, f"Question: {question.stem}\nAnswer:", f" {choice}")
                - logp(model, tokenizer, "Answer:", f" {choice}")
                for choice in question.choices
            ]
        )
        p_right.append(float(scores.softmax(0)[question.answer]))
    with untouched(model):
        report = nl.evaluate(
            model, tokenizer, QUESTIONS, answers="texts", length="unconditional", orders="none", progress=False
        )
    assert report.p_right == pytest.approx(sum(p_right) / 2, abs=1e-5) and report.length == "unconditional"
    plain = nl.evaluate(model, tokenizer, QUESTIONS, answers="texts", progress=False)
    assert abs(plain.p_right - report.p_right) > 1e-3


@pytest.mark.parametrize("template", ["cloze", "cloze_options"])
def test_offsets_belong_to_the_choice_wherever_it_stands(asked, template):
    model, tokenizer = asked
    request = Request("gradient", answers="texts", length="unconditional", template=template)
    with untouched(model):
        job = Job.of(model, tokenizer, QUESTIONS, request)
    assert len(job.prompts) == {"cloze": 2, "cloze_options": 5}[template]
    for prompt in job.prompts:
        question = QUESTIONS["ab".index(prompt.question_id)]
        for choice, offsets in zip(prompt.order, prompt.offsets, strict=True):
            worth = logp(model, tokenizer, "Answer:", f" {question.choices[choice]}")
            assert offsets == pytest.approx([worth], abs=1e-5)
    sums = Job.of(model, tokenizer, QUESTIONS, Request("gradient", answers="texts", template=template))
    # A run goes on with another number of threads, which may turn the last digit of an offset.
    assert job.settings(1)["prompts"] == sums.settings(1)["prompts"] == prompt_hash(sums.prompts)
    assert job.settings(1)["length"] == "unconditional" != sums.settings(1)["length"]


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_offsets_move_probabilities_and_so_the_scores(asked, backend):
    model, tokenizer = asked
    how = {"answers": "texts", "positions": "answer", "backend": backend, "progress": False}
    plain, gained = (
        nl.attribute(model, tokenizer, QUESTIONS, length=length, **how) for length in (None, "unconditional")
    )
    assert (plain.provenance["length"], gained.provenance["length"]) == ("sum", "unconditional")
    assert not torch.allclose(plain.values, gained.values, rtol=1e-2)
    # Constants have no gradient: a margin over two options is the same with them and without.
    two = QUESTIONS[1:]
    plain, gained = (
        nl.attribute(model, tokenizer, two, objective="margin", length=length, **how)
        for length in (None, "unconditional")
    )
    assert torch.allclose(plain.values, gained.values, rtol=1e-5, atol=1e-7) and plain.values.abs().max() > 1e-3
    pushed = nl.pushes(model, tokenizer, QUESTIONS, answers="texts", length="unconditional", progress=False)
    assert torch.allclose(pushed, nl.pushes(model, tokenizer, QUESTIONS, answers="texts", progress=False), atol=1e-7)
