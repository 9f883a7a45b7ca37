"""Models that PEFT has wrapped are attributed and edited like any other: h is what the wrapped module is given."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.engine.branch import vectors
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.model.anatomy import Anatomy
from neuronllm.model.outputs import output_norms
from neuronllm.results.neurons import NeuronSet
from neuronllm.runs.provenance import weights_hash
from tests.checks import quiz, refused, untouched
from tests.tiny import VOCABULARY, random_prompts, tiny

peft = pytest.importorskip("peft")

DOWN = {"llama": "down_proj", "gpt2": "mlp.c_proj"}
NAMES = tuple(DOWN)
LORA, IA3, OUTPUT, DORA, ELSEWHERE = "lora", "ia3", "ia3 of the output", "dora", "elsewhere"
KINDS = (LORA, IA3, OUTPUT, DORA, ELSEWHERE)


def config(name: str, kind: str) -> Any:
    """An adapter on the down projections, or beside them; feedforward layers of an IA3 are scaled where they begin."""
    more = {"fan_in_fan_out": name == "gpt2", "target_modules": [DOWN[name]]}
    if kind == IA3:
        return peft.IA3Config(feedforward_modules=[DOWN[name]], **more)
    if kind == OUTPUT:
        return peft.IA3Config(feedforward_modules=[], **more)
    if kind == ELSEWHERE:
        more["target_modules"] = ["c_fc", "c_attn"] if name == "gpt2" else ["up_proj", "q_proj"]
    return peft.LoraConfig(r=3, lora_alpha=5, use_dora=kind == DORA, **more)


def wrapped(name: str, kind: str, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    """A tiny model under an adapter that does something."""
    return filled(peft.get_peft_model(tiny(name, dtype), config(name, kind), **more).eval())


@torch.no_grad()
def filled(model: Any, seed: int = 5) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        elif "ia3_l" in name:
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return model


def some_neurons(model: Any) -> NeuronSet:
    ids, role = torch.tensor([3, 11, 20, 30, 39]), np.array(["good", "good", "bad", "bad", "good"])
    return NeuronSet(ids, role, torch.zeros(5), Anatomy.of(model), {}, torch.tensor([1.3, 0.2, 0.0, 2.5, -1.0]))


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


@contextmanager
def engines(model: Any) -> Iterator[tuple[ReferenceEngine, FastEngine]]:
    """The judge and the fast engine, in float64 throughout."""
    with ReferenceEngine(model, dtype=torch.float64) as judge, FastEngine(model, dtype=torch.float64) as fast:
        yield judge, fast


def near(a: torch.Tensor, b: torch.Tensor, limit: float = 1e-9) -> bool:
    return bool((a - b).abs().max() <= limit * b.abs().max()) and bool(b.abs().max() > 0)


# ---- the map ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_map_is_that_of_the_model_underneath(name, kind):
    plain, model = Anatomy.of(tiny(name)), wrapped(name, kind)
    assert Anatomy.of(model.get_base_model()) == plain
    assert Anatomy.of(model).same_layout(plain)
    for site in Anatomy.of(model).sites:
        assert model.get_submodule(site.down) is model.get_base_model().get_submodule(
            site.down[len("base_model.model.") :]
        )


# ---- attribution ----


ALPHAS = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
VERBS = {
    "gradient": lambda engine, prompts: engine.gradients(prompts, "logp_options"),
    "integral": lambda engine, prompts: engine.integrate(prompts, "logp_options", *ALPHAS),
    "exact": lambda engine, prompts: engine.effects(prompts, "logp_options", ids=torch.arange(56)),
    "direct": lambda engine, prompts: engine.direct(prompts, "logp_options"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_fast_engine_gives_what_the_reference_gives(name, kind):
    model, prompts = wrapped(name, kind).get_base_model(), random_prompts()
    with untouched(model), engines(model) as (judge, fast):
        for verb, ask in VERBS.items():
            assert near(ask(fast, prompts), ask(judge, prompts)), verb
        # branches join behind blocks whose neurons' columns are known, adapters included
        assert len(fast._blocks.plain) == (0 if kind == DORA else 2)


@pytest.mark.parametrize("method", ["gradient", "relp", "logprob"])
@pytest.mark.parametrize("kind", [LORA, IA3])
def test_peft_s_own_model_is_attributed_as_the_merged_one_is(kind, method):
    model, prompts = wrapped("llama", kind), quiz(3)
    with untouched(model.get_base_model()):
        scores = nl.attribute(model, None, prompts, method=method, progress=False)
    assert scores.provenance["adapters"] == [f"default ({kind})"]
    inside = nl.attribute(model.get_base_model(), None, prompts, method=method, progress=False)
    assert torch.equal(scores.values, inside.values)
    plain = copy.deepcopy(model).merge_and_unload()
    merged = nl.attribute(plain, None, prompts, method=method, progress=False)
    assert "adapters" not in merged.provenance
    assert near(scores.values.double(), merged.values.double(), 1e-6)


def test_an_adapter_that_does_nothing_changes_no_score():
    prompts = quiz(3)
    model = peft.get_peft_model(tiny("llama"), config("llama", LORA)).eval()  # B is zero
    scores = nl.attribute(model, None, prompts, progress=False)
    assert torch.equal(scores.values, nl.attribute(tiny("llama"), None, prompts, progress=False).values)


# ---- weights: adapters count as long as they are on ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_what_a_neuron_writes_is_what_the_module_does_with_it(name, kind):
    model = wrapped(name, kind).get_base_model()
    site = Anatomy.of(model).sites[1]
    if kind == DORA:
        with refused(site.down.replace(".1.", ".0."), "lora.Linear"):
            output_norms(model, Anatomy.of(model))
        return
    module = model.get_submodule(site.down)
    with torch.no_grad():
        by_hand = module(torch.eye(site.width, dtype=torch.float64)) - module(torch.zeros(1, site.width).double())
        assert near(vectors(model, site), by_hand)
        assert torch.equal(vectors(model, site, torch.tensor([4, 2])), vectors(model, site)[[4, 2]])
    assert near(output_norms(model, Anatomy.of(model))[site.width :], by_hand.norm(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("kind", [LORA, IA3, OUTPUT])
@pytest.mark.parametrize("name", NAMES)
def test_promoted_tokens_are_those_of_what_is_written_through_the_adapter(name, kind):
    model = wrapped(name, kind)
    inside = model.get_base_model()
    site = Anatomy.of(inside).sites[1]
    module = inside.get_submodule(site.down)
    rows = module(torch.eye(site.width, dtype=torch.float64)) - module(torch.zeros(1, site.width).double())
    if name == "gpt2":
        rows, norm = rows - rows.mean(-1, keepdim=True), inside.transformer.ln_f
    else:
        norm = inside.model.norm
    expected = (rows * norm.weight) @ inside.lm_head.weight.T
    with untouched(inside):
        cards = nl.describe(model, None, [site.width + n for n in range(site.width)], tokens=3).cards
    assert [[token["id"] for token in card["promoted"]] for card in cards] == expected.topk(3).indices.tolist()
    found = torch.tensor([[token["value"] for token in card["promoted"]] for card in cards], dtype=torch.float64)
    assert torch.allclose(found, expected.topk(3).values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [LORA, IA3])
def test_merged_and_switched_off_adapters(kind):
    model, prompts = wrapped("llama", kind), random_prompts()
    site = Anatomy.of(model).sites[0]
    on = vectors(model, site).clone()
    with model.disable_adapter():
        assert torch.equal(vectors(model, site), tiny("llama").model.layers[0].mlp.down_proj.weight.T)
    assert near(on, vectors(model, site))
    model.merge_adapter()
    assert near(vectors(model, site), on)
    inside = model.get_base_model()
    with engines(inside) as (judge, fast):
        for verb, ask in VERBS.items():
            assert near(ask(fast, prompts), ask(judge, prompts)), verb


def test_an_ia3_around_a_lora_and_two_adapters_at_once():
    model = wrapped("llama", LORA)
    model.add_adapter("second", config("llama", LORA))
    filled(model, seed=8)
    model.base_model.set_adapter(["default", "second"])
    inside = model.get_base_model()
    stacked = filled(peft.get_peft_model(inside, config("llama", IA3)).eval()).get_base_model()
    site = Anatomy.of(stacked).sites[0]
    module = stacked.get_submodule(site.down)
    with torch.no_grad():
        assert near(vectors(stacked, site), module(torch.eye(site.width, dtype=torch.float64)))
    prompts = random_prompts()
    with engines(stacked) as (judge, fast):
        assert near(VERBS["exact"](fast, prompts), VERBS["exact"](judge, prompts))


def test_what_was_found_out_about_a_model_does_not_outlive_a_switch():
    model = wrapped("llama", LORA)
    inside, prompts = model.get_base_model(), quiz(2)
    on, hashed = nl.attribute(model, None, prompts, progress=False), weights_hash(inside)
    with model.disable_adapter():
        off = nl.attribute(model, None, prompts, progress=False)
        assert weights_hash(inside) != hashed
        assert torch.equal(off.values, nl.attribute(tiny("llama"), None, prompts, progress=False).values)
    assert weights_hash(inside) == hashed and not torch.equal(on.values, off.values)
    assert torch.equal(nl.attribute(model, None, prompts, progress=False).values, on.values)


def both(model: Any, **asked: Any) -> list[torch.Tensor]:
    """Scores of the fast engine, with what it remembers of the model, and of the judge."""
    more = {"dtype": torch.float64, "progress": False, **asked}
    return [nl.attribute(model, None, quiz(2), backend=backend, **more).values for backend in ("fast", "reference")]


def test_blocks_are_tried_again_where_another_adapter_is_chosen():
    model = wrapped("llama", LORA)
    model.add_adapter("second", config("llama", DORA))
    filled(model, seed=8)
    for adapter in ("default", "second", "default"):
        model.set_adapter(adapter)
        assert near(*both(model, method="exact"), 1e-6), adapter


def test_a_head_is_not_cut_for_what_it_was_before_it_learned():
    inside = tiny("llama", tie_word_embeddings=False)
    model = peft.get_peft_model(inside, peft.LoraConfig(r=3, target_modules=["lm_head"])).eval()
    before = both(model)  # B is zero, and the head's weight all there is
    filled(model)
    after = both(model)
    assert near(*before, 1e-6) and near(*after, 1e-6) and not near(after[0], before[0], 1e-3)


@pytest.mark.parametrize("kind", [LORA, IA3])
@pytest.mark.parametrize("autocast", [True, False])
def test_exact_effects_of_16_bit_models_run_in_float32(kind, autocast):
    """With adapters in either type: PEFT keeps them in float32 unless told otherwise."""
    model = wrapped("llama", kind, torch.bfloat16, autocast_adapter_dtype=autocast).get_base_model()
    wide, prompts = copy.deepcopy(model).float(), random_prompts()
    with FastEngine(model) as fast, ReferenceEngine(wide) as judge:
        found, right = (VERBS["exact"](engine, prompts) for engine in (fast, judge))
    assert near(found, right, 1e-3)


def test_a_wrapped_head_is_read_as_it_is():
    model = tiny("llama", tie_word_embeddings=False)
    both = peft.LoraConfig(r=3, target_modules=["lm_head", "down_proj"])
    model = filled(peft.get_peft_model(model, both).eval()).get_base_model()
    values = [
        nl.attribute(
            model, None, quiz(2), backend=backend, objective=objective, dtype=torch.float64, progress=False
        ).values
        for objective in ("logp_options", "p_vocab")
        for backend in ("fast", "reference")
    ]
    assert near(values[0], values[1], 1e-6) and near(values[2], values[3], 1e-6)


# ---- edits ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_live_edit_is_the_edit_by_hand(name, kind):
    model = wrapped(name, kind)
    neurons, clean = some_neurons(model), logits(model)
    factors = torch.ones(2, 28, dtype=torch.float64)
    factors.view(-1)[neurons.ids] = neurons.factor.double()
    downs = [model.get_submodule(site.down) for site in Anatomy.of(model).sites]
    handles = [
        down.register_forward_pre_hook(lambda module, args, row=row: (args[0] * row,))
        for down, row in zip(downs, factors, strict=True)
    ]
    by_hand = logits(model)
    for handle in handles:
        handle.remove()
    with untouched(model.get_base_model()), neurons.apply(model) as steered:
        assert steered is model and torch.equal(logits(model), by_hand)
    assert torch.equal(logits(model), clean) and not torch.equal(by_hand, clean)


def test_generate_is_heard_through_peft_s_model():
    model = wrapped("llama", LORA)
    neurons, ids = some_neurons(model), torch.tensor([[5, 9, 13, 21]])
    plain = copy.deepcopy(model).merge_and_unload()
    how = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    written = []
    for one in (model, plain):
        with neurons.apply(one, positions="answer"):
            written.append(one.generate(input_ids=ids, **how))
    assert torch.equal(written[0].sequences, written[1].sequences)
    assert all(near(a, b, 1e-5) for a, b in zip(written[0].logits, written[1].logits, strict=True))


@pytest.mark.parametrize("kind", [LORA, IA3])
def test_weights_under_an_adapter_are_not_baked(kind, tmp_path):
    model = wrapped("llama", kind)
    neurons = some_neurons(model)
    for refuse in (nl.bake, lambda *given: nl.to_peft(*given, tmp_path / "adapter")):
        for _ in range(2):  # unmerged, and merged but still there
            with (
                untouched(model.get_base_model()),
                refused("model.layers.0.mlp.down_proj", f"{kind}.Linear", "merge_and"),
            ):
                refuse(model, neurons)
            model.merge_adapter()
        model.unmerge_adapter()
    with neurons.apply(model):
        live = logits(model)
    plain = model.merge_and_unload()
    nl.bake(plain, neurons)
    assert near(logits(plain), live, 1e-6)
    assert not list(tmp_path.iterdir())


def test_down_projections_beside_an_adapter_are_baked():
    model = wrapped("llama", ELSEWHERE)
    neurons = some_neurons(model)
    with neurons.apply(model):
        live = logits(model)
    handle = nl.bake(model, neurons)
    assert near(logits(model), live)
    handle.undo()


# ---- experts ----


def test_stacked_experts_under_a_lora():
    model = tiny("mixtral")
    experts = peft.LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"])
    model = filled(peft.get_peft_model(model, experts).eval())
    inside, prompts = model.get_base_model(), random_prompts()
    neurons = some_neurons(model)
    assert Anatomy.of(inside).same_layout(Anatomy.of(tiny("mixtral")))
    with engines(inside) as (judge, fast):
        for verb in ("gradient", "exact"):
            assert near(VERBS[verb](fast, prompts), VERBS[verb](judge, prompts)), verb
    clean = logits(model)
    with neurons.apply(model):
        assert not torch.equal(logits(model), clean)
    assert torch.equal(logits(model), clean)
    with refused("lora.ParamWrapper", "merge_and_unload"):
        nl.bake(model, neurons)
    with refused("lora.ParamWrapper", "merge"):
        output_norms(inside, Anatomy.of(inside))


# ---- what cannot be ----


def test_learned_tokens_in_front_of_prompts_are_refused():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny("llama"), config).eval()
    with refused("PROMPT_TUNING", "learned tokens"):
        nl.attribute(model, None, quiz(2), progress=False)
    with refused("PROMPT_TUNING"), some_neurons(tiny("llama")).apply(model):
        pass
