"""Learned factors: the same steps as PEFT's, on tasks where the right answer is known, and where there is none."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from neuronllm.engine import open_engine
from neuronllm.engine.objectives import Objective, Readout, get_objective
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.neurons import NeuronSet
from neuronllm.runs.processes import Ranks
from neuronllm.steering.recipe import UNLEARNED, Goal, Recipe
from neuronllm.steering.training import Judge, Trainer, drawn, folds
from neuronllm.steering.trainings import Trainings
from tests.checks import Fuse, blow_after, lived_in, quiz, refused, untouched
from tests.test_tune import CULPRIT, a_set, accuracy, answers_of, harmed, labelled
from tests.texts import CITIES, ONE_TO_SIX, random_tokens, with_texts
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

QUICK: dict[str, Any] = {"retain_weight": 0, "progress": False, "positions": "answer"}


def learn(model: Any, prompts: list[Prompt], neurons: NeuronSet | None = None, **more: Any) -> NeuronSet:
    return nl.learn(model, None, prompts, neurons=neurons, **(QUICK | more))


@pytest.fixture(scope="module")
def broken():
    """A model that one neuron spoils, its prompts, and a set with that neuron."""
    model, prompts = harmed()
    return model, prompts, a_set(model, good=[2, 9, 40], bad=[CULPRIT, 7, 50, 11])


# ---- the mathematics ----


def text_questions(count: int) -> list[Prompt]:
    shapes = (CITIES, ONE_TO_SIX)
    return [Prompt(random_tokens(6 + n % 5, n), *shapes[n % 2], question_id=f"q{n}") for n in range(count)]


def logp_right(model: Any, prompt: Prompt) -> torch.Tensor:
    """By one forward of every option as a sequence of its own."""
    scores = []
    for ((ids),) in prompt.option_ids:
        sequence = torch.tensor([[*prompt.input_ids, *ids[:-1]]])
        logp = model(input_ids=sequence).logits[0, -len(ids) :].log_softmax(-1)
        scores.append(logp[range(len(ids)), ids].sum())
    return torch.stack(scores).log_softmax(0)[prompt.answer]


def test_ten_steps_are_those_of_peft():
    peft = pytest.importorskip("peft")
    model, prompts = tiny("llama", torch.float32), text_questions(12)
    recipe = Recipe(steps=10, batch=4, every=10, lr=0.05, retain_weight=0)
    goal, ids = Goal.of("enhance", None), torch.arange(Anatomy.of(model).n_neurons)
    groups = [[prompt] for prompt in prompts]
    with Ranks.here() as ranks, open_engine(model, Anatomy.of(model), prompts) as engine:
        trainer = Trainer(engine, groups, goal, recipe, [], ranks, Trainings(ranks))
        judge = Judge(model, groups[:2], goal, ranks, "auto")
        trained = trainer.train("seed-0", ids, 0, range(12), judge)

    config = peft.IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"])
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    learned = [p for p in wrapped.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learned) == len(ids)
    adam = torch.optim.Adam(learned, lr=0.05, betas=(0.9, 0.99))
    for step, facts in enumerate(trained.curve):
        loss = -torch.stack([logp_right(wrapped, prompts[n]) for n in drawn(12, 4, 0, step)]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert facts["loss"] == pytest.approx(float(loss.detach()), abs=1e-4), step
    assert trained.curve[-1]["loss"] < trained.curve[0]["loss"]
    if trained.step == 10:
        assert torch.allclose(torch.cat([p.detach().flatten() for p in learned]).double(), trained.factors, atol=1e-3)


def test_degrading_makes_options_alike_where_the_right_one_is_known():
    scores = torch.tensor([[2.0, 2.0, -1e30], [0.0, 3.0, 1.0], [0.0, 3.0, 1.0]])
    found = UNLEARNED.value(Readout(scores, torch.tensor([[0], [1], [2]])))
    assert float(found[0]) == pytest.approx(-np.log(2))
    assert float(found[1]) == pytest.approx(float(scores[1].log_softmax(0).mean())) and float(found[1]) < -np.log(3)
    assert float(found[2]) == pytest.approx(-np.log(3))  # not known as it is


def test_confident_mistakes_are_not_mended_by_degrading():
    """They have nothing to unlearn, so they pull at no factor."""
    scores = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]], requires_grad=True)
    UNLEARNED.value(Readout(scores, torch.tensor([[1], [2]]))).sum().backward()
    assert scores.grad is not None
    assert scores.grad[0].abs().min() > 0 and not scores.grad[1].any()


def test_every_round_takes_every_question_once():
    for seed in range(3):
        rounds = [n for step in range(6) for n in drawn(9, 3, seed, step)]
        assert sorted(rounds[:9]) == sorted(rounds[9:]) == list(range(9))
        assert rounds[:9] != rounds[9:]
    assert drawn(9, 3, 0, 0) != drawn(9, 3, 1, 0) and drawn(9, 3, 1, 4) == drawn(9, 3, 1, 4)
    assert len(drawn(3, 16, 0, 0)) == 3
    parts = folds([[p] for p in quiz(7, variants=False)], 3, 0)
    assert sorted(n for part in parts for n in part) == list(range(7)) and len(parts) == 3


# ---- what it finds ----


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_the_planted_culprit_is_turned_down(broken, positions):
    model, prompts, neurons = broken
    base = accuracy(model, prompts)
    with untouched(model):
        learned = learn(model, prompts, neurons, positions=positions, lr=0.2, margin=0.0)
    place = learned.ids.tolist().index(CULPRIT)
    assert learned.factor is not None and float(learned.factor[place]) < 0.5
    told = learned.provenance["learned"]
    assert told["kept"] and told["gain"]["mean"] > 0 and told["positions"] == learned.positions == positions
    assert told["turned"]["bad_down"] >= 1 and told["validation_questions"] == len(prompts)
    assert [len(curve) for curve in told["curves"]] == [16] * 3
    assert accuracy(model, prompts, learned) > base
    assert accuracy(model, prompts, learned, positions=positions) == accuracy(model, prompts, learned)


def test_nothing_is_learned_where_nothing_is_to_gain():
    model = tiny("llama")
    prompts = quiz(18, variants=False)
    right = labelled(prompts, answers_of(model, prompts))
    learned = learn(model, right, a_set(model, good=[2, 9, 40], bad=[30, 7]))
    assert not len(learned) and learned.factor is None
    told = learned.provenance["learned"]
    assert not told["kept"] and told["gain"]["mean"] <= 0 and told["accuracy"][0] == 1
    assert accuracy(model, right, learned) == 1 and "no edit" in learned.describe()
    forced = learn(model, right, a_set(model, good=[2, 9, 40], bad=[30, 7]), margin=None, lr=3.0)
    assert forced.factor is not None and len(forced) == 5 and bool((forced.factor != 1).all())
    worse = forced.provenance["learned"]
    assert worse["kept"] and worse["gain"]["mean"] <= 0 and worse["steps_taken"] == [0, 0, 0]


def test_degrading_lowers_the_right_answer(broken):
    model = tiny("llama")
    prompts = quiz(24, variants=False, options=(4,))
    right = labelled(prompts, answers_of(model, prompts))
    learned = learn(model, right, goal="degrade", lr=0.15, steps=24)
    told = learned.provenance["learned"]
    assert told["kept"] and told["objective"] == "not_known"
    assert told["accuracy"][1] < told["accuracy"][0] == 1 and not told["collapsed"]
    assert told["gain_objective"]["mean"] > 0


def test_the_mean_of_seeds(broken):
    model, prompts, neurons = broken
    one, three = (learn(model, prompts, neurons, seeds=seeds, margin=None) for seeds in (1, 3))
    assert one.provenance["learned"]["spread"] == 0 < three.provenance["learned"]["spread"]
    assert len(three.provenance["learned"]["curves"]) == 3
    again = learn(model, prompts, neurons, seeds=3, margin=None)
    assert torch.equal(again.factor, three.factor) and again.provenance == three.provenance


def test_given_validation_decides(broken):
    model, prompts, neurons = broken
    learned = learn(model, prompts[:8], neurons, validation=prompts[8:], lr=0.2, margin=None)
    told = learned.provenance["learned"]
    assert (told["questions"], told["validation_questions"]) == (8, 8)
    assert told["accuracy"] == pytest.approx([accuracy(model, prompts[8:], *some) for some in ((), (learned,))])


def test_validation_that_is_learned_on_is_warned_of(broken):
    model, prompts, neurons = broken
    with pytest.warns(UserWarning, match="3 of its 8 questions are learned on too"):
        learn(model, prompts[:11], neurons, validation=prompts[8:], steps=1, seeds=1)
    with refused("give a neuron set", "not str"):
        learn(model, prompts, "neurons")


def test_all_neurons_and_the_k_that_matter(broken):
    model, prompts, _ = broken
    every = learn(model, prompts, margin=None)
    assert torch.equal(every.ids, torch.arange(56))
    scores = nl.attribute(model, None, prompts, "gradient", positions="answer", orders="none", progress=False)
    assert torch.allclose(every.score, scores.values, atol=1e-5)
    assert ((every.score >= 0).numpy() == (every.role == "good")).all()
    few = learn(model, prompts, k=4, margin=None)
    assert len(few) == 4
    strongest = every.score.abs().topk(16).indices.tolist()
    assert set(few.ids.tolist()) <= set(strongest)


def test_texts_and_chosen_goals(broken):
    model, _, neurons = broken
    prompts = with_texts(quiz(18, variants=False))
    above = Objective("above", lambda read: read.of_right(read.options) - read.others.amax(-1), least=2)
    for goal in (above, "margin"):
        learned = learn(model, prompts, neurons, goal=goal, margin=None)
        told = learned.provenance["learned"]
        assert told["goal"] == "objective" and told["answers"] == "texts"
        assert told["objective"] == get_objective(goal).name
        assert told["curves"][0][-1]["loss"] != told["curves"][0][0]["loss"]


def test_open_questions_raise_their_own_probability(broken):
    model, _, neurons = broken
    prompts = [Prompt(random_tokens(7 + n % 3, n), [[[41, 42, 43]]], 0, question_id=f"o{n}") for n in range(8)]
    learned = learn(model, prompts, goal="logp_vocab", lr=0.2)
    told = learned.provenance["learned"]
    assert told["kept"] and told["gain_objective"]["mean"] > 0
    with refused("only one option"):
        learn(model, prompts, neurons)


def test_factors_stay_within_bounds(broken):
    model, prompts, neurons = broken
    plain = learn(model, prompts, neurons, lr=3.0, steps=6, margin=None)
    signed = learn(model, prompts, neurons, lr=3.0, steps=6, margin=None, signed=True)
    assert float(plain.factor.min()) >= 0 and float(plain.factor.max()) <= 4
    assert float(signed.factor.min()) < 0 and float(signed.factor.min()) >= -4


def test_l1_keeps_factors_near_one(broken):
    model, prompts, neurons = broken
    free, held = (learn(model, prompts, neurons, margin=None, l1=l1, seeds=1) for l1 in (0.0, 100.0))
    assert (held.factor - 1).abs().mean() < (free.factor - 1).abs().mean()


def test_retained_questions_hold_back(broken):
    """With much weight on what is to stay, factors move less, and the distance is in the loss."""
    model, prompts, neurons = broken
    free = learn(model, prompts, neurons, margin=None, seeds=1)
    held = learn(
        model, prompts, neurons, margin=None, seeds=1, retain=quiz(6, seed=9, variants=False), retain_weight=1e4
    )
    assert held.provenance["learned"]["retain_texts"] == 6
    assert (held.factor - 1).abs().mean() < (free.factor - 1).abs().mean()


def test_with_a_tokenizer_the_bundled_text_is_kept():
    tokenizer = byte_level()
    model = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    questions = [nl.Question(f"which of these is n{n}?", ["red", "blue", "door"], n % 3, id=f"q{n}") for n in range(8)]
    neurons = a_set(model, good=[2, 9, 40], bad=[30, 7])
    learned = nl.learn(model, tokenizer, questions, neurons=neurons, steps=2, seeds=1, margin=None, progress=False)
    told = learned.provenance["learned"]
    assert told["retain_texts"] == 24 and told["positions"] == "all" and told["answers"] == "letters"
    texts = nl.learn(
        model, tokenizer, questions, neurons=neurons, answers="texts", steps=2, seeds=1, margin=None, progress=False
    )
    assert texts.provenance["learned"]["answers"] == "texts"
    assert nl.evaluate(model, tokenizer, questions, texts, controls=0, progress=False).answers == "texts"


# ---- living with it ----


def test_a_saved_set_is_the_same(broken, tmp_path):
    model, prompts, neurons = broken
    learned = learn(model, prompts, neurons, margin=None, output=tmp_path / "learned")
    loaded = NeuronSet.from_pretrained(tmp_path / "learned")
    assert torch.equal(loaded.factor, learned.factor) and loaded.positions == "answer"
    assert not (tmp_path / "learned.partial").exists()
    assert torch.equal(
        learn(model, prompts, neurons, margin=None, output=tmp_path / "learned", resume=True).ids, loaded.ids
    )
    with refused("learned otherwise"):
        learn(model, prompts, neurons, margin=None, output=tmp_path / "learned", resume=True, seeds=2)
    with refused("an earlier result stands there"):
        learn(model, prompts, neurons, margin=None, output=tmp_path / "learned")
    assert "learned" in learned.describe() and "turned up" in learned.describe()


def test_the_model_is_left_as_it_was(broken):
    _, prompts, _ = broken
    model = lived_in(tiny("llama"))
    neurons = a_set(model, good=[2, 9], bad=[30])
    with untouched(model):
        learn(model, prompts, neurons, steps=2, seeds=1)
    model = tiny("llama")
    blow_after(model, 3)
    with untouched(model), pytest.raises(Fuse):
        learn(model, prompts, neurons, steps=2, seeds=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"goal": "better"}, ("goal='better'", "enhance or degrade")),
        ({"goal": "degrade", "objective": "margin"}, ("objective", "degrade")),
        ({"steps": 0}, ("steps=0", "1 or more")),
        ({"lr": -1}, ("lr=-1", "above 0")),
        ({"l1": float("nan")}, ("l1=nan",)),
        ({"seeds": 0}, ("seeds=0",)),
        ({"k": 0}, ("k=0",)),
        ({"margin": -1}, ("margin=-1",)),
        ({"positions": "last"}, ("positions='last'",)),
        ({"retain_weight": 1.0}, ("retain", "without a tokenizer")),
        ({"retain_weight": 1.0, "retain": "a text"}, ("retain=", "give a list")),
        ({"retain_weight": 1.0, "retain": [3]}, ("retain[0]=3",)),
        ({"cache_gib": -1}, ("cache_gib=-1",)),
    ],
)
def test_bad_input_is_one_line(broken, given, said):
    model, prompts, neurons = broken
    with untouched(model), refused(*said):
        learn(model, prompts, neurons, **given)


def test_other_bad_input(broken):
    model, prompts, neurons = broken
    with refused("too few", "validation="):
        learn(model, prompts[:4], neurons)
    with refused("the set is empty"):
        learn(model, prompts, neurons.take([]))
    with refused("the neuron set is of a"):
        learn(tiny("gpt2", n_inner=20), prompts, neurons)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a plain call warns of nothing
        assert len(learn(model, prompts, neurons, steps=2, seeds=1, margin=None)) == len(neurons)
