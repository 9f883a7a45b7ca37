"""The applications on the bundled model, answered in letters: the same numbers as `nl.evaluate` has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import neuronllm as nl
from tests.checks import untouched

TASKS = ("facts", "ordering")


@pytest.fixture(scope="module")
def demo():
    return nl.load_model("demo", dtype=torch.float32)


def questions(task: str, split: str, count: int) -> list[nl.Question]:
    return [replace(q, subject=task) for q in nl.load_questions(nl.demo_task(task, split))[:count]]


@pytest.mark.slow
def test_an_edited_fact_is_what_an_evaluation_says(demo):
    model, tokenizer = demo
    clean = [q for q in nl.load_questions(nl.demo_task("facts", "test")) if q.subject == "clean"]
    fact, *others = clean[:4]
    wanted = fact.choices[(fact.answer + 1) % len(fact.choices)]
    asked = {"template": "plain", "method": "gradient", "k": 64, "controls": 2, "progress": False}
    with untouched(model):
        edit = nl.edit_fact(model, tokenizer, fact, to=wanted, how="both", unrelated=others, **asked)
    relabelled = [replace(fact, answer=fact.choices.index(wanted))]
    for outcome, neurons in ((edit.unedited, None), (edit.edited, edit.neurons)):
        given = {"template": "plain", "orders": "rotate", "controls": 0, "progress": False}
        report = nl.evaluate(model, tokenizer, relabelled, neurons, **given)
        assert outcome.p_wanted == pytest.approx(report.p_right, abs=1e-6)
        report = nl.evaluate(model, tokenizer, others, neurons, **given | {"orders": "none"})
        assert outcome.locality == (1.0 if neurons is None else 1 - sum(report.flips.values()) / len(others))
    assert edit.edited.p_wanted > 10 * edit.unedited.p_wanted
    assert edit.edited.p_wanted > 10 * max(outcome.p_wanted for outcome in edit.random)
    assert edit.neurons.positions == "all" and set(edit.neurons.factor.tolist()) == {0.0, 2.0}


@pytest.mark.slow
def test_the_pcr_of_a_subject_is_that_of_an_evaluation(demo):
    model, tokenizer = demo
    search, test = ([q for task in TASKS for q in questions(task, split, 8)] for split in ("search", "test"))
    found = nl.by_subject(model, tokenizer, search, test, method="gradient", k=32, template="plain", progress=False)
    for n, name in enumerate(TASKS):
        here, others = ([q for q in test if (q.subject == name) == own] for own in (True, False))
        given = {"good": 2.0, "unrelated": others, "template": "plain", "controls": 0, "progress": False}
        report = nl.evaluate(model, tokenizer, here, found.neurons[name], **given)
        assert found.boost.pcr[n] == pytest.approx(report.pcr, rel=1e-4)
        assert found.boost.transfer[n][n] == pytest.approx(report.accuracy - report.base["accuracy"])


@pytest.mark.slow
def test_predictions_are_what_single_neurons_say(demo):
    """Picked by loops over questions, options and neurons, each read by itself."""
    model, tokenizer = demo
    search, test = ([q for task in TASKS for q in questions(task, split, 4)] for split in ("search", "test"))
    asked = {"method": "gradient", "k": 8, "template": "plain", "controls": 2, "progress": False}
    with untouched(model):
        found = nl.predict(model, tokenizer, search, test, cloze="cloze_plain", **asked)
    own = nl.evaluate(model, tokenizer, test, template="plain", orders="rotate", progress=False)
    assert found.model["accuracy"] == pytest.approx(own.accuracy)

    def held(question: nl.Question, choice: str) -> torch.Tensor:
        items = [{"prompt": f"{question.stem}\nAnswer:", "answer": choice}]
        ids = found.neurons[question.subject].ids
        return nl.activations(model, tokenizer, items, progress=False)[0, ids].double()

    right = {
        name: torch.stack([held(q, q.choices[q.answer]) for q in search if q.subject == name]).mean(0) for name in TASKS
    }
    for n, question in enumerate(test):
        sums = [float((held(question, choice) * right[question.subject].sign()).sum()) for choice in question.choices]
        assert found.picked["activation"][n] == sums.index(max(sums))
        ids = found.neurons[question.subject].ids
        pushed = nl.pushes(model, tokenizer, [question], ids, template="plain", progress=False)[0].double().sum(-1)
        assert found.picked["score"][n] == int(pushed.argmax())
    hits = [found.picked["score"][n] == question.answer for n, question in enumerate(test)]
    assert found.by["score"]["accuracy"] == pytest.approx(sum(hits) / len(hits))
