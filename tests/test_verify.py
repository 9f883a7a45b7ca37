"""Verified neurons: measured as a live edit would, kept by a rule, on models where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.engine.asking import Asker
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.neurons import NeuronSet
from tests.checks import lived_in, plant, quiz, refused, untouched
from tests.test_tune import CULPRIT, a_set, harmed
from tests.texts import open_prompts, text_prompts
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level


def verify(model, neurons, prompts, *numbers, **keywords) -> NeuronSet:
    return nl.verify(model, None, neurons, prompts, *numbers, progress=False, **keywords)


def right_of(model, prompts) -> np.ndarray:
    """The right option's log-probability among the options, (prompts,)."""
    rows = Asker(model, prompts, batch_size=1).logprobs()
    return rows[torch.arange(len(prompts)), torch.tensor([p.answer for p in prompts])].double().numpy()


def by_question(prompts, values) -> np.ndarray:
    names = list(dict.fromkeys(p.question_id for p in prompts))
    return np.array([values[[p.question_id == name for p in prompts]].mean() for name in names])


def silenced(model, prompts, ids, factor=0.0) -> np.ndarray:
    """The objective of every question with all of these neurons edited at all positions."""
    with nl.edit(model, ids, factor, positions="all"):
        return by_question(prompts, right_of(model, prompts))


