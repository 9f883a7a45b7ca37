"""Tuning on models where the right answer is known: one planted culprit, nothing to gain, or a tempting collapse."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.answers import Answers
from neuronllm.results.neurons import NeuronSet
from tests.checks import Fuse, blow_after, letter_model, lived_in, quiz, refused, untouched, with_every_letter
from tests.tiny import tiny

CULPRIT = 30


def answers_of(model, prompts) -> list[int]:
    return one_by_one(model, prompts).picked.tolist()


def one_by_one(model, prompts) -> Answers:
    """The answers by forward passes of single prompts."""
    rows = torch.full((len(prompts), max(len(p.option_ids) for p in prompts)), -torch.inf)
    for row, prompt in zip(rows, prompts, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt.input_ids])).logits[0, -1]
        scores = torch.stack([logits[ids].logsumexp(0) for ids in prompt.first_tokens])
        row[: len(scores)] = scores.log_softmax(0)
    return Answers(prompts, rows)


def labelled(prompts, answers):
    return [dataclasses.replace(p, answer=a) for p, a in zip(prompts, answers, strict=True)]


def a_set(model, good=(), bad=(), **provenance) -> NeuronSet:
    ids, role = torch.tensor([*good, *bad]), np.array(["good"] * len(good) + ["bad"] * len(bad), dtype="<U4")
    return NeuronSet(ids, role, torch.zeros(len(ids)), Anatomy.of(model), {"method": "by hand", **provenance})


def harmed():
    """A Llama that is right on every prompt until one neuron's column is blown up; the model and its prompts."""
    model = tiny("llama")
    prompts = quiz(16, variants=False)
    prompts = labelled(prompts, answers_of(model, prompts))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, CULPRIT - 28] *= 40
    return model, prompts


def tune(model, prompts, neurons, **keywords):
    return nl.tune(model, None, neurons, prompts, progress=False, **keywords)


def accuracy(model, prompts, *arguments, **keywords) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return nl.evaluate(model, None, prompts, *arguments, controls=0, progress=False, **keywords).accuracy


def test_the_planted_culprit_is_silenced():
    model, prompts = harmed()
    neurons = a_set(model, good=[2, 9, 40], bad=[CULPRIT, 7, 50, 11])
    base = accuracy(model, prompts)
    assert base < 0.8
    with untouched(model):
        tuned = tune(model, prompts, neurons)
    chosen = tuned.tuned
    assert CULPRIT in tuned.ids[tuned.role == "bad"].tolist() and chosen["bad"] <= 0.25
    assert accuracy(model, prompts, tuned, "tuned") > base + 0.15
    assert tuned.provenance["method"] == "by hand"
    with tuned.apply(model, positions="all"):
        again = answers_of(model, prompts)
    assert np.mean([a == p.answer for a, p in zip(again, prompts, strict=True)]) > base


@pytest.mark.parametrize("criterion", ["accuracy", "p_right"])
def test_the_choice_is_the_best_of_the_curve_and_the_curve_is_true(criterion):
    model, prompts = harmed()
    neurons = a_set(model, good=[2, 9, 40], bad=[7, CULPRIT, 50, 11])
    tuned = tune(model, prompts, neurons, criterion=criterion, ks=[1, 4], positions=("all", "answer"))
    curve, chosen = tuned.tuned["curve"], tuned.tuned
    points = [tuple(point[key] for key in ("k_good", "k_bad", "good", "bad", "positions")) for point in curve]
    assert points[0] == (0, 0, 1.0, 1.0, "all") and len(set(points)) == len(points)
    assert chosen["criterion"] == criterion and chosen["questions"] == 16
    measured = {}
    for point, row in zip(points, curve, strict=True):
        k_good, k_bad, good, bad, positions = point
        where = -1 if positions == "answer" else "all"
        with neurons.top(k_good, k_bad).apply(model, good, bad, positions=where):
            asked = one_by_one(model, prompts)
        assert row["accuracy"] == asked.accuracy and row["p_right"] == pytest.approx(asked.mean_p_right, abs=1e-6)
        measured[point] = asked
    best = tuple(chosen[key] for key in ("k_good", "k_bad", "good", "bad", "positions"))
    sound = [row[criterion] for point, row in zip(points, curve, strict=True) if not measured[point].collapsed]
    assert curve[points.index(best)][criterion] == max(sound) > curve[0][criterion]
    kept = neurons.top(best[0] if best[2] != 1 else 0, best[1] if best[3] != 1 else 0)
    assert tuned.ids.tolist() == kept.ids.tolist()


