"""A learned set does the same wherever it lives: live, in weights, from disk, in `generate`, in lm-eval."""

from __future__ import annotations

import copy

import pytest
import torch

import neuronllm as nl
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.neurons import NeuronSet
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

TEXTS = ["Question: which of these is a colour of the sky?", "Answer: B", "word"]


@pytest.fixture(scope="module")
def learned():
    """A tiny model in float32, its tokenizer and a set with a factor of its own for every neuron."""
    tokenizer = byte_level()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256)
    questions = [nl.Question(f"which is word {n}?", ["red", "blue", "seven"], n % 3, id=f"q{n}") for n in range(9)]
    found = nl.learn(model, tokenizer, questions, lr=0.3, steps=4, margin=None, seeds=1, progress=False)
    assert len(found) == Anatomy.of(model).n_neurons and (found.factor != 1).any()
    return model, tokenizer, found


def logits(model, tokenizer, text):
    with torch.no_grad():
        return model(torch.tensor([tokenizer(text).input_ids])).logits


def test_live_baked_and_loaded_give_the_same_logits(learned, tmp_path):
    model, tokenizer, found = learned
    found.save_pretrained(tmp_path / "set")
    loaded, baked = NeuronSet.from_pretrained(tmp_path / "set"), copy.deepcopy(model)
    nl.bake(baked, found)
    for part in (baked, tokenizer):
        part.save_pretrained(tmp_path / "baked")
    again, _ = nl.load_model(tmp_path / "baked", dtype=torch.float32)
    for text in TEXTS:
        plain = logits(model, tokenizer, text)
        with found.apply(model):
            live = logits(model, tokenizer, text)
        with loaded.apply(model):
            assert torch.equal(live, logits(model, tokenizer, text))
        limit = 1e-6 * float(live.abs().max())
        assert (live - plain).abs().max() > 100 * limit
        for other in (baked, again):
            assert torch.allclose(logits(other, tokenizer, text), live, rtol=0, atol=limit)


def test_factors_that_are_powers_of_two_bake_to_the_bit(learned):
    model, tokenizer, found = learned
    exact = found.with_factors(torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0]).repeat(12)[: len(found)])
    baked = copy.deepcopy(model)
    nl.bake(baked, exact)
    for text in TEXTS:
        with exact.apply(model):
            assert torch.equal(logits(model, tokenizer, text), logits(baked, tokenizer, text))


@pytest.mark.parametrize("cache", [True, False])
def test_inside_generate(learned, cache):
    """Every generated token is that of a pass over all tokens under the edit, and that of the baked model."""
    model, tokenizer, found = learned
    baked = copy.deepcopy(model)
    nl.bake(baked, found)
    inputs = torch.tensor([tokenizer(TEXTS[0]).input_ids])
    more = {"max_new_tokens": 6, "do_sample": False, "use_cache": cache, "pad_token_id": 0}
    plain = model.generate(inputs, **more)
    with found.apply(model):
        written = model.generate(inputs, **more)
        for end in range(inputs.shape[1], written.shape[1]):
            with torch.no_grad():
                assert int(model(written[:, :end]).logits[0, -1].argmax()) == int(written[0, end])
    assert torch.equal(written, baked.generate(inputs, **more)) and not torch.equal(written, plain)


def test_inside_lm_eval(learned):
    lm_eval = pytest.importorskip("lm_eval.models.huggingface")
    model, tokenizer, found = learned
    baked = copy.deepcopy(model)
    nl.bake(baked, found)
    asked = [("Question: which of these is blue?\nAnswer:", f" {word}") for word in ("red", "blue", "seven")]

    def loglikelihoods(model):
        from lm_eval.api.instance import Instance

        lm = lm_eval.HFLM(pretrained=model, tokenizer=tokenizer)
        requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(asked)]
        return [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]

    plain, in_weights = loglikelihoods(model), loglikelihoods(baked)
    with found.apply(model):
        live = loglikelihoods(model)
    assert live == pytest.approx(in_weights, abs=1e-4) and live != pytest.approx(plain, abs=1e-2)
