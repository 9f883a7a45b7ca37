"""Neurons inside mixtures of experts: their map, live edits and baking, against experts written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import neuronllm as nl
from neuronllm.judging.controls import random_like
from neuronllm.model.anatomy import Anatomy
from neuronllm.model.edit import edit
from neuronllm.model.hooks import HookError, visiting
from neuronllm.model.sites import DENSE, SHARED, Site
from neuronllm.results.neurons import NeuronSet
from tests.checks import Fuse, blow_after, quiz, refused, untouched
from tests.experts_by_hand import experts_by_hand, seen_by_hand
from tests.tiny import EXPERTS, VOCABULARY, tiny

IMPLEMENTATIONS = ("eager", "grouped_mm")
LOW = (torch.float32, torch.bfloat16)  # grouped products know no float64


def mixture(name: str, dtype: torch.dtype, implementation: str):
    model = tiny(name, dtype)
    model.set_experts_implementation(implementation)
    return model


def token_ids(rows: int = 2, length: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, ids: torch.Tensor | None = None) -> torch.Tensor:
    return model(input_ids=token_ids() if ids is None else ids).logits


def some_factors(anatomy: Anatomy, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of all neurons, each with a factor of its own."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(anatomy.n_neurons, generator=generator)[: anatomy.n_neurons // 2]
    return ids, 2 * torch.rand(len(ids), generator=generator, dtype=torch.float64)


def factors_by_hand(anatomy: Anatomy, ids: torch.Tensor, factors: torch.Tensor, tokens: set[int] | None = None):
    """The same edit as a change of h by address, for `experts_by_hand`."""
    places = zip(*(x.tolist() for x in anatomy.locate(ids)), factors.tolist(), strict=True)
    table = {(layer, expert, index): factor for layer, expert, index, factor in places}

    def change(layer: int, expert: int, token: int, h: torch.Tensor) -> torch.Tensor:
        if tokens is not None and token not in tokens:
            return h
        return h * torch.tensor([table.get((layer, expert, i), 1.0) for i in range(len(h))], dtype=h.dtype)

    return change


# --- the map ---


def test_sites_of_every_family():
    sites = {
        name: [(s.layer, s.expert, s.experts, s.width, s.down) for s in Anatomy.of(tiny(name)).sites]
        for name in EXPERTS
    }
    routed = [(layer, 0, 4, 8, f"model.layers.{layer}.mlp.experts") for layer in range(2)]
    for name in ("mixtral", "qwen3_moe", "olmoe", "gpt_oss"):
        assert sites[name] == routed
    shared = [(layer, SHARED, 0, 20, f"model.layers.{layer}.mlp.shared_expert.down_proj") for layer in range(2)]
    assert sites["qwen2_moe"] == [shared[0], routed[0], shared[1], routed[1]]
    assert sites["deepseek_v3"] == [
        (0, DENSE, 0, 28, "model.layers.0.mlp.down_proj"),
        (1, SHARED, 0, 8, "model.layers.1.mlp.shared_experts.down_proj"),
        routed[1],
    ]


def test_some_layers_may_be_dense():
    anatomy = Anatomy.of(tiny("qwen3_moe", mlp_only_layers=[1]))
    assert [(s.expert, s.experts, s.size) for s in anatomy.sites] == [(0, 4, 32), (DENSE, 0, 28)]


def test_numbering():
    """By layer: dense, shared, then expert after expert."""
    anatomy = Anatomy.of(tiny("deepseek_v3"))
    by_hand = [(0, DENSE, i) for i in range(28)] + [(1, SHARED, i) for i in range(8)]
    by_hand += [(1, e, i) for e in range(4) for i in range(8)]
    ids = torch.arange(anatomy.n_neurons)
    columns = anatomy.locate(ids)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == by_hand
    assert torch.equal(anatomy.flat(*columns), ids)
    assert [len(part) for part in anatomy.split(ids)] == anatomy.sizes == [28, 8, 32]


@pytest.mark.parametrize("address", [(1, 4, 0), (1, 0, 8), (1, DENSE, 0), (0, 0, 0), (1, -3, 0), (1, SHARED, 8)])
def test_foreign_addresses_are_refused(address):
    anatomy = Anatomy.of(tiny("deepseek_v3"))
    with refused("is not in this model", "deepseek_v3", "4 experts"):
        anatomy.flat([address[0]], [address[1]], [address[2]])


def test_the_map_survives_a_file_and_old_files_are_dense():
    anatomy = Anatomy.of(tiny("qwen2_moe"))
    again = Anatomy.from_dict(anatomy.to_dict())
    assert again == anatomy and again.same_layout(anatomy)
    old = {key: value for key, value in anatomy.to_dict()["sites"][0].items() if key != "experts"}
    dense = Anatomy.from_dict({"model_type": "llama", "sites": [old]})
    assert dense.sites[0].experts == 0 and dense.n_neurons == 20
    fewer = Anatomy((*anatomy.sites[:-1], Site(1, 0, 16, "b", "d", (), False, 2)), "qwen2_moe")
    assert fewer.n_neurons == anatomy.n_neurons and not fewer.same_layout(anatomy)


def test_spread_puts_scores_at_their_expert():
    site = Site(0, 0, 2, "b", "d", (), False, 3)
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    routes = torch.tensor([[2, 0], [1, 1]])  # the second token names an expert twice: both count
    expected = torch.tensor([[3.0, 4.0, 0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 12.0, 14.0, 0.0, 0.0]])
    assert torch.equal(site.spread(values, routes), expected)
    assert site.spread(values, None) is values


# --- visiting ---


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", EXPERTS)
def test_a_visited_pass_is_the_models_own_to_the_bit(name, dtype, implementation):
    model = mixture(name, dtype, implementation)
    clean, anatomy = logits(model), Anatomy.of(model)
    shapes = {}

    def look(site, h, routes):
        shapes[site.down] = (tuple(h.shape), None if routes is None else tuple(routes.shape))
        return h.clone()

    with untouched(model), visiting(model, anatomy.sites, look):
        assert torch.equal(logits(model), clean)
    for site in anatomy.sites:
        routed = ((2, 9, 2, site.width), (2, 9, 2))
        assert shapes[site.down] == (routed if site.experts else ((2, 9, site.width), None))


def test_other_implementations_agree_within_rounding():
    model = mixture("mixtral", torch.float32, "batched_mm")
    clean = logits(model)
    with untouched(model), visiting(model, Anatomy.of(model).sites, lambda site, h, routes: h.clone()):
        assert torch.allclose(logits(model), clean, atol=1e-5)


@pytest.mark.parametrize("name", EXPERTS)
def test_h_and_routes_are_those_of_the_written_out_experts(name):
    model, ids = tiny(name), token_ids(1)
    theirs = seen_by_hand(model, ids[0].tolist())
    found = {}

    def look(site, h, routes):
        for token in range(h.shape[1]):
            experts = [site.expert] if routes is None else routes[0, token].tolist()
            rows = h[0, token][None] if routes is None else h[0, token]
            found.update({(site.layer, expert, token): row for expert, row in zip(experts, rows, strict=True)})

    with visiting(model, Anatomy.of(model).sites, look):
        logits(model, ids)
    assert found.keys() == theirs.keys()
    assert all(torch.allclose(found[key], h, atol=1e-6) for key, h in theirs.items())


def test_outer_visitors_come_first():
    model = tiny("qwen2_moe")
    sites, order = Anatomy.of(model).sites, []
    with visiting(model, sites, lambda site, h, routes: order.append("outer") or h + 1):
        with visiting(model, sites, lambda site, h, routes: order.append("inner") or h * 2):
            both = logits(model)
        assert order == ["outer", "inner"] * 4
        outer = logits(model)
    with visiting(model, sites, lambda site, h, routes: (h + 1) * 2):
        assert torch.equal(logits(model), both)
    with visiting(model, sites, lambda site, h, routes: h + 1):
        assert torch.equal(logits(model), outer)


def test_experts_that_are_not_called_by_name_are_noticed():
    model = tiny("mixtral")
    experts = model.model.layers[1].mlp.experts
    experts.forward = lambda *args: type(experts).forward.__wrapped__(experts, *args)
    with pytest.raises(HookError, match="model.layers.1.mlp.experts was bypassed"), edit(model, [0, 40], 0.0):
        logits(model)


def test_experts_spread_over_processes_are_refused():
    model = tiny("mixtral", torch.float32)
    model.model.layers[0].mlp.experts._is_expert_parallel = True
    with refused("spread over processes"), edit(model, [0], 0.0):
        logits(model)


# --- live edits ---


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize(
    ("positions", "tokens"), [("all", None), (-1, {8}), (slice(2, 5), {2, 3, 4}), (torch.tensor([4]), {4})]
)
def test_edits_equal_edits_by_hand(name, positions, tokens):
    model, ids = tiny(name), token_ids(1)
    anatomy = Anatomy.of(model)
    neurons, factors = some_factors(anatomy)
    with experts_by_hand(model, factors_by_hand(anatomy, neurons, factors, tokens)):
        by_hand = logits(model, ids)
    with untouched(model), edit(model, neurons, factors, positions=positions):
        assert torch.allclose(logits(model, ids), by_hand, atol=1e-6)
    assert (by_hand - logits(model, ids)).abs().max() > 1e-3


def test_an_edit_may_be_at_another_token_in_every_row():
    model, ids, at = tiny("qwen2_moe"), token_ids(2), torch.tensor([3, 7])
    anatomy = Anatomy.of(model)
    neurons, factors = some_factors(anatomy)
    with edit(model, neurons, factors, positions=at):
        together = logits(model, ids)
    for row in range(2):
        with experts_by_hand(model, factors_by_hand(anatomy, neurons, factors, {int(at[row])})):
            assert torch.allclose(together[row], logits(model, ids[row : row + 1])[0], atol=1e-6)


def test_a_neuron_of_an_expert_without_tokens_changes_nothing():
    model, ids = tiny("mixtral"), token_ids(1, 1)
    routes = []
    with visiting(model, Anatomy.of(model).sites[:1], lambda site, h, r: routes.append(r)):
        clean = logits(model, ids)
    idle = next(e for e in range(4) if e not in routes[0])
    with edit(model, torch.arange(8) + 8 * idle, 0.0):
        assert torch.equal(logits(model, ids), clean)


def test_an_edit_survives_a_copy_of_the_model():
    """The judge works on a copy in float64: edits around it must reach the copy."""
    import copy

    model = tiny("qwen3_moe", torch.float32)
    with edit(model, torch.arange(64), 0.0):
        expected, copied = logits(model), copy.deepcopy(model)
        assert torch.equal(logits(copied), expected)


def test_exceptions_leave_the_model_as_found():
    model = tiny("deepseek_v3", torch.float32)
    blow_after(model, 0)
    with untouched(model), pytest.raises(Fuse), edit(model, [0, 60], 0.0), edit(model, [61], 2.0):
        logits(model)


@pytest.mark.parametrize("name", EXPERTS)
def test_generation_under_an_edit(name):
    """Token by token through a cache, as without one."""
    model, ids = tiny(name, torch.float32), token_ids(1, 5)
    neurons, factors = some_factors(Anatomy.of(model))
    with untouched(model), edit(model, neurons, factors):
        made = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        again = ids
        for _ in range(4):
            again = torch.cat([again, logits(model, again)[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, again)


# --- baking ---


def drawn_set(model) -> NeuronSet:
    """Neurons of every site."""
    anatomy = Anatomy.of(model)
    ids = torch.cat([torch.arange(first, end, 3) for first, end in anatomy.offsets.unfold(0, 2, 1).tolist()])
    role = np.array(["good", "bad"])[torch.arange(len(ids)).numpy() % 2]
    return NeuronSet(ids, role, torch.zeros(len(ids)), anatomy)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", EXPERTS)
def test_baking_powers_of_two_equals_the_live_edit_to_the_bit(name, dtype, implementation):
    model = mixture(name, dtype, implementation)
    neurons, clean = drawn_set(model), logits(model)
    for good, bad in ((2.0, 0.0), (0.5, 4.0)):
        with neurons.apply(model, good, bad):
            live = logits(model)
        with untouched(model):
            handle = nl.bake(model, neurons, good, bad)
            assert torch.equal(logits(model), live)
            assert not torch.equal(live, clean)
            handle.undo()
    assert torch.equal(logits(model), clean)


@pytest.mark.parametrize("name", EXPERTS)
def test_a_baked_mixture_is_saved_and_read_again(name, tmp_path):
    model = tiny(name, torch.float32)
    neurons = drawn_set(model)
    nl.bake(model, neurons, 1.25, 0.0)
    model.save_pretrained(tmp_path / "model")
    neurons.save_pretrained(tmp_path / "neurons")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert torch.equal(logits(again), logits(model))
    read = NeuronSet.from_pretrained(tmp_path / "neurons")
    assert torch.equal(read.ids, neurons.ids) and read.anatomy.same_layout(Anatomy.of(again))


def test_only_the_named_columns_of_an_expert_change():
    model = tiny("gpt_oss")  # its weights are transposed
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = Anatomy.of(model).flat([1, 1], [2, 3], [5, 0])
    nl.bake(model, NeuronSet(ids, np.array(["good", "bad"]), torch.zeros(2), Anatomy.of(model)), good=0.0, bad=2.0)
    for name, parameter in model.named_parameters():
        rows = {tuple(place[:2]) for place in (parameter != before[name]).nonzero().tolist()}
        assert rows == ({(2, 5), (3, 0)} if name == "model.layers.1.mlp.experts.down_proj" else set())


# --- random controls ---


def test_random_controls_keep_layer_and_expert():
    anatomy = Anatomy.of(tiny("qwen2_moe"))
    ids, _ = some_factors(anatomy)
    drawn = random_like(ids, anatomy, torch.Generator().manual_seed(0))
    for ours, theirs in zip(anatomy.locate(ids)[:2], anatomy.locate(drawn)[:2], strict=True):
        assert torch.equal(ours, theirs)
    assert drawn.unique().numel() == len(ids) and not torch.equal(drawn, ids)


def test_a_report_of_a_mixture():
    model = tiny("qwen2_moe", torch.float32)
    neurons = nl.attribute(model, None, quiz(4), "gradient", positions="answer", progress=False).find(good=4, bad=4)
    assert set(neurons.expert.tolist()) - {SHARED}
    with untouched(model):
        report = nl.evaluate(model, None, quiz(4), neurons, "degrade", controls=20, progress=False)
    assert report.controls is not None and report.controls["sets"] == 20