def no_edit(model, prompts, tuned) -> None:
    assert len(tuned) == 0
    assert (tuned.tuned["good"], tuned.tuned["bad"], tuned.tuned["k_good"], tuned.tuned["k_bad"]) == (1, 1, 0, 0)
    clean = answers_of(model, prompts)
    with untouched(model), tuned.apply(model):
        assert answers_of(model, prompts) == clean
    report = nl.evaluate(model, None, prompts, tuned, "tuned", controls=2, progress=False)
    assert report.p_right == report.base["p_right"] and report.flips == {"right_to_wrong": 0, "wrong_to_right": 0}
    with untouched(model):
        nl.bake(model, tuned)


def test_no_edit_where_everything_is_right_already():
    model = tiny("llama")
    prompts = quiz(12, variants=False)
    prompts = labelled(prompts, answers_of(model, prompts))
    no_edit(model, prompts, tune(model, prompts, a_set(model, good=[2, 9], bad=[30, 7])))


@pytest.mark.parametrize("criterion", ["accuracy", "p_right"])
def test_no_edit_where_the_neurons_do_nothing(criterion):
    model = tiny("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, :3] = 0
    prompts = quiz(12)
    neurons = a_set(model, good=[0, 1, 28], bad=[2, 29, 30])
    no_edit(model, prompts, tune(model, prompts, neurons, criterion=criterion))


def test_no_edit_where_there_are_no_neurons():
    model = tiny("llama")
    no_edit(model, quiz(4), tune(model, quiz(4), a_set(model)))


def test_a_collapse_is_never_chosen_however_well_it_scores():
    """Most right answers are A, and every edit on offer makes the model say A whatever is asked."""
    model, towards, back = letter_model()
    prompts = with_every_letter(model)
    prompts = labelled(prompts, [0 if n % 3 else (n // 3) % 3 + 1 for n in range(len(prompts))])
    neurons = a_set(model, good=[towards], bad=[back])
    base = accuracy(model, prompts)
    assert (
        accuracy(model, prompts, neurons, "enhance", positions="all")
        == accuracy(model, prompts, neurons, bad=0.5)
        > base
    )
    for criterion in ("accuracy", "p_right"):
        tuned = tune(model, prompts, neurons, criterion=criterion)
        no_edit(model, prompts, tuned)
        assert max(point["accuracy"] for point in tuned.tuned["curve"]) > base  # it was seen, and passed over


@pytest.mark.parametrize("positions", [("all",), ("answer",), ("all", "answer"), "all", "answer"])
def test_positions_are_those_asked_for(positions):
    model, prompts = harmed()
    tuned = tune(model, prompts, a_set(model, good=[2], bad=[CULPRIT]), positions=positions)
    asked = {positions} if isinstance(positions, str) else set(positions)
    assert {point["positions"] for point in tuned.tuned["curve"][1:]} == asked
    assert tuned.tuned["positions"] in asked and len(tuned)
    if asked == {"answer"}:
        with refused("answer position", 'positions="all"'):
            nl.bake(model, tuned)
        assert nl.evaluate(model, None, prompts, tuned, controls=0, progress=False).edit["positions"] == "answer"


@pytest.mark.parametrize(("found", "tried"), [("answer", "answer"), ("all", "all"), (None, "all")])
def test_positions_are_those_that_the_set_was_found_with(found, tried):
    model, prompts = harmed()
    tuned = tune(model, prompts, a_set(model, good=[2], bad=[CULPRIT], positions=found))
    assert {point["positions"] for point in tuned.tuned["curve"][1:]} == {tried} == {tuned.positions}
    other = "all" if tried == "answer" else "answer"
    again = tune(model, prompts, tuned, positions=other)
    assert again.positions == other and tune(model, prompts, again).positions == other


def test_sizes_and_factors_are_those_asked_for():
    model, prompts = harmed()
    neurons = a_set(model, good=[2, 9, 40, 41], bad=[7, CULPRIT, 50])
    tuned = tune(model, prompts, neurons, ks=[2, 4, 100], factors=[0.5, 1.0])
    curve = tuned.tuned["curve"][1:]
    assert {point["k_good"] for point in curve} <= {2, 4} and {point["k_bad"] for point in curve} <= {2, 3}
    starts = {(2.0, 0.0), (1.5, 0.5), (1.0, 0.0), (1.0, 0.5), (1.5, 1.0)}
    for point in curve:  # a start, or a start with one or both factors moved to a listed one
        assert point["good"] in {0.5, 1.0, *(g for g, _ in starts)} and point["bad"] in {
            0.5,
            1.0,
            *(b for _, b in starts),
        }


def test_every_point_is_asked_once_and_nothing_but_the_given_questions():
    model, prompts = harmed()
    known, seen = {tuple(p.input_ids) for p in prompts}, []

    def watch(module, args, kwargs):
        mask = kwargs.get("attention_mask")
        for n, row in enumerate(kwargs["input_ids"]):
            seen.append(tuple((row if mask is None else row[mask[n].bool()]).tolist()))

    model.register_forward_pre_hook(watch, with_kwargs=True)
    tuned = tune(model, prompts, a_set(model, good=[2, 9], bad=[CULPRIT]), batch_size=5)
    assert set(seen) == known
    assert len(seen) == len(prompts) * len(tuned.tuned["curve"])


def test_the_search_is_the_same_every_time_and_can_be_saved(tmp_path):
    model, prompts = harmed()
    neurons = a_set(model, good=[2, 9], bad=[CULPRIT, 7])
    first, second = (tune(model, prompts, neurons, positions=("all",)) for _ in range(2))
    assert first.tuned == second.tuned
    first.save_pretrained(tmp_path / "tuned")
    again = NeuronSet.from_pretrained(tmp_path / "tuned")
    assert again.tuned == first.tuned and again.ids.tolist() == first.ids.tolist()
    retuned = tune(model, prompts, again, positions=("all",))
    assert retuned.tuned["bad"] == first.tuned["bad"]  # a tuned set can be tuned again


def test_a_model_in_use_is_left_as_it_was():
    model, prompts = harmed()
    lived_in(model)
    neurons = a_set(model, good=[2], bad=[CULPRIT])
    with untouched(model):
        tuned = tune(model, prompts, neurons)
    assert len(tuned)
    blow_after(model, 3)
    with untouched(model), pytest.raises(Fuse):
        tune(model, prompts, neurons)


@pytest.mark.parametrize(
    ("keywords", "parts"),
    [
        ({"factors": []}, ["factors=[]"]),
        ({"factors": ["two"]}, ["factors="]),
        ({"factors": [1.0, float("nan")]}, ["factors=", "finite"]),
        ({"positions": ["last"]}, ["positions='last'", "answer, all"]),
        ({"positions": "last"}, ["positions='last'", "answer, all"]),
        ({"positions": ()}, ["positions"]),
        ({"criterion": "loss"}, ["criterion='loss'", "accuracy, p_right"]),
        ({"ks": [0]}, ["ks="]),
        ({"ks": [-3]}, ["ks="]),
        ({"ks": [1.5]}, ["ks="]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"questions": []}, ["list is empty"]),
    ],
)
def test_bad_arguments_are_one_line(keywords, parts):
    model = tiny("llama")
    keywords = {"questions": quiz(2), **keywords}
    questions = keywords.pop("questions")
    with untouched(model), refused(*parts):
        tune(model, questions, a_set(model, good=[2], bad=[30]), **keywords)


def test_a_set_of_another_model_is_refused():
    with refused("28", "20"):
        tune(tiny("llama", intermediate_size=20), quiz(2), a_set(tiny("llama"), good=[2]))


@pytest.mark.slow
def test_random_neurons_are_not_tuned_into_an_edit():
    """The best of many edits with random neurons gains a few questions by luck: the margin sees that."""
    model, tokenizer = nl.load_model("demo", dtype=torch.float32)
    validation = nl.load_questions(nl.demo_task("facts", "validation"))
    prompts = nl.render(tokenizer, validation, "none", "plain")
    kept = []
    for seed in range(3):
        noise = nl.attribute(model, None, prompts[:1], "random", positions="answer", seed=seed, progress=False).find(
            32, 32
        )
        tuned = nl.tune(model, None, noise, prompts, ks=(8, 32), positions="all", progress=False)
        kept.append(len(tuned))
        assert tuned.tuned["best_gain"] <= 2 * tuned.tuned["best_gain_stderr"]
    assert kept == [0, 0, 0]
