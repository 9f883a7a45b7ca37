"""The model's own mistakes as wrong choices: never right, never twice, the likeliest, the same for a seed."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm.data.matching import includes, normalise
from neuronllm.engine.writing import Writer, Written
from neuronllm.judging.distractors import _mistakes
from tests.checks import Fuse, blow_after, refused, untouched
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return nl.load_model("demo")


@pytest.fixture(scope="module")
def questions() -> list[nl.Question]:
    """Open questions, with the bundled task's right answers."""
    rows = nl.load_questions(nl.demo_task("facts", "test"))[:12]
    return [nl.Question(row.stem, answer=row.choices[row.answer], id=row.id, subject=row.subject) for row in rows]


def made(demo: tuple[Any, Any], questions: Any, *arguments: Any, **keywords: Any) -> list[nl.Question]:
    return nl.distractors(
        *demo, questions, *arguments, progress=False, **{"max_new_tokens": 2, "template": "cloze", **keywords}
    )


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_wrong_choice_is_right_or_there_twice(demo, questions, seed):
    with untouched(demo[0]):
        found = made(demo, questions, 3, seed)
    by_id = {question.id: question for question in questions}
    assert found and any(len(question.choices) == 4 for question in found)
    for question in found:
        asked = by_id[question.id]
        assert (question.stem, question.subject) == (asked.stem, asked.subject)
        right = question.choices[question.answer]
        wrong = [choice for n, choice in enumerate(question.choices) if n != question.answer]
        assert right == asked.choices[0] and 1 <= len(wrong) <= 3
        for text in wrong:
            assert normalise(text) != normalise(right) and not includes(text, [right]) and not includes(right, [text])
        assert len({normalise(choice) for choice in question.choices}) == len(question.choices)
    assert len({question.answer for question in found}) > 1  # the right one stands at no place of its own


@pytest.mark.filterwarnings("ignore:.*left out")
def test_the_seed_decides_whatever_the_company(demo, questions):
    first = made(demo, questions)
    assert made(demo, questions, batch_size=5) == first
    assert made(demo, questions[::-1]) == first[::-1]
    assert made(demo, questions[3:5]) == [q for q in first if q.id in {questions[3].id, questions[4].id}]
    assert made(demo, questions, seed=1) != first


def test_the_likeliest_mistakes_are_kept(demo, questions):
    """One token an answer: the probabilities of all answers are those of one forward pass."""
    model, tokenizer = demo
    question = questions[0]
    found = made(demo, [question], 25, samples=60, temperature=2.0, max_new_tokens=1)[0]
    with torch.no_grad():
        ids = tokenizer(f"Question: {question.stem}\nAnswer:", return_tensors="pt").input_ids
        logits = model(ids).logits[0, -1].double()
    best: dict[str, float] = {}
    for token, logit in enumerate(logits.tolist()):
        text = tokenizer.decode([token], skip_special_tokens=True).strip()
        best[text] = max(logit, best.get(text, -math.inf))
    wrong = [choice for n, choice in enumerate(found.choices) if n != found.answer]
    values = [best[text] for text in wrong]
    assert len(wrong) > 5 and values == sorted(values, reverse=True)
    few = made(demo, [question], 2, samples=60, temperature=2.0, max_new_tokens=1)[0]
    assert [choice for n, choice in enumerate(few.choices) if n != few.answer] == wrong[:2]


def test_what_is_dropped():
    question = nl.Question("Capital of France?", answer="Paris", answers=("Ville de Paris", "75,000"))
    texts = [
        "Lyon",
        "the LYON.",
        "paris!",
        "It is Paris",
        "I don't know",
        "",
        "ville",
        "$75000.0",
        "Nice\ufffd",
        "Rome",
    ]
    drawn = [Written(text, -float(n), True) for n, text in enumerate(texts)]
    assert _mistakes(question, drawn) == ["Lyon", "Rome"]
    assert _mistakes(question, drawn[::-1]) == ["Lyon", "Rome"]
    drawn += [Written("The Lyon", 1.0, True), Written("Nice, a town that lies", 9.0, False)]
    assert _mistakes(question, drawn) == ["The Lyon", "Rome", "Nice, a town that lies"]  # what had no room comes last


