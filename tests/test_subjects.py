"""Subjects and tasks beside each other, in a world where it is known which neurons hold them."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import neuronllm as nl
from neuronllm.applications.across import gained
from neuronllm.applications.prediction import Prediction
from tests.checks import refused, untouched
from tests.planted import Neuron, World

WORDS = {
    "beast": ["cat", "dog", "owl", "fox"],
    "plant": ["fern", "moss", "oak", "pine"],
    "metal": ["iron", "lead", "zinc", "gold"],
    "tool": ["saw", "awl", "axe", "file"],
}
SUBJECTS = list(WORDS)
SAID = [word for words in WORDS.values() for word in words]
OTHERS = [*SUBJECTS, "which", "is", "a", *(f"w{n}" for n in range(30))]  # the model could say these, too
ASKED = {"template": "continue", "answers": "texts", "progress": False}


def world(lasting: bool) -> World:
    """A neuron a subject that pushes its words, a weak one that the next subject shares, and one that pushes all words.

    `lasting`: the first also fires on its words, so that it is active where a right answer stands.
    """
    neurons = [Neuron([name, *(words if lasting else [])], dict.fromkeys(words, 0.03)) for name, words in WORDS.items()]
    for n, (name, words) in enumerate(WORDS.items()):
        neurons.append(Neuron([name, SUBJECTS[(n + 1) % 4]], dict.fromkeys(words, 0.015)))
    neurons.append(Neuron(SUBJECTS, dict.fromkeys(SAID, 0.05), layer=1))
    return World(neurons, SAID, OTHERS)


def questions(places: tuple[int, ...]) -> list[nl.Question]:
    """Of every subject, which of four words is one of its own; the right word stands at each place equally often."""
    made = []
    for n, (name, words) in enumerate(WORDS.items()):
        for place in places:
            right, others = words[place], [WORDS[SUBJECTS[(n + step) % 4]][place] for step in (1, 2, 3)]
            choices = [*others[: place % 4], right, *others[place % 4 :]]
            made.append(nl.Question(f"which is a {name}", tuple(choices), place % 4, name, id=f"{name}-{place}"))
    return made


SEARCH, TEST = questions((0, 1)), questions((2, 3))


@pytest.fixture(scope="module")
def known() -> World:
    return world(lasting=True)


# ---- prediction ----


@pytest.mark.parametrize("lasting", [True, False])
def test_neurons_predict_where_they_are_active_at_right_answers_and_not_elsewhere(lasting):
    planted = world(lasting)
    with untouched(planted.model):
        found = nl.predict(planted.model, planted.tokenizer, SEARCH, TEST, k=1, controls=5, cloze="continue", **ASKED)
    assert {name: one.ids.tolist() for name, one in found.neurons.items()} == {
        name: [planted.ids[n]] for n, name in enumerate(SUBJECTS)
    }
    by_hand = []
    for question in TEST:
        number = planted.ids[SUBJECTS.index(question.subject)]
        held = [planted.activations(choice)[number] for choice in question.choices]
        by_hand.append((held[question.answer] == max(held)) / held.count(max(held)))
    assert found.by["activation"]["accuracy"] == np.mean(by_hand) == (1.0 if lasting else 0.25)
    assert found.by["score"]["accuracy"] == 1.0
    assert found.picked["score"] == [question.answer for question in TEST]
    assert (found.chance, found.model["accuracy"], found.questions) == (0.25, 1.0, len(TEST))
    for each in found.by.values():
        assert each["random"]["p50"] < 0.5 and set(each["subjects"]) == set(SUBJECTS)
    assert json.loads(json.dumps(found.to_dict()))["neurons"] == dict.fromkeys(SUBJECTS, 1)
    assert "| neurons, by activation | " in str(found)


def test_a_prediction_says_what_it_beats():
    band = {"p2.5": 0.1, "p97.5": 0.5}
    weak = {"accuracy": 0.4, "ci": (0.2, 0.6), "random": band}
    strong, alone = {"accuracy": 0.75, "ci": (0.6, 0.9), "random": band}, {**weak, "random": None}
    mixed = {"accuracy": 0.5, "ci": (0.3, 0.7), "random": band}
    by = {"a": weak, "b": strong, "c": mixed, "d": alone}
    found = Prediction(8, 0.25, {"accuracy": 0.9, "ci": (0.8, 1.0)}, by, {})
    assert str(found).splitlines()[-5:] == [
        "",
        "by a: 0.400 (95 % 0.200 to 0.600) is not better than chance (0.250) and not better than random neurons "
        "(0.100 to 0.500)",
        "by b: 0.750 (95 % 0.600 to 0.900) is better than chance (0.250) and better than random neurons "
        "(0.100 to 0.500)",
        "by c: 0.500 (95 % 0.300 to 0.700) is better than chance (0.250) and not better than random neurons "
        "(0.100 to 0.500)",
        "by d: 0.400 (95 % 0.200 to 0.600) is not better than chance (0.250)",
    ]


def test_what_rounding_leaves_of_no_change_is_0():
    """0.1 + 0.2 - 0.3 is 5.6e-17: the same mean of shares, added up in another order."""
    before, after = SimpleNamespace(accuracy=0.3), SimpleNamespace(accuracy=0.1 + 0.2)
    assert after.accuracy != before.accuracy and gained(before, after) == 0
    assert gained(SimpleNamespace(accuracy=0.25), SimpleNamespace(accuracy=0.75)) == 0.5


# ---- subjects ----


def by_hand(planted: World, factors: dict[int, float]) -> dict[str, list[float]]:
    """P(right) of every test question, by subject."""
    found: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    for question in TEST:
        found[question.subject].append(
            float(planted.probabilities(question.subject, question.choices, factors)[question.answer])
        )
    return found


@pytest.fixture(scope="module")
def found(known):
    return nl.by_subject(known.model, known.tokenizer, SEARCH, TEST, k=3, controls=3, **ASKED)


def test_subjects_have_the_planted_neurons(known, found):
    for n, name in enumerate(SUBJECTS):
        assert set(found.neurons[name].ids.tolist()) == {known.ids[n], known.ids[4 + n]}
        assert found.layers[name] == [2, 0] and found.neurons[name].provenance["subject"] == name
    assert found.common.ids.tolist() == [known.ids[8]] and found.common.score.tolist() == [1.0]
    assert not found.boost.two_faced


@pytest.mark.parametrize("factor", [2.0, 0.0])
def test_the_pcr_is_what_a_computation_by_hand_says(known, found, factor):
    said = found.boost if factor else found.suppress
    before = by_hand(known, {})
    for n, row in enumerate(SUBJECTS):
        after = by_hand(known, dict.fromkeys((known.ids[n], known.ids[4 + n]), factor))
        changes = {name: (np.array(after[name]) - before[name]) / before[name] for name in SUBJECTS}
        means = [float(changes[name].mean()) for name in SUBJECTS]
        assert said.p_change[n] == pytest.approx(means, rel=1e-4, abs=1e-6)
        elsewhere = np.concatenate([changes[name] for name in SUBJECTS if name != row])
        assert said.pcr[n] == pytest.approx(abs(means[n]) / abs(elsewhere.mean()), rel=1e-3)
        assert said.pcr[n] > 3  # what a subject's neurons do, they do to it
        shared = (n + 1) % 4  # the subject that shares the weak neuron
        assert said.pcr_matrix[n][shared] == pytest.approx(abs(means[n] / means[shared]), rel=1e-3)
        assert said.pcr_matrix[n][n] == 1.0 and said.pcr_matrix[n][(n + 2) % 4] is None
    band = said.random["pcr"]
    assert said.random["sets"] == 3 and len(band) == 4 and np.shape(said.random["transfer"]) == (4, 4)


def test_what_is_printed_is_what_was_found(found):
    text = str(found)
    assert f"| beast | 2 | 2 | 0.0 | {found.boost.pcr[0]:.3f} |" in text and "1 neurons are common" in text
    data = json.loads(json.dumps(found.to_dict()))
    assert data["common"][0]["share"] == 1.0 and data["boost"]["pcr"] == found.boost.pcr
    assert data["boost"]["overlap"]["good"][0][1]["shared"] == 0


# ---- tasks ----


def test_what_an_edit_for_one_task_does_to_another(known, found):
    """Transfer as accuracies by hand; and a neuron that is good for one task and bad for the next."""
    names = ["beast", "plant"]
    weak = found.neurons["beast"].ids.tolist().index(known.ids[4])
    plant = found.neurons["plant"].with_factors([0.0, 0.0])
    beast = found.neurons["beast"]
    against = replace(beast.take([weak]), role=np.array(["bad"]), factor=None).with_factors([40.0])
    tasks = {name: [question for question in TEST if question.subject == name] for name in names}
    sets = {"beast": beast.with_factors([2.0, 2.0]), "plant": plant | against}
    with untouched(known.model):
        crossed = nl.cross_task(known.model, known.tokenizer, tasks, sets, **ASKED)
    edits = {
        "beast": dict.fromkeys((known.ids[0], known.ids[4]), 2.0),
        "plant": {known.ids[1]: 0.0, known.ids[5]: 0.0, known.ids[4]: 40.0},
    }

    def accuracy(name: str, factors: dict[int, float]) -> float:
        return float(np.mean([known.probabilities(name, q.choices, factors).argmax() == q.answer for q in tasks[name]]))

    for n, row in enumerate(names):
        assert crossed.accuracy[n] == accuracy(row, {}) == 1.0
        assert crossed.transfer[n] == [accuracy(column, edits[row]) - 1.0 for column in names]
    assert crossed.transfer[1] == [0.0, -1.0]
    assert [each["id"] for each in crossed.two_faced] == [known.ids[4]]
    assert crossed.overlap["good_bad"][0][1]["shared"] == 1 and crossed.overlap["good_bad"][1][0]["shared"] == 0
    assert crossed.random is None and "good for one task and bad for another" in str(crossed)


def test_what_cannot_be_compared_is_refused(known, found):
    model, tokenizer = known.model, known.tokenizer
    with refused("tasks: give questions for each neuron set, by the same names: beast, plant, metal, tool"):
        nl.cross_task(model, tokenizer, {"beast": TEST}, found.neurons)
    with refused("positions='last': known values are answer, all"):
        nl.cross_task(model, tokenizer, {"beast": TEST}, {"beast": found.neurons["beast"]}, good=2.0, positions="last")
    with refused("search: no question is of subject 'tool'"):
        nl.by_subject(model, tokenizer, SEARCH[:-2], TEST, **ASKED)
    with refused("test: no question is of subject 'tool'"):
        nl.predict(model, tokenizer, SEARCH, TEST[:-2], **ASKED)
    with refused("search: all questions are of one subject, 'beast'"):
        nl.by_subject(model, tokenizer, SEARCH[:2], TEST[:2], **ASKED)
    with refused("method='contrast': it compares questions"):
        nl.by_subject(model, tokenizer, SEARCH, TEST, method="contrast", **ASKED)
    with refused("test: give a list of one or more questions"):
        nl.predict(model, tokenizer, SEARCH, "test.jsonl", **ASKED)
    with refused("k=0: give a positive whole number"):
        nl.by_subject(model, tokenizer, SEARCH, TEST, k=0, **ASKED)
