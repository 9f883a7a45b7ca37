"""The judgement of what a model writes, against texts and shares worked out here, one prompt at a time."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.judging.controls import random_like
from neuronllm.judging.written import Key
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.neurons import NeuronSet
from tests.checks import Fuse, blow_after, lived_in, refused, untouched
from tests.tiny import VOCABULARY, tiny
from tests.tiny_tokenizers import numbered

NEW = 6
EDITED = {3: "good", 11: "good", 20: "bad", 30: "bad", 39: "good", 50: "bad"}
FACTORS = {"good": 6.0, "bad": -3.0}


def prompts_of(texts: list[tuple[str, str]], seed: int = 2) -> list[nl.Prompt]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 24, (len(texts),), generator=generator).tolist()
    rows = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [nl.Prompt(ids, [[3], [4]], 1, question_id=f"q{n}", texts=texts[n]) for n, ids in enumerate(rows)]


def written_to(model: Any, tokenizer: Any, prompts: list[nl.Prompt], new: int = NEW) -> list[str]:
    """What the model writes greedily, by one call of generate a prompt."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt.input_ids])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
        )
        lines = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).split("\n")
        texts.append(next((line.strip() for line in lines if line.strip()), ""))
    return texts


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return numbered(VOCABULARY)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", torch.float32)


@pytest.fixture(scope="module")
def prompts(model, tokenizer) -> list[nl.Prompt]:
    """Twelve prompts, a third each with: all that the model writes, its second word, and something else accepted."""
    plain = written_to(model, tokenizer, prompts_of([("no", "yes")] * 12))
    accepted = [(text, (text.split() * 2)[1], "nowhere")[n % 3] if text else "yes" for n, text in enumerate(plain)]
    return prompts_of([("no", text) for text in accepted])


def some_neurons(model: Any, **provenance: Any) -> NeuronSet:
    ids, role = torch.tensor(list(EDITED)), np.array(list(EDITED.values()))
    return NeuronSet(ids, role, torch.zeros(len(ids)), Anatomy.of(model), provenance)


def shares(texts: list[str], prompts: list[nl.Prompt]) -> dict[str, float]:
    """Of prompts whose accepted texts are words of a tiny tokenizer."""
    held = [f" {p.texts[1]} " in f" {text} " for text, p in zip(texts, prompts, strict=True)]
    return {
        "inclusion": float(np.mean(held)),
        "exact": float(np.mean([text == p.texts[1] for text, p in zip(texts, prompts, strict=True)])),
        "wrong": float(np.mean([bool(text) and not good for text, good in zip(texts, held, strict=True)])),
        "abstained": 0.0,
        "empty": float(np.mean([not text for text in texts])),
    }


