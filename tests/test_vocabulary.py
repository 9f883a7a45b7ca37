"""The streamed normaliser of the vocabulary: torch's own logsumexp and its gradient, without a tensor of that size."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neuronllm.data.prompts import Prompt
from neuronllm.engine import vocabulary
from neuronllm.engine.asking import Asker
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.quadrature import quadrature
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.engine.vocabulary import Bend, _LogNormaliser, bend_of
from tests.tiny import random_prompts, tiny

PROMPTS = [
    Prompt([5, 9, 2, 11, 7], [[[4, 8, 3]], [[4, 6]], [[12]]], 1),
    Prompt([7, 3, 8, 21], [[[9, 9]], [[30], [31, 5, 6]]], 0),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bend", [Bend(), Bend(0.5), Bend(2.0, 3.0)])
@pytest.mark.parametrize("pieces", [1, 7])
def test_normaliser_and_gradient_are_those_of_torch(monkeypatch, bias, bend, pieces):
    draw = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(n, 6, generator=draw, dtype=torch.float64) for n in (4, 50))
    shift = torch.randn(50, generator=draw, dtype=torch.float64) if bias else None
    monkeypatch.setattr(vocabulary, "NUMBERS", 4 * (50 // pieces))
    monkeypatch.setattr(vocabulary, "FEWEST", 1)
    upstream = torch.tensor([1.0, -2.0, 0.0, 3.0], dtype=torch.float64)

    ours = states.clone().requires_grad_(True)
    found = _LogNormaliser.apply(ours, weight, shift, bend)
    (found * upstream).sum().backward()
    plain = states.clone().requires_grad_(True)
    logits = bend.scale * torch.nn.functional.linear(plain, weight, shift)
    if bend.softcap is not None:
        logits = bend.softcap * torch.tanh(logits / bend.softcap)
    (logits.logsumexp(-1) * upstream).sum().backward()
    assert torch.allclose(found, logits.logsumexp(-1), atol=1e-12)
    assert torch.allclose(ours.grad, plain.grad, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "bend"),
    [("llama", Bend()), ("gpt2", Bend()), ("gemma2", Bend(1.0, 30.0)), ("cohere", Bend(0.5)), ("granite", Bend(0.5))],
)
def test_what_a_model_makes_of_logits_is_found(name, bend):
    known = {}
    assert bend_of(tiny(name, torch.float32), random_prompts(1)[0], known) == bend
    assert list(known.values()) == [bend]  # remembered


def test_logits_that_nothing_explains_are_computed_whole():
    model = tiny("llama")
    whole = model.forward

    def odd(*args, **kwargs):
        out = whole(*args, **kwargs)
        out.logits = out.logits + 0.1 * out.logits**2
        return out

    model.forward = odd
    assert bend_of(model, PROMPTS[0], {}) is None
    with ReferenceEngine(model) as judge, FastEngine(model) as fast:
        right = judge.gradients(PROMPTS, "logp_options")
        assert fast.unusable(PROMPTS) is None
        assert torch.allclose(fast.gradients(PROMPTS, "logp_options"), right, atol=1e-9)


class Largest(TorchDispatchMode):
    """The most numbers of a tensor of several rows of the vocabulary, the head's own weight left out."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.size, self.found = vocabulary_size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, (tuple, list)) else [out]:
            if (
                func is not torch.ops.aten.t.default
                and isinstance(part, torch.Tensor)
                and part.shape[-1:] == (self.size,)
                and part.numel() > self.size
            ):
                self.found = max(self.found, part.numel())
        return out


def test_no_tensor_of_tokens_and_vocabulary_is_made(monkeypatch):
    """In a gradient, an integral, exact effects and when the model is asked; plain logits would be one."""
    model = tiny("llama", torch.float32, vocab_size=2000)
    monkeypatch.setattr(vocabulary, "NUMBERS", 1)
    alphas, weights = quadrature("midpoint", 2)
    with FastEngine(model) as fast:
        assert fast.unusable(PROMPTS) is None  # looks at whole logits once
        fast.gradients(PROMPTS, "logp_options")  # and once more
        with Largest(2000) as seen:
            fast.gradients(PROMPTS, "logp_options")
            fast.gradients(PROMPTS, "logp_vocab", positions="all")
            fast.integrate(PROMPTS, "margin", alphas, weights)
            fast.effects(PROMPTS, "p_options")
        assert seen.found == 0
    ask = Asker(model, PROMPTS)
    first = ask.scores()
    with Largest(2000) as seen:
        again = ask.scores()
    assert seen.found == 0 and torch.equal(first, again)
    with Largest(2000) as seen, torch.no_grad():
        model(torch.tensor([PROMPTS[0].input_ids]))
    assert seen.found == 5 * 2000
