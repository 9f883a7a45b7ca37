"""A judgement on questions that the neurons were found, verified, learned or tuned on says so, on others not."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm.data.seen import DIGITS, digests, met_before, packed
from neuronllm.results.neurons import NeuronSet
from tests.checks import quiz
from tests.test_tune import a_set
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

LANDS = ["France", "Spain", "Italy", "Norway", "Chad", "Peru", "Oman", "Cuba"]


def question(first: int, second: int, right: int, id: str, stem: str = "More people, {} or {}?") -> nl.Question:
    pair = (LANDS[first], LANDS[second])
    return nl.Question(stem.format(*pair), pair, right, id=id)


SEARCH = [question(n, n + 1, n % 2, f"s{n}") for n in range(6)]
FLIPPED = question(1, 0, 1, "flipped")  # SEARCH[0], the other way round
LOUD = question(1, 2, 1, "loud", "MORE people,  {} or {}")  # SEARCH[1]
WRONG = question(1, 0, 0, "wrong")  # another answer: another question
OTHERS = [question(n, n + 2, n % 2, f"o{n}") for n in range(4)]


def said(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught if "kept apart" in str(each.message)]


def test_digits_are_of_what_is_asked() -> None:
    assert digests([FLIPPED, LOUD]) == digests(SEARCH[:2])
    assert len(set(digests([*SEARCH, *OTHERS, WRONG]))) == 11
    assert [len(each) for each in digests(SEARCH)] == [DIGITS] * 6
    assert packed(SEARCH) == packed([*reversed(SEARCH), FLIPPED]) and len(packed(SEARCH)) == 6 * DIGITS
    prompts = quiz(4)
    assert len(prompts) > len(digests(prompts)) == 4 == len(set(digests(prompts)))


def test_stages_and_unions() -> None:
    one, two = {"seen": packed(SEARCH[:2])}, {"tuned": {"seen": packed(SEARCH[2:3])}, "seen": packed(OTHERS)}
    assert met_before(one, [*SEARCH, FLIPPED, FLIPPED]) == (4, ["found"])
    assert met_before({"union": [one, two]}, SEARCH) == (3, ["found", "tuned"])
    assert met_before({"union": [one, {"union": [two]}]}, [WRONG]) == (0, [])
    assert met_before({"learned": {"goal": "enhance"}, "tuned": None}, SEARCH) == (0, [])


@pytest.fixture(scope="module")
def asked() -> tuple[Any, Any, NeuronSet]:
    tokenizer = byte_level()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a tiny model leans on an option
        found = nl.attribute(model, tokenizer, SEARCH, orders="none", progress=False).find(3, 3)
    return model, tokenizer, found


def test_what_was_searched_on_is_named_when_it_is_judged_on(asked: tuple[Any, Any, NeuronSet], tmp_path: Path) -> None:
    model, tokenizer, found = asked
    found.save_pretrained(tmp_path / "set")

    def judged(questions: Any, neurons: Any = found, **more: Any) -> list[str]:
        given = {"mode": "enhance", "controls": 0, "progress": False} | more
        return said(lambda: nl.evaluate(model, tokenizer, questions, neurons, **given))

    twice = [FLIPPED, LOUD, replace(LOUD, id="again"), WRONG, *OTHERS]
    assert met_before(NeuronSet.from_pretrained(tmp_path / "set").provenance, twice) == (3, ["found"])
    assert judged(twice, found | a_set(model, good=[1])) == [
        "questions: 3 of 8 are among those that the neurons were found on, so they say little of others: judge on "
        "questions that were kept apart"
    ]
    assert judged([*OTHERS, WRONG]) == [] and len(judged(SEARCH, answers="generate", max_new_tokens=1)) == 1
    assert judged(SEARCH, None, mode=None) == []


def test_every_stage_says_which_questions_it_saw(asked: tuple[Any, Any, NeuronSet]) -> None:
    model, tokenizer, found = asked
    few = {"progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tuned = nl.tune(model, tokenizer, found, OTHERS[:2], **few)
        verified = nl.verify(model, tokenizer, found, OTHERS[:3], **few)
        learn = {"steps": 1, "seeds": 1, "margin": None, "retain_weight": 0, **few}
        learned = nl.learn(model, tokenizer, OTHERS[:1], OTHERS[1:4], neurons=found, **learn)
        anew = nl.learn(model, tokenizer, OTHERS[:1], OTHERS[1:4], **learn)
    assert met_before(tuned.provenance, OTHERS) == (2, ["tuned"])
    assert met_before(verified.provenance, OTHERS) == (3, ["verified"])
    assert met_before(learned.provenance, [*OTHERS, *SEARCH]) == (10, ["found", "learned"])
    assert met_before(anew.provenance, [*OTHERS, *SEARCH]) == (4, ["learned"])


def test_given_prompts_go_by_their_tokens() -> None:
    model, prompts = tiny("llama"), quiz(6)
    found = nl.attribute(model, None, prompts[:9], "gradient", positions="answer", progress=False).find(2, 2)
    (line,) = said(lambda: nl.evaluate(model, None, prompts, found, "enhance", controls=0, progress=False))
    assert line.startswith("questions: 3 of 6 are among")  # of two, three and four variants
    assert said(lambda: nl.evaluate(model, None, quiz(4, seed=9), found, "enhance", controls=0, progress=False)) == []
