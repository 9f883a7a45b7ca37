"""Answers in texts count as lm-eval counts them: log-likelihoods, accuracy, and accuracy by characters.

Prompts whose end the tokenizer joins with an answer are left out and counted: there lm-eval scores what is left of the
answer behind the length of the prompt, and we begin where all of a prompt's answers share what stands before them.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "neuronllm[lm-eval]"')

import torch

import neuronllm as nl
from neuronllm.data.rendering import render
from neuronllm.engine.asking import Asker
from tests import tiny_tokenizers
from tests.harness import evaluated, log_likelihoods, write_task
from tests.tiny import tiny

TOKENIZERS = {
    "byte level": tiny_tokenizers.byte_level,
    "prefix space": tiny_tokenizers.metaspace,
    "byte fallback": tiny_tokenizers.byte_fallback,
}
ANSWERS = ["A", "sky", "New York", "São Tomé", "Washington, D.C.", "B", "letter", "The Answer: B", "北京", "x y z"]
WORDINGS = ("Question: {question}\nAnswer:", "{question}", "{question} It is the letter")


def questions(count: int = 40) -> list[nl.Question]:
    """Of two to four choices of one letter to several words; every third stem ends in a full stop."""
    stems = [f"Which is the answer of number {n}{'.' if n % 3 == 0 else '?'}" for n in range(count)]
    choices = [tuple(ANSWERS[(n + k * (1 + 2 * (n % 2))) % 10] for k in range(2 + n % 3)) for n in range(count)]
    return [nl.Question(*parts, n % 2, id=f"q{n}") for n, parts in enumerate(zip(stems, choices, strict=True))]


def made(kind: str) -> tuple[Any, Any]:
    tokenizer = TOKENIZERS[kind]()
    tokenizer.pad_token = tokenizer.eos_token
    return tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256), tokenizer


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("wording", WORDINGS)
def test_log_likelihoods_are_those_of_lm_eval(kind: str, wording: str, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = made(kind)
    asked = questions()
    contexts = [wording.format(question=question.stem) for question in asked]
    ids = [tokenizer(context)["input_ids"] for context in contexts]
    moved = [
        any(tokenizer(f"{context} {choice}")["input_ids"][: len(before)] != before for choice in question.choices)
        for question, context, before in zip(asked, contexts, ids, strict=True)
    ]
    # Where no word is cut off beforehand, ". " is one token.
    assert sum(moved) == (14 if (kind, wording) == ("byte fallback", "{question}") else 0)
    with caplog.at_level(logging.INFO, logger="neuronllm"):
        prompts = render(tokenizer, asked, "none", wording, answers="texts")
    assert [message.split(":")[0] for message in caplog.messages] == (["14 of 40 prompts"] if any(moved) else [])

    # A length of 1 has a single token scored by its log-probability, too, and not by its logit.
    prompts = [replace(p, lengths=[[1.0] for _ in p.option_ids]) if p.one_token else p for p in prompts]
    ours = Asker(model, prompts).scores().tolist()
    pairs = [(c, f" {choice}") for c, question in zip(contexts, asked, strict=True) for choice in question.choices]
    theirs = iter(log_likelihoods(model, tokenizer, pairs))
    for question, row, left_out in zip(asked, ours, moved, strict=True):
        expected = [next(theirs)[0] for _ in question.choices]
        if not left_out:
            assert row[: len(expected)] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_accuracies_of_a_local_task_are_those_of_lm_eval(kind: str, tmp_path: Any) -> None:
    """As it is and under an edit, by the sum and by characters."""
    model, tokenizer = made(kind)
    asked = questions()
    rows = [{"id": q.id, "question": q.stem, "choices": q.choices, "answer": q.answer} for q in asked]
    task = write_task(tmp_path, "local", rows, "{{choices}}")
    loaded = nl.load_questions(tmp_path / "local.jsonl")
    assert loaded == asked
    scores = nl.attribute(model, tokenizer, loaded, positions="all", answers="texts", progress=False)
    neurons = scores.find(good=20, bad=20)

    def ours(length: str, *edited: Any) -> float:
        asking = {"answers": "texts", "length": length, "template": "{question}\nAnswer:", "controls": 0}
        return nl.evaluate(model, tokenizer, loaded, *edited, **asking, progress=False).accuracy

    plain, _ = evaluated(model, tokenizer, task, 8)
    with neurons.apply(model, good=-2.0, bad=4.0):
        edited, _ = evaluated(model, tokenizer, task, 8)
    assert {"acc,none": ours("sum"), "acc_norm,none": ours("characters")} == pytest.approx(plain)
    change = (neurons, None, -2.0, 4.0)
    assert {"acc,none": ours("sum", *change), "acc_norm,none": ours("characters", *change)} == pytest.approx(edited)
    assert plain["acc,none"] != plain["acc_norm,none"], "the two must be told apart"
    assert edited != plain, "the accuracies must feel the edit"