def measured(model, prompts, ids, factor=0.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean effect and standard error of every neuron, one live edit each."""
    clean = by_question(prompts, right_of(model, prompts))
    rows = np.stack([clean - silenced(model, prompts, [neuron], factor) for neuron in ids])
    return rows.mean(1), rows.std(1, ddof=1) / rows.shape[1] ** 0.5


def scored(model, prompts, **keywords):
    return nl.attribute(model, None, prompts, positions="all", progress=False, **keywords)


# ---- what is kept ----


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("margin", [2.0, 0.5])
def test_neurons_are_kept_by_their_measured_effects(backend, margin):
    model, prompts = tiny("llama"), quiz(6)
    neurons = scored(model, prompts).find(12, 12)
    mean, stderr = measured(model, prompts, neurons.ids.tolist())
    kept = verify(model, neurons, prompts, margin=margin, backend=backend)
    told = kept.provenance["verified"]
    expected = []
    for role, sign in (("good", 1), ("bad", -1)):
        mine = neurons.role == role
        sure = mine & (sign * mean > margin * stderr)
        wrong = mine & (sign * mean < 0)
        assert told[role] == {
            "tried": 12,
            "wrong_sign": int(wrong.sum()),
            "too_small": int((mine & ~sure & ~wrong).sum()),
            "kept": int(sure.sum()),
        }
        order = [n for n in (-sign * mean).argsort(kind="stable") if sure[n]]
        expected += [(int(neurons.ids[n]), role) for n in order]
        here = torch.from_numpy(kept.role == role)
        assert kept.score[here].numpy() == pytest.approx(mean[order], abs=1e-5)
        for n in order:
            number = str(int(neurons.ids[n]))
            assert told["first_order"][number] == float(neurons.score[n])
            assert told["stderr"][number] == pytest.approx(stderr[n], abs=1e-5)
    assert list(zip(kept.ids.tolist(), kept.role, strict=True)) == expected and 0 < len(kept) < 24
    assert len(told["first_order"]) == len(kept) and told["questions"] == 6 and told["positions"] == "all"
    assert kept.provenance["method"] == "gradient" and kept.positions == "all"


def test_the_planted_culprit_is_found_and_false_ones_are_dropped():
    model, prompts = harmed()
    neurons = a_set(model, good=[2, CULPRIT], bad=[7, 50, 11])
    assert CULPRIT not in verify(model, neurons, prompts).ids.tolist()  # said to be good
    neurons = a_set(model, good=[2], bad=[7, 50, CULPRIT, 11])
    with untouched(model):
        kept = verify(model, neurons, prompts)
    bad = kept.ids[torch.from_numpy(kept.role == "bad")]
    assert bad[0] == CULPRIT and kept.score[(kept.ids == CULPRIT)] < -0.1


def test_a_neuron_that_pushes_the_right_letter_is_good_whatever_its_score_says():
    model = tiny("gpt2", n_inner=28)
    pushes = 8 * model.transformer.wte.weight[3].detach()
    towards, idle = plant(model, 1, 4, pushes), plant(model, 1, 9, 0 * pushes)
    prompts = [p for p in quiz(12, options=(4,)) if p.answer == 0]  # the right letter is A, token 3
    claimed = verify(model, a_set(model, good=[idle], bad=[towards]), prompts)
    assert len(claimed) == 0 and claimed.provenance["verified"]["bad"]["wrong_sign"] == 1
    assert claimed.provenance["verified"]["good"] == {"tried": 1, "wrong_sign": 0, "too_small": 1, "kept": 0}
    assert verify(model, a_set(model, good=[idle, towards]), prompts).ids.tolist() == [towards]


# ---- which are tried, and how many stay ----


def test_of_scores_four_times_as_many_are_tried_as_are_wanted():
    model, prompts = tiny("llama"), quiz(6)
    scores = scored(model, prompts)
    few = verify(model, scores, prompts, 2, 3, margin=0)
    told = few.provenance["verified"]
    assert [told[role]["tried"] for role in ("good", "bad")] == [8, 12]
    assert [told[role]["kept"] for role in ("good", "bad")] == [2, 3]
    assert few.role.tolist() == ["good"] * 2 + ["bad"] * 3
    tried = scores.find(8, 12)
    mean, _ = measured(model, prompts, tried.ids.tolist())
    best = sorted((-value, int(n)) for value, n in zip(mean[:8], tried.ids[:8], strict=True))[:2]
    assert few.ids[:2].tolist() == [n for _, n in best]
    limited = verify(model, scores, prompts, 2, 0, margin=0, limit=5).provenance["verified"]
    assert [limited[role]["tried"] for role in ("good", "bad")] == [5, 0]
    signs = [int((scores.values > 0).sum()), int((scores.values < 0).sum())]
    every = verify(model, scores, prompts, margin=0).provenance["verified"]
    assert [every[role]["tried"] for role in ("good", "bad")] == signs  # fewer than 400 of each


def test_of_a_set_all_are_tried_and_own_factors_stay():
    model, prompts = tiny("llama"), quiz(4)
    neurons = scored(model, prompts).find(4, 4)
    neurons = neurons.with_factors(torch.arange(8) / 4)
    kept = verify(model, neurons, prompts, margin=0, bad=1)
    own = dict(zip(neurons.ids.tolist(), neurons.factor.tolist(), strict=True))
    assert kept.factor.tolist() == [own[n] for n in kept.ids.tolist()]
    assert kept.provenance["verified"]["bad"]["tried"] == 4 and int((kept.role == "bad").sum()) == 1
    assert verify(model, neurons, prompts, margin=0, bad=0, limit=2).provenance["verified"]["good"]["tried"] == 2


# ---- how they are tried ----


def test_more_of_a_neuron_shows_its_effect_the_other_way_round():
    model, prompts = tiny("llama"), quiz(5)
    neurons = scored(model, prompts).find(10, 10)
    mean, _ = measured(model, prompts, neurons.ids.tolist(), 1.5)
    kept = verify(model, neurons, prompts, margin=0, factor=1.5)
    right = {int(n): -value for n, value in zip(neurons.ids, mean, strict=True)}
    assert kept.score.numpy() == pytest.approx([right[n] for n in kept.ids.tolist()], abs=1e-5)
    assert (kept.score[torch.from_numpy(kept.role == "good")] > 0).all() and len(kept) > 2


def test_positions_are_those_of_the_neurons_and_all_where_nothing_says_so():
    model, prompts = tiny("llama"), quiz(4)
    for found, asked, expected in ((None, None, "all"), ("answer", None, "answer"), ("answer", "all", "all")):
        neurons = a_set(model, good=[2, 9, 40], bad=[7, 11], positions=found)
        kept = verify(model, neurons, prompts, margin=0, positions=asked)
        assert kept.provenance["verified"]["positions"] == kept.positions == expected
        exact = nl.attribute(model, None, prompts, "exact", positions=expected, progress=False)
        assert torch.allclose(kept.score, exact.values[kept.ids], atol=1e-6)


def test_the_objective_is_that_of_the_scores():
    model, prompts = tiny("llama"), quiz(4)
    kept = verify(model, scored(model, prompts, objective="p_vocab"), prompts, 3, 3, margin=0)
    assert kept.provenance["verified"]["objective"] == "p_vocab"
    exact = nl.attribute(model, None, prompts, "exact", objective="p_vocab", positions="all", progress=False)
    assert torch.allclose(kept.score, exact.values[kept.ids], atol=1e-6)
    other = verify(model, kept, prompts, margin=0, objective="margin")
    assert other.provenance["verified"]["objective"] == "margin"


def test_answers_in_words_are_tried_in_the_words_that_the_neurons_were_found_with():
    tokenizer = byte_level()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=512)
    questions = [nl.Question(f"which {n}?", ("red", "blue", "seven"), n % 3, id=f"q{n}") for n in range(4)]
    scores = nl.attribute(
        model, tokenizer, questions, answers="texts", length="tokens", template="cloze_plain", progress=False
    )
    kept = nl.verify(model, tokenizer, scores, questions, 4, 4, margin=0, progress=False)
    prompts = nl.render(tokenizer, questions, template="cloze_plain", answers="texts", length="tokens")
    exact = nl.attribute(model, None, prompts, "exact", positions="all", progress=False)
    assert len(kept) == 8 and torch.allclose(kept.score, exact.values[kept.ids], atol=1e-6)


def test_open_questions_and_texts_by_hand():
    model = tiny("llama")
    for prompts, objective in ((text_prompts(), "logp_options"), (open_prompts(), "logp_vocab")):
        exact = nl.attribute(model, None, prompts, "exact", positions="all", progress=False)
        kept = verify(model, a_set(model, good=range(10), bad=range(30, 40)), prompts, margin=0, joint=True)
        assert kept.provenance["verified"]["objective"] == objective and len(kept)
        assert torch.allclose(kept.score, exact.values[kept.ids], atol=1e-6)


# ---- together ----


@pytest.mark.parametrize("margin", [1.0, 0.0])
def test_neurons_join_where_the_set_does_more_with_them(margin):
    model, prompts = tiny("llama"), quiz(8)
    neurons = scored(model, prompts).find(14, 14)
    alone = verify(model, neurons, prompts, margin=margin)
    with untouched(model):
        kept = verify(model, neurons, prompts, 5, 5, margin=margin, joint=True)
    clean = by_question(prompts, right_of(model, prompts))
    expected = []
    for role, sign in (("good", -1), ("bad", 1)):
        chosen, now = [], clean
        for neuron in alone.ids[torch.from_numpy(alone.role == role)].tolist():
            if len(chosen) == 5:
                break
            after = silenced(model, prompts, [*chosen, neuron])
            gained = sign * (after - now)
            if gained.mean() > margin * gained.std(ddof=1) / len(gained) ** 0.5:
                chosen, now = [*chosen, neuron], after
        told = kept.provenance["verified"][role]
        assert told["objective"] == pytest.approx([clean.mean(), now.mean()], abs=1e-5)
        assert told["kept"] == len(chosen) > 0
        expected += chosen
    assert kept.ids.tolist() == expected and kept.provenance["verified"]["joint"]


def test_a_neuron_that_does_the_work_of_another_one_does_not_join():
    """Two neurons push letter A, a third one takes one push back: without the two the model never says A."""
    model, prompts = tiny("gpt2", n_inner=28), quiz(8, options=(4,))
    push = 60 * model.transformer.wte.weight[3].detach()
    first, second, _ = plant(model, 1, 4, push), plant(model, 1, 9, push), plant(model, 1, 12, -push)
    neurons = a_set(model, bad=[first, second])
    assert set(verify(model, neurons, prompts).ids.tolist()) == {first, second}
    together = verify(model, neurons, prompts, joint=True)
    assert len(together) == 1 and together.ids[0] in (first, second)
    told = together.provenance["verified"]["bad"]
    assert (told["tried"], told["kept"]) == (2, 1) and told["objective"][1] > told["objective"][0]


# ---- the set, and what cannot be done ----


def test_a_verified_set_is_a_set(tmp_path):
    model, prompts = tiny("llama"), quiz(4)
    kept = verify(model, scored(model, prompts), prompts, 3, 3, margin=0, positions="answer")
    kept.save_pretrained(tmp_path / "kept")
    again = NeuronSet.from_pretrained(tmp_path / "kept")
    assert again.provenance == kept.provenance and again.positions == "answer"
    line = next(line for line in again.describe().splitlines() if "verified" in line)
    assert "3 of 12 good and 3 of 12 bad" in line and "4 questions, positions answer" in line
    tuned = nl.tune(model, None, again, prompts, positions="all", margin=0, progress=False)
    assert tuned.positions == "all"  # the later word


def test_a_model_in_use_is_left_as_it_was():
    model, prompts = harmed()
    neurons = a_set(model, good=[2], bad=[CULPRIT])
    lived_in(model)
    with untouched(model):
        verify(model, neurons, prompts, joint=True)


def test_what_cannot_be_verified_is_refused_in_one_line():
    model, prompts = tiny("llama"), quiz(3)
    neurons, scores = a_set(model, good=[2], bad=[7]), scored(model, prompts)
    for given, keywords, parts in (
        (neurons, {"factor": 1}, ["factor=1", "0 silences"]),
        (neurons, {"factor": "much"}, ["factor='much'"]),
        (neurons, {"margin": -1}, ["margin=-1"]),
        (neurons, {"good": -1}, ["good=-1"]),
        (scores, {"limit": 1.5}, ["limit=1.5"]),
        (scores, {"good": 0, "bad": 0}, ["none to try"]),
        (a_set(model), {}, ["none to try"]),
        ("scores", {}, ["give scores or a neuron set, not str"]),
        (neurons, {"positions": "last"}, ["positions='last'"]),
        (neurons, {"objective": "loss"}, ["objective='loss'"]),
        (neurons, {"backend": "cuda"}, ["backend='cuda'"]),
        (neurons, {"batch_size": 0}, ["batch_size=0"]),
        (neurons, {"answers": "texts"}, ['answers="texts"']),
        (neurons, {"objective": "p_vocab", "joint": True}, ["joint=True", "'p_vocab'", "logp_options"]),
        (neurons, {"questions": prompts[:1]}, ["questions: give two or more"]),
        (neurons, {"questions": []}, ["list is empty"]),
        (neurons, {"questions": [nl.Question("a?", ("b", "c"), 0)]}, ["tokenizer"]),
        (a_set(tiny("gpt2", n_inner=12), good=[1]), {}, ["the neurons are of a", "the model is a"]),
    ):
        with untouched(model), refused(*parts):
            verify(model, given, keywords.pop("questions", prompts), **keywords)
    assert Anatomy.of(model).n_neurons == 56