def evaluate(model: Any, tokenizer: Any, prompts: Any, *arguments: Any, **keywords: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few controls
        return nl.evaluate(
            model,
            tokenizer,
            prompts,
            *arguments,
            answers="generate",
            progress=False,
            **{"max_new_tokens": NEW, **keywords},
        )


def test_without_neurons_the_model_is_described(model, tokenizer, prompts):
    with untouched(model):
        report = evaluate(model, tokenizer, prompts)
    texts = written_to(model, tokenizer, prompts)
    expected = shares(texts, prompts)
    assert report.written == texts and report.questions == 12 and 0 < expected["exact"] < expected["inclusion"] < 1
    for name, value in expected.items():
        assert getattr(report, name) == pytest.approx(value)
    low, high = report.ci["base"]["inclusion"]
    assert low <= report.inclusion <= high
    assert report.base is report.flips is report.changed is report.controls is report.mcnemar is None
    assert [each["id"] for each in report.written_to] == [f"q{n}" for n in range(12)]
    assert report.written_to[0]["accepted"] == [prompts[0].texts[1]]
    assert json.loads(json.dumps(report.to_dict()))["written"] == texts
    assert "12 questions" in str(report) and texts[0][:20] in str(report)


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_every_number_of_an_edit(model, tokenizer, prompts, positions):
    neurons = some_neurons(model)
    with untouched(model):
        report = evaluate(model, tokenizer, prompts, neurons, **FACTORS, positions=positions, controls=3, seed=5)
    before = written_to(model, tokenizer, prompts)
    with neurons.apply(model, **FACTORS, positions=positions):
        after = written_to(model, tokenizer, prompts)
    was, now = shares(before, prompts), shares(after, prompts)
    assert report.written == after != before
    assert report.base == pytest.approx(was)
    for name, value in now.items():
        assert getattr(report, name) == pytest.approx(value)
    held = [
        (f" {p.texts[1]} " in f" {one} ", f" {p.texts[1]} " in f" {other} ")
        for p, one, other in zip(prompts, before, after, strict=True)
    ]
    lost, won = held.count((True, False)), held.count((False, True))
    assert report.flips == {"right_to_wrong": lost, "wrong_to_right": won} and lost
    assert [each["id"] for each in report.flipped["right_to_wrong"]] == [
        f"q{n}" for n, pair in enumerate(held) if pair == (True, False)
    ]
    tail = sum(math.comb(lost + won, n) for n in range(min(lost, won) + 1))
    assert report.mcnemar == pytest.approx(min(1.0, 2 * tail / 2 ** (lost + won)))
    changed = [
        (f"q{n}", *pair, *held[n]) for n, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]
    ]
    names = ("id", "before", "after", "right_before", "right_after")
    assert [tuple(each[name] for name in names) for each in report.changed] == changed
    low, high = report.ci["change"]["inclusion"]
    assert low <= now["inclusion"] - was["inclusion"] <= high

    generator, drawn = torch.Generator().manual_seed(5), []
    for _ in range(3):
        ids = random_like(neurons.ids, neurons.anatomy, generator)
        other = NeuronSet(ids, neurons.role, torch.zeros(len(ids)), neurons.anatomy)
        with other.apply(model, **FACTORS, positions=positions):
            drawn.append(shares(written_to(model, tokenizer, prompts), prompts))
    assert report.controls["sets"] == 3
    for name, value in now.items():
        values = [each[name] for each in drawn]
        assert report.controls[name]["p50"] == pytest.approx(np.median(values))
        below = np.mean([100 * (v < value - 1e-9) + 50 * (abs(v - value) <= 1e-9) for v in values])
        assert report.controls[name]["percentile_of_edit"] == pytest.approx(below)
    printed = str(report)
    for part in ("McNemar", "3 random sets", f"answers changed: {len(changed)} of 12", f"positions {positions}"):
        assert part in printed
    first = next(each for each in report.changed if each["right_before"] != each["right_after"])
    assert f"  {first['id']}: " in printed and first["after"][:15] in printed


def test_the_four_outcomes_share_all_answers():
    texts = ["Paris", "It is Paris.", "I don't know", "not sure, Paris?", "", "Lyon", "Pass!"]
    prompts = [nl.Prompt([3], [[4]], 0, texts=("paris",)) for _ in texts]
    for own, abstained in ((None, [2]), (["pass"], [2, 6])):
        marks = Key(prompts, prompts, own).marks(texts)
        assert marks["inclusion"].nonzero()[0].tolist() == [0, 1, 3]
        assert marks["exact"].nonzero()[0].tolist() == [0]
        assert marks["abstained"].nonzero()[0].tolist() == abstained
        assert marks["empty"].nonzero()[0].tolist() == [4]
        assert marks["wrong"].nonzero()[0].tolist() == [n for n in (5, 6) if n not in abstained]


def test_variants_count_by_their_mean():
    prompts = [nl.Prompt([3, n], [[4]], 0, question_id=name, texts=("paris",)) for n, name in enumerate("aaabb")]
    marks = Key(prompts, prompts, None).marks(["Paris", "Lyon", "Paris, France", "Lyon", "I don't know"])
    assert marks["inclusion"].tolist() == pytest.approx([2 / 3, 0]) and marks["wrong"].tolist() == [1 / 3, 1 / 2]


def test_every_accepted_answer_of_a_question_counts():
    model, tokenizer = nl.load_model("demo")
    stems = ["What does Maken eat?", "What does Fabus live by?", "What does Risus eat?"]
    ids = [tokenizer(f"Question: {stem}\nAnswer:").input_ids for stem in stems]
    first = [text.split()[0] for text in written_to(model, tokenizer, [nl.Prompt(i, [[3]], 0) for i in ids])]
    questions = [
        nl.Question(stems[0], answer=first[0].upper()),
        nl.Question(stems[1], answer="never", answers=("nowhere", f"The {first[1]}")),
        nl.Question(stems[2], ("nothing", "never"), 1),
    ]
    with untouched(model):
        report = evaluate(model, tokenizer, questions, template="cloze")
    assert report.inclusion == pytest.approx(2 / 3) and report.exact == 0
    assert report.written_to[1]["accepted"] == ["never", "nowhere", f"The {first[1]}"]
    assert report.written_to[1]["question"] == stems[1]
    one_token = evaluate(model, tokenizer, questions, template="cloze", max_new_tokens=1)
    assert one_token.exact == one_token.inclusion == pytest.approx(2 / 3)


