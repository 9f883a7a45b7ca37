"""Facts edited in a world where it is known which neurons hold them, beside the same worked out by hand."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest

import neuronllm as nl
from tests.checks import refused, untouched
from tests.planted import Neuron, World

LANDS = ["arland", "borland", "corland", "dorland", "erland", "forland"]
CITIES = ["alpha", "beta", "gamma", "delta"]
RIGHT = [0, 1, 2, 3, 0, 1]
MISTAKEN = {4: 2, 5: 3}  # lands whose right city is known, but another one better
ASKED = {"template": "continue", "answers": "texts", "progress": False, "k": 2}


@pytest.fixture(scope="module")
def world() -> World:
    """A neuron a land pushes its city, a weak one the next city, a strong one another city for two lands, one all."""
    neurons = [Neuron([land], {CITIES[right]: 0.05}) for land, right in zip(LANDS, RIGHT, strict=True)]
    neurons += [Neuron([LANDS[n]], {CITIES[wrong]: 0.08}, layer=1) for n, wrong in MISTAKEN.items()]
    neurons += [Neuron([LANDS[n]], {CITIES[(RIGHT[n] + 1) % 4]: 0.01}, layer=1) for n in range(4)]
    neurons += [Neuron(LANDS, dict.fromkeys(CITIES, 0.03))]
    return World(neurons, CITIES, [*LANDS, "capital", "of", "the", "city", "heading", "please"])


@pytest.fixture(scope="module")
def facts() -> list[nl.Question]:
    asked = zip(LANDS, RIGHT, strict=True)
    return [nl.Question(f"capital of {land}", tuple(CITIES), right, id=land) for land, right in asked]


PARAPHRASES = [[f"the city heading {land}", f"capital of {land} please"] for land in LANDS]


def by_hand(world: World, land: int, factors: dict[int, float] | None = None) -> np.ndarray:
    return world.probabilities(LANDS[land], CITIES, factors)


def test_the_world_is_what_the_model_computes(world, facts):
    report = nl.evaluate(world.model, world.tokenizer, facts, template="continue", answers="texts", progress=False)
    expected = [by_hand(world, n) for n in range(len(LANDS))]
    assert report.accuracy == np.mean([p.argmax() == right for p, right in zip(expected, RIGHT, strict=True)]) == 4 / 6
    assert report.p_right == pytest.approx(np.mean([p[right] for p, right in zip(expected, RIGHT, strict=True)]))


@pytest.mark.parametrize("method", [pytest.param("qrnca", marks=pytest.mark.slow), "gradient"])
def test_the_asked_fact_flips_and_the_others_stay(world, facts, method):
    """Without a goal a right answer is suppressed, and a mistaken one put right by boosting; by the planted neurons."""
    more = {"positions": "answer"} if method == "gradient" else {}
    with untouched(world.model), warnings.catch_warnings():
        warnings.simplefilter("error")  # of six questions qrnca can tell what all of them share
        asked = ASKED | more | {"method": method, "k": 1, "controls": 4, "paraphrases": PARAPHRASES}
        found = nl.edit_facts(world.model, world.tokenizer, facts, **asked)
    assert [edit.how for edit in found.edits] == ["suppress"] * 4 + ["boost"] * 2
    for n, edit in enumerate(found.edits):
        assert edit.neurons.ids.tolist() == [world.ids[n]]
        factor = 0.0 if n < 4 else 2.0
        assert edit.neurons.factor.tolist() == [factor]
        assert edit.neurons.role.tolist() == ["bad" if n < 4 else "good"] and edit.neurons.positions == "answer"
        before, after = by_hand(world, n), by_hand(world, n, {world.ids[n]: factor})
        p_right, p_edited = before[RIGHT[n]], after[RIGHT[n]]
        assert (edit.before, edit.after) == (CITIES[before.argmax()], CITIES[after.argmax()])
        assert edit.wanted == (None if n < 4 else CITIES[RIGHT[n]])
        assert edit.unedited.p_wanted == pytest.approx(1 - p_right if n < 4 else p_right, abs=1e-6)
        assert edit.edited.p_wanted == pytest.approx(1 - p_edited if n < 4 else p_edited, abs=1e-6)
        assert (edit.unedited.efficacy, edit.edited.efficacy) == (0.0, 1.0)
        # Of the paraphrases one ends with the land, so that the same neuron speaks; "please" knows no land.
        ends = [by_hand(world, n, {world.ids[n]: factor}), world.probabilities("please", CITIES)]
        right = [(p.argmax() != RIGHT[n]) if n < 4 else (p.argmax() == RIGHT[n]) for p in ends]
        assert edit.edited.generalisation == np.mean(right)
        assert (edit.edited.locality, edit.edited.moved) == (1.0, pytest.approx(0.0, abs=1e-12))
        assert len(edit.random) == 4
    means = found.summary()
    assert means["efficacy"]["edited"] == {"mean": 1.0, "ci": (1.0, 1.0)}
    assert means["efficacy"]["random"]["mean"] < 0.2 and means["efficacy"]["gain"]["ci"][0] > 0.8
    assert json.loads(json.dumps(found.to_dict()))["summary"]["locality"]["edited"]["mean"] == 1.0
    assert "6 facts" in str(found) and "as wanted" in str(found.edits[0])


def test_a_common_neuron_is_dropped_where_other_questions_tell(world, facts):
    common = world.ids[-1]
    given = {"to": "beta", "controls": 0, "how": "boost"}
    alone = [facts[5]]
    with pytest.warns(UserWarning, match="qrnca of 1 question cannot tell"):
        edit = nl.edit_fact(world.model, world.tokenizer, *alone, **given, **ASKED)
    assert set(edit.neurons.ids.tolist()) == {world.ids[5], common}
    edit = nl.edit_fact(world.model, world.tokenizer, *alone, background=facts[:5], **given, **ASKED)
    assert edit.neurons.ids.tolist() == [world.ids[5]]


def test_both_ways_towards_a_given_answer(world, facts):
    """What speaks for the wanted answer is doubled, and what speaks for the old one silenced."""
    asked = ASKED | {"background": facts[:4], "controls": 3}
    unrelated = facts[:2]
    edit = nl.edit_fact(world.model, world.tokenizer, facts[4], to="alpha", how="both", unrelated=unrelated, **asked)
    factors = {world.ids[4]: 2.0, world.ids[6]: 0.0}
    assert dict(zip(edit.neurons.ids.tolist(), edit.neurons.factor.tolist(), strict=True)) == factors
    assert edit.edited.p_wanted == pytest.approx(by_hand(world, 4, factors)[0], abs=1e-6)
    assert edit.edited.locality == 1.0 and edit.edited.generalisation is None
    assert len(edit.random) == 3
    with edit.neurons.apply(world.model, answer_start=0):  # an ordinary neuron set
        report = nl.evaluate(
            world.model, world.tokenizer, [facts[4]], template="continue", answers="texts", progress=False
        )
    assert report.p_right == pytest.approx(by_hand(world, 4, factors)[0], abs=1e-6)
    baked = nl.bake(world.model, edit.neurons, positions="all")
    try:
        report = nl.evaluate(world.model, world.tokenizer, facts, template="continue", answers="texts", progress=False)
        assert report.accuracy == 5 / 6
    finally:
        baked.undo()


def test_how_far_unrelated_answers_move(world, facts):
    """The common neuron silenced for all moves the probabilities of every question, by what a plain sum says."""
    edit = nl.edit_fact(
        world.model, world.tokenizer, facts[5], to="beta", how="boost", unrelated=facts[:3], **ASKED, controls=0
    )
    assert world.ids[-1] in edit.neurons.ids.tolist()
    factors = dict.fromkeys(edit.neurons.ids.tolist(), 2.0)
    moved = [np.abs(by_hand(world, n, factors) - by_hand(world, n)).sum() / 2 for n in range(3)]
    assert edit.edited.moved == pytest.approx(np.mean(moved), abs=1e-6) and edit.edited.moved > 1e-4
    same = [by_hand(world, n, factors).argmax() == by_hand(world, n).argmax() for n in range(3)]
    assert edit.edited.locality == np.mean(same)


def test_learned_factors_flip_it_too(world, facts):
    edit = nl.edit_fact(
        world.model,
        world.tokenizer,
        facts[4],
        to="alpha",
        how="learn",
        steps=16,
        background=facts[:4],
        controls=1,
        **ASKED,
    )
    factors = dict(zip(edit.neurons.ids.tolist(), edit.neurons.factor.tolist(), strict=True))
    assert factors.keys() <= {world.ids[4], world.ids[6]} and edit.after == "alpha"
    assert edit.edited.p_wanted == pytest.approx(by_hand(world, 4, factors)[0], abs=1e-5)
    assert edit.neurons.provenance["learned"] and edit.random[0].efficacy == 0.0


def test_what_cannot_be_done_is_refused(world, facts):
    def edit(question=facts[0], **given):
        return nl.edit_fact(world.model, world.tokenizer, question, **ASKED | given)

    with refused("to='omega': no choice of question 'arland', which are alpha, beta, gamma, delta"):
        edit(to="omega")
    with refused("to: question 'arland' is answered so already, 'alpha'"):
        edit(to="alpha")
    with refused('how="boost": the model is right about question', "say with to="):
        edit(how="boost")
    with refused("how='push': known values are boost, suppress, both, learn"):
        edit(how="push")
    with refused("k=0: give a positive whole number"):
        edit(k=0)
    with refused("steps=0: give a positive whole number"):
        edit(steps=0)
    with refused("factors=(2.0,): give two numbers"):
        edit(factors=(2.0,))
    with refused("method='contrast': it compares questions"):
        edit(method="contrast")
    with refused("is to be judged by 'beta', which is no choice of"):
        other = replace(facts[1], choices=("alpha", "gamma"), answer=0)
        edit(to="beta", paraphrases=[other])
    with refused("paraphrases: give texts or questions, not int"):
        edit(paraphrases=[3])
    with refused("questions: give a list of one or more questions"):
        edit(question="capital of arland")
    with refused("to: give a list with one entry for each of the 6 questions"):
        nl.edit_facts(world.model, world.tokenizer, facts, to=["beta"])
