"""In what form questions are answered: what is asked for, what prompts and neuron sets say, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.attribution.job import Job
from neuronllm.attribution.request import Request
from neuronllm.data.forms import Form, check_choice, check_unworded, form_of, found_template, option_name, wording_of
from neuronllm.data.prompts import Prompt
from neuronllm.data.questions import Wording
from neuronllm.judging.asking import Asking
from neuronllm.methods import get_method
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.neurons import NeuronSet
from neuronllm.runs.provenance import prompt_hash
from tests.checks import quiz, refused
from tests.tiny import random_prompts, tiny
from tests.tiny_tokenizers import byte_level

CLOSED = [nl.Question("Which is a colour?", ("red", "seven"), answer=0)]
OPEN = [nl.Question("What is the capital of France?", answer="Paris")]
LETTERS = quiz(2)
TEXTS = [Prompt(p.input_ids, p.option_ids, p.answer, texts=tuple(map(str, range(len(p.option_ids))))) for p in LETTERS]
LONG = [Prompt([5, 9], [[[7, 8]], [[9]]], 0, lengths=[[2], [1]])]


@pytest.mark.parametrize(
    ("questions", "found", "expected"),
    [
        (CLOSED, None, ("letters", "sum")),
        (OPEN, None, ("texts", "sum")),
        ([*CLOSED, *OPEN], None, ("texts", "sum")),
        (LETTERS, None, ("letters", "sum")),
        (TEXTS, None, ("texts", "sum")),
        (LONG, None, ("texts", "own")),
        (CLOSED, {"answers": "texts", "length": "tokens"}, ("texts", "tokens")),
        (CLOSED, {"answers": "letters", "length": "sum"}, ("letters", "sum")),
        (CLOSED, {"answers": "texts", "length": "own"}, ("texts", "sum")),
        (CLOSED, {"method": "gradient"}, ("letters", "sum")),
        (OPEN, {"answers": "letters", "length": "sum"}, ("texts", "sum")),
        (LETTERS, {"answers": "texts", "length": "tokens"}, ("letters", "sum")),
        (CLOSED, {"answers": "letters", "tuned": {"answers": "texts", "length": "tokens"}}, ("texts", "tokens")),
        (CLOSED, {"union": [{"answers": "texts"}, {"answers": "texts"}]}, ("texts", "sum")),
        (CLOSED, {"union": [{"answers": "texts"}, {"answers": "letters"}]}, ("letters", "sum")),
        ((), None, ("letters", "sum")),
    ],
)
def test_the_form_that_nobody_asks_for(questions, found, expected):
    assert form_of(questions, found=found) == expected


def test_what_is_asked_for_wins():
    assert form_of(CLOSED, "texts", "characters", {"answers": "letters", "length": "sum"}) == ("texts", "characters")
    assert form_of(CLOSED, "letters", None, {"answers": "texts", "length": "tokens"}) == ("letters", "sum")
    assert form_of(OPEN, None, "unconditional") == ("texts", "unconditional")
    assert form_of(TEXTS, "texts") == ("texts", "sum")
    assert Form("texts", "own").rendered == {"answers": "texts", "length": "sum"}


@pytest.mark.parametrize(
    ("questions", "answers", "length", "parts"),
    [
        (CLOSED, "words", None, ["answers='words'", "letters, texts"]),
        (CLOSED, None, "long", ["length='long'", "sum, tokens, characters, bytes, unconditional"]),
        (CLOSED, "letters", "tokens", ['length="tokens"', 'answers="texts"']),
        (CLOSED, None, "tokens", ['length="tokens"', 'answers="texts"']),
        ([*CLOSED, *OPEN], "letters", None, ['answers="letters"', "question 1", "nl.distractors"]),
        ([nl.Question("Where?", answer="there", id="here")], "letters", None, ["question 'here'"]),
        ([*LETTERS, *TEXTS], None, None, ["questions:", "letters", "texts="]),
        (LETTERS, "texts", None, ['answers="texts"', "the given prompts are answered in letters"]),
        (TEXTS, "letters", None, ['answers="letters"', "in texts"]),
        (TEXTS, "texts", "tokens", ['length="tokens"', "of their own"]),
    ],
)
def test_contradictions_are_one_line(questions, answers, length, parts):
    with refused(*parts):
        form_of(questions, answers, length)
    model = tiny("llama")
    for verb in (nl.attribute, nl.evaluate, nl.pushes):
        with refused(*parts):
            verb(model, None, questions, answers=answers, length=length, progress=False)
    neurons = NeuronSet(torch.tensor([3]), np.array(["good"]), torch.ones(1), Anatomy.of(model))
    with refused(*parts):
        nl.tune(model, None, neurons, questions, answers=answers, length=length, progress=False)
    with refused(*parts):
        nl.dry_run(model, None, questions, answers=answers, length=length)


def test_the_wording_goes_by_the_form():
    assert wording_of("letters", None) is None and wording_of("letters", "chat") == "chat"
    assert (
        wording_of("letters", None, "plain") == "plain" and wording_of("texts", "mine {question}") == "mine {question}"
    )
    assert wording_of("texts", None) == "cloze" and wording_of("texts", "chat") == "chat:cloze"
    found = {"template": "plain"}
    assert found_template(found, "letters") == "plain" and found_template(found, "texts") is None
    assert found_template(found | {"answers": "texts"}, "texts") == "plain"
    assert [option_name(form, 1) for form in ("letters", "texts")] == ["B", "2"] and option_name("letters", 30) == "31"


@pytest.mark.parametrize(
    ("method", "letters", "texts"),
    [
        ("gradient", ("default", "rotate"), "cloze"),
        ("qrnca", (("default", "plain", "brief"), "none"), ("cloze", "cloze_plain", "cloze_brief")),
        ("knowledge", ("default", "rotate"), ("cloze", "cloze_plain", "cloze_brief")),
        ("random", ("default", "rotate"), "cloze"),
    ],
)
def test_every_method_has_a_wording_for_letters_and_one_for_texts(method, letters, texts):
    asked = Request(method).checked(CLOSED)
    assert (asked.template, asked.orders, asked.answers, asked.length) == (*letters, "letters", "sum")
    asked = Request(method).checked(OPEN)
    assert (asked.template, asked.orders, asked.answers, asked.length) == (texts, None, "texts", "sum")
    asked = Request(method, orders="none", template="plain", answers="texts", length="tokens").checked(CLOSED)
    assert (asked.template, asked.orders, asked.length) == ("plain", "none", "tokens")


def test_neurons_are_judged_in_the_form_they_were_found_with():
    def asking(found, answers=None, template=None, questions=CLOSED):
        return Asking.of(questions, found, "none", template, answers, None)

    texts = {"answers": "texts", "length": "tokens", "template": "mine {question}"}
    assert asking(texts) == (("texts", "tokens"), "none", "mine {question}")
    assert asking(texts, answers="letters") == (("letters", "sum"), "none", None)
    assert asking({"template": "plain"}) == (("letters", "sum"), "none", "plain")
    assert asking({"template": "plain"}, questions=OPEN) == (("texts", "sum"), "none", "cloze")
    assert asking({"template": "plain"}, answers="texts").template == "cloze"
    assert asking(texts, template="cloze_plain").template == "cloze_plain"


@pytest.mark.parametrize("verb", [nl.evaluate, nl.tune, nl.attribute])
def test_a_single_option_cannot_be_judged(verb):
    model, alone = tiny("llama"), [*quiz(1), Prompt([5, 9], [[11]], 0, question_id="alone")]
    neurons = NeuronSet(torch.tensor([3]), np.array(["good"]), torch.ones(1), Anatomy.of(model))
    with refused("question 'alone' has only one option", "nl.distractors"):
        if verb is nl.tune:
            verb(model, None, neurons, alone, progress=False)
        else:
            verb(model, None, alone, progress=False)


def test_methods_that_ask_who_is_right_need_two_options():
    model, alone = tiny("llama"), [Prompt([5, 9], [[11]], 0)]
    with refused("method 'contrast': question 0 has only one option"):
        nl.attribute(model, None, alone, "contrast", progress=False)
    with refused('items="wrong": question 0 has only one option'):
        nl.attribute(model, None, alone, "logprob", objective="p_vocab", items="wrong", progress=False)
    check_choice(quiz(3), "nothing")


def test_provenance_and_settings_say_the_form(tmp_path):
    model = tiny("llama")
    for prompts, form in ((LETTERS, "letters"), (TEXTS, "texts")):
        scores = nl.attribute(model, None, prompts, "logprob", progress=False)
        assert (scores.provenance["answers"], scores.provenance["length"]) == (form, "sum")
        assert scores.provenance.get("reads") == {"letters": None, "texts": "first answer token"}[form]
        assert scores.find(2, 2).provenance["answers"] == form
        settings = Job.of(model, None, prompts, Request("gradient")).settings(1)
        assert (settings["answers"], settings["length"]) == (form, "sum")
        assert "reads" not in nl.attribute(model, None, prompts, progress=False).provenance
    assert get_method("logprob").reads in str(nl.dry_run(model, None, TEXTS, "logprob"))
    assert "answered in texts of 1 to 1 tokens, length sum" in nl.dry_run(model, None, TEXTS)


def test_lengths_and_offsets_decide_bytes():
    (prompt, *_) = random_prompts(1)
    plain = Prompt(prompt.input_ids, prompt.option_ids, 0)
    ones = [[1.0, 1.0]] * 3
    other = [Prompt(prompt.input_ids, prompt.option_ids, 0, **{name: ones}) for name in ("lengths", "offsets")]
    assert len({prompt_hash([p]) for p in (plain, *other)}) == 3


def test_a_tuned_set_says_in_what_form_it_was_tuned():
    model = tiny("llama")
    neurons = NeuronSet(torch.tensor([3]), np.array(["bad"]), torch.ones(1), Anatomy.of(model), {"answers": "letters"})
    tuned = nl.tune(model, None, neurons, TEXTS, ks=[1], factors=[0.5], progress=False)
    assert (tuned.tuned["answers"], tuned.tuned["length"]) == ("texts", "sum")
    assert form_of(CLOSED, found=tuned.provenance).answers == "texts"


WORDED = [
    nl.Question(f"which {n}?", ("red", "blue"), n % 2, id=f"w{n}", wording=Wording(f"which {n}?", " ", ("red", "blue")))
    for n in range(6)
]


@pytest.mark.parametrize("given", ["prompts", "own words"])
def test_a_template_or_orders_beside_questions_that_are_worded(given):
    tokenizer = byte_level()
    model = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=256)
    questions = quiz(6, variants=False) if given == "prompts" else WORDED
    whose = "given prompts are worded" if given == "prompts" else "questions in words of their own (nl.load_task) are"
    neurons = NeuronSet(torch.tensor([3]), np.array(["bad"]), torch.ones(1), Anatomy.of(model), {"template": "plain"})
    asked = (model, tokenizer, questions)
    quick = {"steps": 1, "seeds": 1, "margin": None, "retain_weight": 0, "progress": False}
    verbs = {
        "attribute": lambda **how: nl.attribute(*asked, "gradient", progress=False, **how),
        "dry_run": lambda **how: nl.dry_run(*asked, **how),
        "evaluate": lambda **how: nl.evaluate(*asked, progress=False, **how),
        "written": lambda **how: nl.evaluate(*asked, answers="generate", progress=False, **how),
        "tune": lambda **how: nl.tune(model, tokenizer, neurons, questions, ks=[1], progress=False, **how),
        "learn": lambda **how: nl.learn(*asked, neurons=neurons, **quick, **how),
        "verify": lambda **how: nl.verify(model, tokenizer, neurons, questions, margin=0, progress=False, **how),
        "pushes": lambda **how: nl.pushes(*asked, progress=False, **how),
    }
    for verb in verbs.values():
        with refused("template='brief'", whose, "leave it out (--template)"):
            verb(template="brief")
        with refused("orders='rotate'", whose, "leave it out (--orders)"):
            verb(orders="rotate")
    with refused("template='brief'", whose):
        nl.letter_neurons(*asked, template="brief", progress=False)
    for name in ("attribute", "evaluate", "tune", "learn", "verify"):  # what a set was found with is no demand
        assert verbs[name](orders="none") is not None


def test_only_what_is_asked_for_is_refused():
    check_unworded([nl.Question("Which?", ("red", "blue"), 0), *quiz(1)][:1], "plain", "rotate")
    check_unworded(quiz(2), None, "none")
