"""Decoders that are built in ways of their own: several streams, keys of earlier layers, a head by another name."""

from __future__ import annotations

import pytest
import torch

from neuronllm.engine.asking import Asker, Edited
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.model.discovery import decoder_layers, decoder_of, find_sites
from tests.checks import untouched
from tests.plain import logits
from tests.test_fast import CALLS, differences, ragged
from tests.test_mixers import agrees, family
from tests.texts import text_prompts
from tests.tiny import random_prompts, tiny

FAMILIES = ["gemma3n_text", "gemma4_text", "modernbert-decoder"]
SOON = ["modernbert-decoder", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[:2])]


@pytest.mark.parametrize("name", SOON)
def test_equals_the_judge(name):
    agrees(name, ragged())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_judge_where_prompts_share_what_they_begin_with(name):
    agrees(name, family()[:3])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_judge_for_answers_in_words(name):
    agrees(name, text_prompts((9,)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_does_not_depend_on_its_batch(name):
    model, prompts = tiny(name), family()
    with (
        FastEngine(model, dtype=torch.float64) as shared,
        FastEngine(model, dtype=torch.float64, batch_size=1) as alone,
    ):
        assert shared.unusable(prompts) is None and alone.unusable(prompts[:1]) is None
        for label in ("integrate", "gradient everywhere", "effects"):
            apart = torch.cat([CALLS[label](alone, [prompt]) for prompt in prompts])
            assert differences(CALLS[label](shared, prompts), apart) <= 1e-9, label


@pytest.mark.parametrize("name", FAMILIES)
def test_branches_of_later_layers_attend_to_the_keys_that_they_have(name):
    """Each neuron by itself, switched off in a pass of its own: branches join behind the layers that made the keys."""
    model, prompts = tiny(name), random_prompts(1)
    with FastEngine(model, dtype=torch.float64) as fast:
        assert fast.unusable(prompts) is None
        found, everywhere = (fast.effects(prompts, "logp_options", positions=where)[0] for where in ("answer", "all"))
        sites = fast.anatomy.sites

    def switched(down: str, neuron: int, first: int) -> torch.Tensor:
        def silenced(h: torch.Tensor) -> torch.Tensor:
            h = h.clone()
            h[:, first:, neuron] = 0
            return h

        found = logits(model, prompts[0], {down: silenced})
        options = torch.stack([found[[3 + 2 * k, 4 + 2 * k]].logsumexp(-1) for k in range(3)])
        return options.log_softmax(-1)[prompts[0].answer]

    start, length = 0, len(prompts[0].input_ids)
    for site in sites:
        for neuron in (0, 13, 27):
            for scores, first in ((found, length - 1), (everywhere, 0)):
                effect = switched(site.down, neuron, length) - switched(site.down, neuron, first)
                assert (scores[start + neuron] - effect).abs() <= 1e-12
        start += site.width


def test_a_prompt_as_long_as_there_are_streams():
    prompts = random_prompts(2, length=4)
    model = tiny("gemma3n_text")
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        found, right = (engine.gradients(prompts, "logp_options", positions="all") for engine in (fast, judge))
    assert differences(found, right) <= 1e-9


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_asked_through_the_tree(name):
    model, prompts = tiny(name), family()
    with untouched(model):
        ask = Asker(model, prompts)
        asked = ask.scores()
        assert ask._shared(Edited(model, None, None), ask.sides[0]).agrees
    alone = torch.cat([Asker(model, [prompt]).scores() for prompt in prompts])
    assert (asked - alone).abs().max() <= 1e-5


def test_a_head_that_is_called_the_decoder():
    model = tiny("modernbert-decoder")
    assert decoder_of(model) is model.model
    assert decoder_layers(model) == ("model.layers", model.model.layers)


def test_an_ffn_whose_modules_stand_apart_beside_adapters():
    """XMOD's adapters are a group of two linear modules, its FFN is two modules of one."""
    layers = "roberta.encoder.layer"
    found = [(site.down, site.ups, site.width) for site in find_sites(tiny("xmod"))]
    assert found == [(f"{layers}.{n}.output.dense", (f"{layers}.{n}.intermediate.dense",), 28) for n in range(2)]
