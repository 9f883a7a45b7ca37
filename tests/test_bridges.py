"""Bridges to other libraries: the same logits and the same scores as ours, the real library on the other side.

A library that is not installed leaves its tests out; `make test-doors` installs all of them.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.bridges.inspect import steered_provider
from neuronllm.model.anatomy import Anatomy
from neuronllm.steering.hook_files import to_hooks
from tests import plain
from tests.checks import refused, snapshot
from tests.tiny import GLU, random_prompts, tiny
from tests.tiny_tokenizers import byte_level

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "doors"
FAMILIES = ["llama", "gpt2"]
# One of each build: fused gates, norms behind the FFN, caps, no gate, biases, parallel blocks, a bare FFN in the layer.
MORE = ["phi3", "gemma2", "qwen3", "olmo2", "granite", "opt", "gpt_neox", "falcon", "phi", "starcoder2", "bloom"]
EVERY = [*FAMILIES, *(pytest.param(family, marks=pytest.mark.slow) for family in MORE)]
IDS = torch.tensor([[3, 14, 15, 9, 26, 5], [35, 8, 9, 7, 9, 32]])
PROMPTS = random_prompts(3)
LIMIT = 1e-5


def needs(module: str) -> Any:
    """The library, which also marks the test as one of `make test-doors`."""
    return pytest.importorskip(module, reason="it is not installed: make test-doors")


def some_neurons(model: Any, **provenance: Any) -> nl.NeuronSet:
    """Four good neurons and three bad ones, of both layers."""
    anatomy = Anatomy.of(model)
    role = ["good"] * 4 + ["bad"] * 3
    ids = torch.tensor([0, 5, 27, 30, 3, 28, 40])
    return nl.NeuronSet(ids, np.array(role), torch.linspace(1, -1, 7), anatomy, provenance)


def edited_by_hand(model: Any, factors: dict[int, float], at: Any = slice(None)) -> Tensor:
    """Logits with neurons, by flat id, times factors, through hooks of the test's own."""
    changes: dict[str, Callable[[Tensor], Tensor]] = {}
    width = Anatomy.of(model).sizes[0]
    for layer, name in enumerate(plain.downs(model)):
        row = torch.ones(width)
        for neuron, factor in factors.items():
            if neuron // width == layer:
                row[neuron % width] = factor

        def change(h: Tensor, row: Tensor = row) -> Tensor:
            out = h.clone()
            out[:, at] = out[:, at] * row.to(h.dtype)
            return out

        changes[name] = change
    with torch.no_grad(), plain.hooked(model, changes):
        return model(input_ids=IDS, use_cache=False).logits


def difference(found: Tensor, right: Tensor) -> float:
    return float(((found - right).abs().max() / right.abs().max()).detach())


ENHANCED = {0: 2.0, 5: 2.0, 27: 2.0, 30: 2.0, 3: 0.0, 28: 0.0, 40: 0.0}
OWN = [0.5, 1.5, 1.0, -1.0, 0.25, 3.0, 0.0]


# ---- TransformerLens ----


def bridge_of(model: Any) -> Any:
    sources = needs("transformer_lens.model_bridge.sources")
    return sources.build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


def float32(family: str) -> Any:
    """Without a number of key heads where the family has no such setting: TransformerLens would go by it."""
    return tiny(family, torch.float32, **({} if family in GLU else {"num_key_value_heads": None}))


@pytest.mark.doors
@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_of_transformer_lens_make_the_edit(family: str) -> None:
    model, bridge = float32(family), bridge_of(float32(family))
    neurons = some_neurons(model)
    with torch.no_grad():
        before = bridge(IDS)
        hooks = nl.to_transformer_lens(neurons, mode="enhance")
        assert [name for name, _ in hooks] == ["blocks.0.mlp.out.hook_in", "blocks.1.mlp.out.hook_in"]
        found = bridge.run_with_hooks(IDS, fwd_hooks=hooks)
        with bridge.hooks(fwd_hooks=[(name.replace("out.hook_in", "hook_post"), hook) for name, hook in hooks]):
            assert torch.equal(bridge(IDS), found)
        last = bridge.run_with_hooks(IDS, fwd_hooks=nl.to_transformer_lens(neurons, bad=0.5, positions=-1))
        own = bridge.run_with_hooks(IDS, fwd_hooks=nl.to_transformer_lens(neurons.with_factors(OWN)))
        assert torch.equal(bridge(IDS), before)
    right = edited_by_hand(model, ENHANCED)
    assert difference(found, right) < LIMIT < difference(before, right)
    assert difference(last, edited_by_hand(model, {3: 0.5, 28: 0.5, 40: 0.5}, at=-1)) < LIMIT
    assert difference(own, edited_by_hand(model, dict(zip(ENHANCED, OWN, strict=True)))) < LIMIT