def test_greedy_alone_and_questions_without_mistakes(demo, questions):
    model, tokenizer = demo
    ids = [tokenizer(f"Question: {q.stem}\nAnswer:", return_tensors="pt").input_ids for q in questions]
    with torch.no_grad():
        greedy = [tokenizer.decode(model(row).logits[0, -1].argmax()).strip() for row in ids]
    right = [q.choices[0] == text for q, text in zip(questions, greedy, strict=True)]
    assert 0 < sum(right) < len(right)
    with pytest.warns(UserWarning, match=f"^{sum(right)} of {len(right)} questions are left out") as caught:
        found = made(demo, questions, samples=0, max_new_tokens=1)
    assert len(caught) == 1
    expected = [(q.id, text) for q, text, good in zip(questions, greedy, right, strict=True) if not good]
    assert [(q.id, q.choices[1 - q.answer]) for q in found] == expected
    knows = [q for q, good in zip(questions, right, strict=True) if good]
    with refused("no mistake", str(len(knows)), "samples"):
        made(demo, knows, samples=0, max_new_tokens=1)


def test_wrong_choices_that_were_there_give_way(demo):
    given = nl.load_questions(nl.demo_task("facts", "test"))[:4]
    before = copy.deepcopy(given)
    found = made(demo, given, 1, seed=3)
    assert given == before
    assert all(len(question.choices) == 2 for question in found)


@pytest.mark.filterwarnings("ignore:.*left out")
def test_mistakes_that_are_sentences_are_warned_of(demo, questions, monkeypatch):
    def answers(said: str) -> Any:
        return lambda *_: [Written(said.format(n), -1.0, True) for n in range(len(questions))]

    monkeypatch.setattr(Writer, "written", answers("It is number {}"))
    with pytest.warns(UserWarning, match=r"mistakes have 4 words and the right answers 1 \(medians\).*template"):
        made(demo, questions, samples=0)
    monkeypatch.setattr(Writer, "written", answers("Is number {}"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(demo, questions, samples=0)


def test_the_whole_way_from_open_questions(demo, questions, tmp_path):
    found = made(demo, questions[:6])
    nl.save_questions(tmp_path / "made.jsonl", found)
    assert nl.load_questions(tmp_path / "made.jsonl") == found


def test_the_model_is_left_as_it_was_after_an_exception():
    tokenizer = byte_level()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256)
    blow_after(model, 5)
    with untouched(model), pytest.raises(Fuse):
        nl.distractors(model, tokenizer, [nl.Question("Why?", answer="so")], progress=False)


@pytest.mark.parametrize(
    ("keywords", "parts"),
    [
        ({"n": 0}, ["n=0"]),
        ({"n": 2.5}, ["n=2.5"]),
        ({"samples": -1}, ["samples=-1"]),
        ({"temperature": 0}, ["temperature=0"]),
        ({"temperature": math.nan}, ["temperature=nan"]),
        ({"max_new_tokens": 0}, ["max_new_tokens=0"]),
        ({"questions": "file.jsonl"}, ["questions", "nl.load_questions"]),
        ({"questions": [nl.Prompt([3], [[4]], 0)]}, ["questions", "Question"]),
        ({"questions": []}, ["questions", "empty"]),
        ({"tokenizer": None}, ["tokenizer=None"]),
    ],
)
def test_bad_arguments_are_one_line(demo, questions, keywords, parts):
    model, tokenizer = demo
    with untouched(model), refused(*parts):
        nl.distractors(
            **{"model": model, "tokenizer": tokenizer, "questions": questions, "progress": False, **keywords}
        )