def test_a_set_found_with_letters_is_not_asked_for_letters(model, tokenizer):
    demo, demo_tokenizer = nl.load_model("demo")
    questions = nl.load_questions(nl.demo_task("facts", "test"))[:4]
    ids = torch.tensor([5, 700])
    found = NeuronSet(ids, np.array(["good", "bad"]), torch.zeros(2), Anatomy.of(demo), {"template": "plain"})
    plain = evaluate(demo, demo_tokenizer, questions)
    assert evaluate(demo, demo_tokenizer, questions, found, good=1.0, controls=0).written == plain.written
    asked = evaluate(demo, demo_tokenizer, questions, found, good=1.0, controls=0, template="plain").written
    assert asked == evaluate(demo, demo_tokenizer, questions, template="plain").written != plain.written


def test_a_model_that_ends_at_once_is_remarked_on(tokenizer, prompts):
    model = tiny("llama", torch.float32)
    model.generation_config.eos_token_id = list(range(VOCABULARY))
    with pytest.warns(UserWarning, match="nothing at all in 100% of its answers.*cloze_short") as caught:
        report = nl.evaluate(model, tokenizer, prompts, answers="generate", progress=False)
    assert caught[0].filename == __file__ and report.empty == 1.0 and "nothing written   1.000" in str(report)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nl.evaluate(tiny("llama", torch.float32), tokenizer, prompts, answers="generate", progress=False)


def test_no_edit_at_all_changes_no_answer(model, tokenizer, prompts):
    report = evaluate(model, tokenizer, prompts, some_neurons(model), good=1.0, bad=1.0, controls=2)
    assert report.changed == [] and report.flips == {"right_to_wrong": 0, "wrong_to_right": 0}
    assert report.mcnemar == 1.0 and "answers changed: 0 of 12" in str(report)


def test_a_model_in_use_is_left_as_it_was(tokenizer, prompts):
    model = lived_in(tiny("llama", torch.float32))
    expected = evaluate(tiny("llama", torch.float32), tokenizer, prompts, some_neurons(model), **FACTORS, controls=1)
    with untouched(model):
        report = evaluate(model, tokenizer, prompts, some_neurons(model), **FACTORS, controls=1)
    assert report.to_dict() == expected.to_dict()
    for calls in (0, 8, 15):
        broken = lived_in(tiny("llama", torch.float32))
        blow_after(broken, calls)
        with untouched(broken), pytest.raises(Fuse):
            evaluate(broken, tokenizer, prompts, some_neurons(broken), **FACTORS, controls=1)


@pytest.mark.parametrize(
    ("keywords", "parts"),
    [
        ({"tokenizer": None}, ["tokenizer=None"]),
        ({"abstentions": "pass"}, ["abstentions='pass'", "list"]),
        ({"abstentions": ["..."]}, ["abstentions", "'...'", "empty"]),
        ({"max_new_tokens": 0}, ["max_new_tokens=0"]),
        ({"questions": []}, ["empty"]),
        ({"questions": [nl.Prompt([3], [[4]], 0, question_id="q7")]}, ["'q7'", "texts="]),
        ({"questions": [nl.Prompt([3], [[4]], 0, question_id="q7", texts=("!?",))]}, ["q7", "'!?'", "empty"]),
        ({"questions": [nl.Question("Why?", answer="The", id="q8")]}, ["q8", "'The'", "empty"]),
        ({"unrelated": [nl.Question("Why?", answer="so")], "neurons": True, "good": 2.0}, ["unrelated", "generate"]),
        ({"answers": "letters", "abstentions": ["pass"]}, ["abstentions", "generate"]),
        ({"answers": "speech"}, ["answers='speech'", "generate"]),
    ],
)
def test_bad_arguments_are_one_line(model, tokenizer, prompts, keywords, parts):
    given = {"tokenizer": tokenizer, "questions": prompts, "answers": "generate", **keywords}
    if given.get("neurons"):
        given["neurons"] = some_neurons(model)
    with untouched(model), refused(*parts):
        nl.evaluate(model, progress=False, **given)