@pytest.mark.doors
@pytest.mark.parametrize("family", EVERY)
def test_a_bridge_is_attributed_as_its_model(family: str) -> None:
    """To the bit, by the fast engine wherever the model itself is; the bridge is as it was."""
    model, inside = float32(family), float32(family)
    bridge = bridge_of(inside)
    with torch.no_grad():
        before = bridge(IDS)
    left = hooks_of(bridge), {name: id(part) for name, part in bridge.named_modules()}
    how: dict[str, Any] = {"method": "gradient", "progress": False}
    right = nl.attribute(model, None, PROMPTS, **how)
    for given in (bridge, bridge.original_model):
        found = nl.attribute(given, None, PROMPTS, **how)
        assert difference(found.values, right.values) < LIMIT
        assert found.provenance["engine"] == right.provenance["engine"] and found.anatomy == right.anatomy
    assert (hooks_of(bridge), {name: id(part) for name, part in bridge.named_modules()}) == left
    with torch.no_grad():
        assert torch.equal(bridge(IDS), before)


def hooks_of(bridge: Any) -> dict[str, int]:
    parts = bridge.named_modules()
    return {
        name: sum(len(value) for key, value in vars(part).items() if key.endswith("_hooks")) for name, part in parts
    }


@pytest.mark.doors
def test_what_asks_a_model_takes_a_bridge() -> None:
    model, bridge = float32("llama"), bridge_of(float32("llama"))
    neurons, quiet = some_neurons(model), {"progress": False}
    prompts = random_prompts(8)
    judged = [nl.evaluate(m, None, prompts, neurons, "enhance", controls=0, **quiet) for m in (model, bridge)]
    assert judged[0].to_dict() == judged[1].to_dict()
    pushed = [nl.pushes(m, None, prompts, neurons.ids, **quiet) for m in (model, bridge)]
    assert torch.equal(*pushed) and pushed[0].abs().max() > 0
    flagged = [nl.letter_neurons(m, None, prompts, neurons, orders="none", **quiet) for m in (model, bridge)]
    assert torch.equal(flagged[0].share, flagged[1].share)
    verified = [nl.verify(m, None, neurons, prompts, margin=0.0, **quiet) for m in (model, bridge)]
    assert torch.equal(verified[0].score, verified[1].score)
    tuned = [nl.tune(m, None, neurons, prompts, ks=[2], margin=0.0, **quiet) for m in (model, bridge)]
    assert tuned[0].tuned == tuned[1].tuned
    learnt: dict[str, Any] = {"neurons": neurons, "steps": 2, "seeds": 1, "margin": None, "retain_weight": 0, **quiet}
    learned = [nl.learn(m, None, prompts, prompts, **learnt) for m in (model, bridge)]
    assert torch.equal(learned[0].factor, learned[1].factor)
    said = [nl.dry_run(m, None, prompts, "gradient", **quiet).splitlines()[:2] for m in (model, bridge)]
    assert said[0] == said[1]


@pytest.mark.doors
def test_a_bridge_is_left_as_found_when_its_model_fails() -> None:
    bridge = bridge_of(float32("llama"))
    inside = bridge.original_model
    with torch.no_grad():
        before = bridge(IDS)
    flags = snapshot(inside)
    norm = inside.get_submodule("model.norm")._original_component
    handle = norm.register_forward_pre_hook(_fail)
    with pytest.raises(MemoryError):
        nl.attribute(bridge, None, PROMPTS, "gradient", backend="reference", progress=False)
    handle.remove()
    assert snapshot(inside) == flags
    with torch.no_grad():
        assert torch.equal(bridge(IDS), before)


def _fail(module: Any, args: Any) -> None:
    raise MemoryError


@pytest.mark.doors
def test_what_a_bridge_cannot_have() -> None:
    bridge = bridge_of(float32("llama"))
    neurons = some_neurons(float32("llama"))
    with refused("bridge.hooks(fwd_hooks=nl.to_transformer_lens(neurons))"), neurons.enhance(bridge):
        pytest.fail("the body ran")
    with refused("before it is bridged"):
        nl.bake(bridge.original_model, neurons, mode="enhance")
    bridge.enable_compatibility_mode(disable_warnings=True)
    with refused("model:", "before enable_compatibility_mode"):
        nl.attribute(bridge, None, PROMPTS, "gradient", progress=False)


# ---- nnsight ----


