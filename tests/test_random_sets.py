"""Random sets to compare with: they keep blocks and experts, and matched ones are about as strong."""

from __future__ import annotations

import pytest
import torch

from neuronllm.engine import open_engine
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.model.anatomy import Anatomy
from neuronllm.model.outputs import output_norms
from neuronllm.model.random_sets import NEAREST, matched_like, random_like
from neuronllm.runs.processes import Ranks
from neuronllm.steering.controls import random_sets, strengths
from tests.checks import quiz
from tests.test_learn import text_questions
from tests.tiny import tiny

SIZE = 200  # neurons of a block, enough that the nearest are not all of them


@pytest.fixture(scope="module")
def wide():
    """The anatomy of a model of two blocks, strengths of its neurons, and some of both blocks, mixed."""
    anatomy = Anatomy.of(tiny("llama", intermediate_size=SIZE))
    generator = torch.Generator().manual_seed(1)
    strength = torch.rand(2 * SIZE, generator=generator).double() ** 4
    return anatomy, strength, torch.randperm(2 * SIZE, generator=generator)[:30]


def ranks(strength: torch.Tensor) -> list[int]:
    """Of every neuron its place in its block, by strength."""
    found = []
    for block in strength.split(SIZE):
        ordered = sorted(range(SIZE), key=lambda n: float(block[n]))
        found += [ordered.index(n) for n in range(SIZE)]
    return found


def test_matched_neurons_are_near_in_rank_and_no_others_are_drawn(wide):
    anatomy, strength, ids = wide
    rank = ranks(strength)
    for seed in range(5):
        drawn = matched_like(ids, strength, anatomy, torch.Generator().manual_seed(seed))
        assert torch.equal(anatomy.site_of(drawn), anatomy.site_of(ids))
        assert len(drawn.unique()) == len(ids) and not set(drawn.tolist()) & set(ids.tolist())
        free = set(range(2 * SIZE)) - set(ids.tolist())
        for own, other in zip(ids.tolist(), drawn.tolist(), strict=True):
            far = sorted(abs(rank[n] - rank[own]) for n in free if n // SIZE == own // SIZE)
            assert abs(rank[other] - rank[own]) <= far[NEAREST - 1]
            free.remove(other)


def test_matched_neurons_are_nearer_in_strength_than_plain_ones(wide):
    anatomy, strength, ids = wide
    far = {"plain": 0.0, "matched": 0.0}
    for kind, _, drawn in random_sets(ids, anatomy, strength, 20):
        far[kind] += float((strength[drawn] - strength[ids]).abs().mean())
    assert far["matched"] < far["plain"] / 4


def test_the_same_seed_draws_the_same_sets_however_many(wide):
    anatomy, strength, ids = wide
    few, many = (
        {(kind, n): drawn.tolist() for kind, n, drawn in random_sets(ids, anatomy, strength, k)} for k in (2, 5)
    )
    assert list(many) == [(kind, n) for kind in ("plain", "matched") for n in range(5)]
    assert few == {name: many[name] for name in few} and len({tuple(drawn) for drawn in many.values()}) == 10


def test_experts_are_kept():
    anatomy = Anatomy.of(tiny("qwen2_moe"))
    ids = torch.arange(0, anatomy.n_neurons, 3)
    strength = torch.rand(anatomy.n_neurons, generator=torch.Generator().manual_seed(0))
    for _, _, drawn in random_sets(ids, anatomy, strength, 3):
        mine, theirs = (torch.stack(anatomy.locate(some)[:2]) for some in (ids, drawn))
        assert torch.equal(mine, theirs) and len(drawn.unique()) == len(ids)


def test_a_set_that_fills_its_block_is_drawn_from_the_block(wide):
    anatomy, strength, _ = wide
    whole = torch.arange(SIZE)
    for draw in (
        random_like(whole, anatomy, torch.Generator()),
        matched_like(whole, strength, anatomy, torch.Generator()),
    ):
        assert draw.sort().values.tolist() == whole.tolist()
    none = matched_like(whole[:0], strength, anatomy, torch.Generator())
    assert len(none) == 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2_moe"])
def test_what_neurons_write(name):
    model = tiny(name)
    anatomy = Anatomy.of(model)
    norms = output_norms(model, anatomy)
    assert len(norms) == anatomy.n_neurons
    for neuron in range(0, anatomy.n_neurons, 7):
        site = anatomy.sites[int(anatomy.site_of(torch.tensor([neuron])))]
        place = neuron - int(anatomy.offsets[anatomy.sites.index(site)])
        module = model.get_submodule(site.down)
        if site.experts:
            column = module.down_proj[place // site.width][:, place % site.width]
        else:
            column = module.weight[place] if name == "gpt2" else module.weight[:, place]
        assert float(norms[neuron]) == pytest.approx(float(column.detach().norm()), rel=1e-12)


@pytest.mark.parametrize("prompts", [quiz(6), text_questions(4)], ids=["letters", "texts"])
def test_strength_is_the_mean_size_times_what_is_written(prompts):
    model = tiny("llama")
    total = torch.zeros(56, dtype=torch.float64)
    for prompt in prompts:
        tokens = [*prompt.input_ids, *prompt.option_ids[prompt.answer][0][:-1]]
        seen = []
        handles = [
            layer.mlp.down_proj.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0][0]))
            for layer in model.model.layers
        ]
        with torch.no_grad():
            model(torch.tensor([tokens]))
        for handle in handles:
            handle.remove()
        total += torch.cat([h.abs().mean(0) for h in seen]) / len(prompts)
    norms = torch.cat([layer.mlp.down_proj.weight.detach().norm(dim=0) for layer in model.model.layers])
    anatomy = Anatomy.of(model)
    with Ranks.here() as group, ReferenceEngine(model) as plain, open_engine(model, anatomy, prompts) as fast:
        for engine in (plain, fast):
            assert torch.allclose(strengths(engine, prompts, group), total * norms, rtol=1e-5)
