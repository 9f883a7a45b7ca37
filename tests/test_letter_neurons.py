"""Neurons that push the same letter whatever is asked: planted ones are found, and can be left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.neurons import NeuronSet
from tests import plain
from tests.checks import letter_model, plant, quiz, refused, untouched
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level


def shares(pushes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Profile (letters, neurons) and share of prompts' pushes (options, neurons), in loops."""
    centred = [rows - rows.mean(0) for rows in pushes]
    most = max(len(rows) for rows in centred)
    profile = np.stack([np.mean([rows[n] for rows in centred if n < len(rows)], 0) for n in range(most)])
    total = sum((rows**2).sum(0) for rows in centred)
    left = sum(((rows - profile[: len(rows)]) ** 2).sum(0) for rows in centred)
    return profile, np.where(total > 0, 1 - left / np.maximum(total, 1e-300), 0.0)


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_shares_are_what_a_constant_profile_explains(backend):
    """Against single gradients by hooks, with questions of two, three and four options."""
    model, prompts = tiny("llama"), quiz(4)
    expected = []
    for prompt in prompts:
        rows = []
        for k in range(len(prompt.option_ids)):
            score = lambda logits, prompt, k=k: plain.option_scores(logits, prompt)[k]  # noqa: E731
            points, grads = plain.slopes(model, prompt, score)
            rows.append(torch.cat([h[-1] * g[-1] for h, g in zip(points, grads, strict=True)]).numpy())
        expected.append(np.stack(rows))
    profile, share = shares(expected)
    with untouched(model):
        found = nl.letter_neurons(model, None, prompts, backend=backend, progress=False)
    assert found.share.numpy() == pytest.approx(share, abs=1e-4) and 0 <= found.share.min() <= found.share.max() <= 1
    top = np.abs(profile).argmax(0)
    ordered = np.sort(np.abs(profile), 0)
    clear = ordered[-1] - ordered[-2] > 1e-6
    assert ["ABCD"[n] for n, sure in zip(top, clear, strict=True) if sure] == [
        letter for letter, sure in zip(found.letter, clear, strict=True) if sure
    ]
    assert found.push.abs().numpy() == pytest.approx(np.abs(profile).max(0), rel=1e-3, abs=1e-6)
    assert found.prompts == len(prompts) and found.ids.tolist() == list(range(56))
    some = nl.letter_neurons(model, None, prompts, [40, 3], share=0.0, backend=backend, progress=False)
    assert torch.equal(some.share, found.share[[40, 3]]) and some.flagged.all()


def test_planted_letter_neurons_are_flagged():
    model, towards, back = letter_model()
    prompts = quiz(12, options=(4,))
    found = nl.letter_neurons(model, None, prompts, progress=False)
    assert found.flagged[[towards, back]].all() and found.share[[towards, back]].min() > 0.7
    assert found.letter[towards] == found.letter[back] == "A" and found.push[towards] > 0 > found.push[back]
    assert 2 <= int(found.flagged.sum()) < 28
    lines = str(found).splitlines()
    assert lines[0].startswith(f"{int(found.flagged.sum())} of 56 neurons push one letter whatever is asked")
    assert any(line.startswith(f"  layer 0 neuron {towards}: lifts A by ") for line in lines)
    assert any(line.startswith(f"  layer 0 neuron {back}: lowers A by ") for line in lines)


def test_they_can_be_left_out_of_a_set():
    model, towards, back = letter_model()
    prompts = quiz(12, options=(4,))
    ids = torch.tensor([towards, 30, back, 7])
    neurons = NeuronSet(
        ids, np.array(["good", "good", "bad", "bad"]), torch.ones(4), Anatomy.of(model), {"method": "x"}
    )
    found = nl.letter_neurons(model, None, prompts, neurons, share=0.7, progress=False)
    assert torch.equal(found.ids, ids) and found.flagged[[0, 2]].all()
    kept = neurons.without(found.ids[found.flagged])
    assert not {towards, back} & set(kept.ids.tolist()) and kept.provenance == neurons.provenance
    assert neurons.without([7]).ids.tolist() == [towards, 30, back] and len(neurons.without([])) == 4
    with refused("neuron ids must lie in"):
        neurons.without([10**6])


def test_rotation_lets_a_letter_neuron_through_and_mean_margin_does_not():
    """A model that is sure of A: what lifts A is the worst neuron by logp_options, though it knows nothing."""
    model = tiny("gpt2", n_inner=28)
    planted = plant(model, 1, 4, 20 * model.transformer.wte.weight[3].detach())
    # Only the order of the answers differs, so that all that is done to a letter is done whatever is asked.
    (first, *_) = quiz(1, options=(4,))
    turned = [Prompt(first.input_ids, first.option_ids, n, question_id="q") for n in range(4)]
    values = {
        name: nl.attribute(model, None, turned, objective=name, positions="answer", progress=False).values
        for name in ("logp_options", "mean_margin")
    }
    assert values["logp_options"].abs().argmax() == planted and values["logp_options"][planted] < 0
    assert values["mean_margin"].abs().max() < 1e-4 * values["logp_options"][planted].abs()


def test_questions_are_rotated_and_asked_in_the_words_of_the_set():
    tokenizer = byte_level()
    model = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    questions = [nl.Question(f"which {n}?", ("red", "blue", "seven"), n % 3, id=f"q{n}") for n in range(2)]
    neurons = NeuronSet(
        torch.tensor([4, 9]), np.array(["good", "bad"]), torch.ones(2), Anatomy.of(model), {"template": "plain"}
    )
    found = nl.letter_neurons(model, tokenizer, questions, neurons, progress=False)
    prompts = nl.render(tokenizer, questions, "rotate", "plain")
    assert found.prompts == 6
    assert torch.equal(found.share, nl.letter_neurons(model, None, prompts, [4, 9], progress=False).share)


def test_what_cannot_be_asked_is_refused():
    model, prompts = tiny("llama"), quiz(2)
    texts = [Prompt(p.input_ids, p.option_ids, p.answer, texts=("x",) * len(p.option_ids)) for p in prompts]
    for keywords, parts in (
        ({"share": 2}, ["share=2"]),
        ({"questions": texts}, ["letters", "texts"]),
        ({"questions": prompts[:1]}, ["two prompts"]),
        ({"questions": [prompts[0], Prompt([5], [[9]], 0)]}, ["two options"]),
        ({"neurons": [10**6]}, ["neuron ids must lie in"]),
        ({"batch_size": 0}, ["batch_size=0"]),
    ):
        with refused(*parts):
            nl.letter_neurons(model, None, keywords.pop("questions", prompts), progress=False, **keywords)
    other = NeuronSet(torch.tensor([0]), np.array(["good"]), torch.ones(1), Anatomy.of(tiny("gpt2", n_inner=12)))
    with refused("the neuron set is of a"):
        nl.letter_neurons(model, None, prompts, other, progress=False)