@pytest.mark.doors
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_of_nnsight_makes_the_edit(family: str) -> None:
    nnsight = needs("nnsight")
    model = float32(family)
    neurons = some_neurons(model)
    before, net = snapshot(model), nnsight.NNsight(model)
    with torch.no_grad(), net.trace(IDS, use_cache=False):
        nl.steer_trace(net, neurons, mode="enhance")
        found = net.output.logits.save()
    with torch.no_grad(), net.trace(IDS, use_cache=False):
        nl.steer_trace(net, neurons, good=0.5, positions=slice(2, None))
        late = net.output.logits.save()
    assert difference(found, edited_by_hand(model, ENHANCED)) < LIMIT
    halved = {neuron: 0.5 for neuron, factor in ENHANCED.items() if factor}
    assert difference(late, edited_by_hand(model, halved, at=slice(2, None))) < LIMIT
    with torch.no_grad(), net.trace(IDS, use_cache=False):
        plainly = net.output.logits.save()
    assert torch.equal(plainly, edited_by_hand(model, {}))
    with net.edit() as (_, steered):
        nl.steer_trace(steered, neurons, mode="enhance")
    with torch.no_grad(), steered.trace(IDS, use_cache=False):
        stays = steered.output.logits.save()
    assert torch.equal(stays, found)
    assert snapshot(copy.copy(model))["bits"] == before["bits"]


@pytest.mark.doors
def test_the_lines_of_an_exported_set_make_the_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than ten layers, whose names are not in the order of the layers."""
    needs("nnsight")
    tokenizer = byte_level()
    model = tiny("llama", torch.float32, num_hidden_layers=12, vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    anatomy = Anatomy.of(model)
    ids = torch.arange(0, anatomy.n_neurons, 20)
    neurons = nl.NeuronSet(ids, np.array(["good"] * len(ids)), torch.ones(len(ids)), anatomy)
    to_hooks(model, neurons, tmp_path / "out", "nnsight", good=2.0)
    block = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    Path("lines.py").write_text(block.replace("MODEL", str(tmp_path / "model")))
    with torch.no_grad():
        names = runpy.run_path("lines.py")  # a trace reads its own source
    text = torch.tensor([tokenizer("The capital of France is").input_ids])
    with torch.no_grad(), neurons.apply(model, good=2.0, positions="all"):
        assert difference(names["logits"], model(text).logits) < LIMIT


@pytest.mark.doors
def test_a_trace_of_another_model() -> None:
    nnsight = needs("nnsight")
    net = nnsight.NNsight(float32("gpt2"))
    with refused("net: the neuron set is of a model with model.layers.0.mlp.down_proj"):
        nl.steer_trace(net, some_neurons(float32("llama")), mode="enhance")


# ---- both: what can be refused without a library ----


def test_edits_that_other_libraries_cannot_make() -> None:
    neurons = some_neurons(float32("llama"))
    with refused("mode=", "with_factors"):
        nl.to_transformer_lens(neurons)
    with refused('positions="answer", and TransformerLens does not say where that begins: give positions="all"'):
        nl.to_transformer_lens(neurons, mode="enhance", positions="answer")
    found_there = some_neurons(float32("llama"), positions="answer")
    with refused("the set is for edits at the answer, and nnsight does not say"):
        nl.steer_trace(None, found_there, mode="enhance")
    with refused("net: give the model as nnsight has it (nnsight.NNsight(model)), not the LlamaForCausalLM"):
        nl.steer_trace(float32("llama"), neurons, mode="enhance")
    with refused("positions='everywhere'"):
        nl.to_transformer_lens(neurons, mode="enhance", positions="everywhere")
    with refused("good=nan: a factor must be a finite number"):
        nl.to_transformer_lens(neurons, good=float("nan"))
    (_, hook), _ = nl.to_transformer_lens(neurons, mode="enhance")
    with refused("the neuron set is of a model with 28 neurons in layer 0, this one has 27"):
        hook(torch.ones(1, 2, 27), hook=None)
    assert nl.to_transformer_lens(neurons, good=1.0) == []  # nothing is turned
    mixture = nl.attribute(tiny("olmoe"), None, PROMPTS, "gradient", progress=False).find(good=2, bad=2)
    with refused("TransformerLens does not show the neurons of a mixture's experts (layer "):
        nl.to_transformer_lens(mixture, mode="enhance")
    with pytest.warns(UserWarning, match="the neuron set is empty"):
        assert nl.to_transformer_lens(neurons.take([]), mode="enhance") == []


# ---- captum ----


def objective(model: Any, prompt: nl.Prompt) -> Callable[[Tensor], Tensor]:
    """log P(right option) among the options, of rows of token ids."""

    def value(ids: Tensor) -> Tensor:
        logits = model(ids, use_cache=False).logits[:, -1]
        options = torch.stack([logits[:, tokens].logsumexp(-1) for tokens in prompt.first_tokens], -1)
        return options.log_softmax(-1)[:, prompt.answer]

    return value


@pytest.mark.doors
@pytest.mark.parametrize("family", FAMILIES)
def test_captum_gives_the_same_scores(family: str) -> None:
    attr = needs("captum.attr")
    model = float32(family)
    downs = [model.get_submodule(name) for name in plain.downs(model)]
    before = snapshot(model)
    for prompt in PROMPTS:
        ids, value = torch.tensor([prompt.input_ids]), objective(model, prompt)
        found = nl.captum.LayerNeuronAttribution(value, model=model).attribute(ids)
        theirs = [attr.LayerGradientXActivation(value, d).attribute(ids, attribute_to_layer_input=True) for d in downs]
        assert [part.shape for part in found] == [part.shape for part in theirs]
        assert all(difference(mine, right) < LIMIT for mine, right in zip(found, theirs, strict=True))
        for positions, where in (("all", slice(None)), ("answer", slice(-1, None))):
            ours = nl.attribute(model, None, [prompt], "gradient", positions=positions, progress=False)
            summed = torch.cat([part[0, where].sum(0) for part in found])
            assert difference(summed.detach(), ours.values) < LIMIT
    assert snapshot(model) == before


@pytest.mark.doors
def test_captum_with_logits_of_a_batch_and_layers_by_choice() -> None:
    needs("captum.attr")
    model = float32("llama")
    every = nl.captum.LayerNeuronAttribution(model).attribute(IDS, target=[(-1, 7), (-1, 9)])
    value = [nl.captum.LayerNeuronAttribution(model).attribute(IDS[n : n + 1], (5, t)) for n, t in ((0, 7), (1, 9))]
    for layer, found in enumerate(every):
        assert difference(found, torch.cat([value[0][layer], value[1][layer]])) < LIMIT
    block = model.model.layers[1]
    for layer in (1, block, block.mlp, block.mlp.down_proj):
        one = nl.captum.LayerNeuronAttribution(model, layer).attribute(IDS, [(-1, 7), (-1, 9)])
        assert difference(one, every[1]) < LIMIT
    for layer in ([1, 0], [block, model.model.layers[0]]):
        back = nl.captum.LayerNeuronAttribution(model, layer).attribute(IDS, [(-1, 7), (-1, 9)])
        assert [difference(a, b) < LIMIT for a, b in zip(back, every[::-1], strict=True)] == [True, True]
    gradients = nl.captum.LayerNeuronAttribution(model, 1, multiply_by_inputs=False).attribute(IDS, (-1, 7))
    times = nl.captum.LayerNeuronAttribution(model, 1).attribute(IDS, (-1, 7))
    seen: list[Tensor] = []
    with plain.hooked(model, {"model.layers.1.mlp.down_proj": lambda h: seen.append(h) or h}):
        model(IDS)
    assert difference(gradients * seen[0], times) < LIMIT


@pytest.mark.doors
def test_captum_given_what_it_cannot_use() -> None:
    needs("captum.attr")
    model = float32("llama")
    for layer, name in ((7, "7"), (-1, "-1"), ("mlp", "'mlp'"), (model.lm_head, "Linear"), (True, "True")):
        with refused(f"layer={name}: give a layer's number, or a module in a layer of the llama with 2 blocks"):
            nl.captum.LayerNeuronAttribution(model, layer)
    with refused("model: give the model that forward_func runs"):
        nl.captum.LayerNeuronAttribution(lambda ids: model(ids).logits)
    with refused("attribute_to_layer_input=False"):
        nl.captum.LayerNeuronAttribution(model).attribute(IDS, (-1, 7), None, False)
    with refused("layer 0: its experts are stacked"):
        nl.captum.LayerNeuronAttribution(tiny("olmoe"))


def test_captum_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    monkeypatch.delitem(sys.modules, "neuronllm.bridges.captum", raising=False)
    with refused("takes the package captum; pip install 'neuronllm[doors]'"):
        importlib.import_module("neuronllm.bridges.captum").LayerNeuronAttribution(float32("llama"))


def test_inspect_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("inspect_ai", "inspect_ai.model"):
        monkeypatch.setitem(sys.modules, name, None)
    with refused("the provider neuronllm of Inspect takes the package inspect-ai; pip install 'neuronllm[doors]'"):
        steered_provider()


# ---- the examples ----


@pytest.mark.doors
@pytest.mark.slow
@pytest.mark.parametrize("name", ["captum", "nnsight", "transformer_lens"])
def test_the_example_runs(name: str, tmp_path: Path) -> None:
    needs(name)
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"with_{name}.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("largest difference"))
    assert float(line.split()[-1]) < LIMIT
