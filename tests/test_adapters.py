"""Adapters: PEFT, left to itself, does with what was written what the live edit does."""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import neuronllm as nl
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.neurons import NeuronSet
from tests.checks import quiz, refused, untouched
from tests.tiny import VOCABULARY, in_time, tiny

peft = pytest.importorskip("peft")

QUICK = ("llama", "phi3", "gpt2")  # plain GLU, fused gate and up, Conv1D with biases
SWEEP = (
    "qwen2",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "granite",
    "glm4",
    "cohere",
    "opt",
    "gpt_neox",
    "falcon",
    "phi",
    "bloom",
)
FAMILIES = in_time([*QUICK, *SWEEP], QUICK)
DTYPES = (torch.float32, torch.bfloat16)
SERVED = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # ranks that vLLM takes


def some_neurons(model, factor=None, **provenance) -> NeuronSet:
    """Neurons of every layer, with factors of their own that are no powers of two."""
    ids = torch.tensor([3, 11, 20, 30, 39, 41])
    role = np.array(["good", "good", "bad", "bad", "good", "bad"])
    own = torch.tensor([1.3, 2.71828, 0.1, 0.0, 1.001, -0.7]) if factor is None else factor
    return NeuronSet(ids, role, torch.arange(6.0), Anatomy.of(model), provenance, own)


def logits(model) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


def live(model, neurons, **how) -> torch.Tensor:
    with neurons.apply(model, positions="all", **how):
        return logits(model)


def loaded(model, folder) -> Any:
    """As somebody loads it who knows PEFT only; what it warns about would be a fault of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


def merged(model, folder) -> Any:
    return loaded(model, folder).merge_and_unload()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


# ---- IA3 ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_an_ia3_is_the_live_edit_to_the_bit(name, dtype, tmp_path):
    model = tiny(name, dtype)
    neurons = some_neurons(model)
    with untouched(model):
        nl.to_peft(model, neurons, tmp_path / "adapter")
    edited, clean = live(model, neurons), logits(model)
    adapted = loaded(model, tmp_path / "adapter")
    assert edited.dtype == dtype and not torch.equal(edited, clean)
    assert torch.equal(logits(adapted), edited)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), clean)
    rounding = 1e-5 if dtype == torch.float32 else 0.2
    assert distance(logits(adapted.merge_and_unload()), edited) < rounding


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_ia3_holds_the_factors_of_edited_layers_alone(dtype, tmp_path):
    model = tiny("llama", dtype)
    nl.to_peft(model, some_neurons(model).take([0, 1, 2]), tmp_path / "adapter")
    (name, factors), *more = load_file(tmp_path / "adapter" / "adapter_model.safetensors").items()
    assert name == "base_model.model.model.layers.0.mlp.down_proj.ia3_l" and not more
    expected = torch.ones(1, 28)
    expected[0, [3, 11, 20]] = torch.tensor([1.3, 2.71828, 0.1]).to(dtype).float()
    assert factors.dtype == torch.float32 and torch.equal(factors, expected)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == config["feedforward_modules"] == r"model\.layers\.(0)\.mlp\.down_proj"
    assert config["peft_type"] == "IA3" and config["fan_in_fan_out"] is False


def test_the_pattern_of_an_ia3_names_the_edited_modules_and_no_other(tmp_path):
    model = tiny("gpt2", torch.float32)
    nl.to_peft(model, some_neurons(model), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    found = [name for name, _ in model.named_modules() if re.fullmatch(config["target_modules"], name)]
    assert found == ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"] and config["fan_in_fan_out"] is True


@pytest.mark.parametrize("how", [{"mode": "enhance"}, {"mode": "degrade"}, {"good": 1.7}, {"good": 0.3, "bad": 4.0}])
@pytest.mark.parametrize("kind", ["ia3", "lora"])
def test_modes_and_factors_mean_what_they_mean_elsewhere(kind, how, tmp_path):
    model = tiny("llama", torch.float32)
    neurons = some_neurons(model)
    nl.to_peft(model, neurons, tmp_path / "adapter", kind, **how)
    assert distance(logits(loaded(model, tmp_path / "adapter")), live(model, neurons, **how)) < 1e-6


# ---- LoRA ----


@pytest.mark.parametrize("name", FAMILIES)
def test_a_lora_is_the_live_edit_to_rounding(name, tmp_path):
    model = tiny(name, torch.float32)
    neurons = some_neurons(model)
    with untouched(model):
        nl.to_peft(model, neurons, tmp_path / "adapter", "lora")
    edited = live(model, neurons)
    assert distance(edited, logits(model)) > 1e-2
    assert distance(logits(loaded(model, tmp_path / "adapter")), edited) < 1e-6
    assert distance(logits(merged(model, tmp_path / "adapter")), edited) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_and_twice_are_merged_to_the_bit(name, dtype, tmp_path):
    model = tiny(name, dtype)
    neurons = some_neurons(model)
    nl.to_peft(model, neurons, tmp_path / "adapter", "lora", mode="enhance")
    handle = nl.bake(model, neurons, mode="enhance")
    baked, by_hand = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    handle.undo()
    unloaded = merged(model, tmp_path / "adapter")
    assert all(torch.equal(value, by_hand[key]) for key, value in unloaded.state_dict().items())
    assert torch.equal(logits(unloaded), baked) and torch.equal(baked, live(model, neurons, mode="enhance"))


def check_for_servers(folder: Path, model: Any) -> None:
    """What vLLM and SGLang ask of an adapter, as the design's notes list it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    assert config["peft_type"] == "LORA" and config["r"] in SERVED and config["lora_alpha"] == config["r"]
    assert isinstance(config["target_modules"], list) and all(
        re.fullmatch(r"[\w.]+", n) for n in config["target_modules"]
    )
    assert not config.get("rank_pattern") and not config.get("alpha_pattern")
    assert config["bias"] == "none" and config["modules_to_save"] is None
    assert not config["use_dora"] and not config["use_rslora"]
    modules = dict(model.named_modules())
    pairs = {re.sub(r"\.lora_[AB]\.weight$", "", name) for name in tensors}
    assert len(tensors) == 2 * len(pairs) > 0
    for pair in pairs:
        name = pair.removeprefix("base_model.model.")
        assert name != pair and any(f".{name}".endswith(f".{end}") for end in config["target_modules"])
        weight = modules[name].weight
        outputs, inputs = weight.shape if isinstance(modules[name], torch.nn.Linear) else weight.shape[::-1]
        assert tensors[f"{pair}.lora_A.weight"].shape == (config["r"], inputs)
        assert tensors[f"{pair}.lora_B.weight"].shape == (outputs, config["r"])


@pytest.mark.parametrize(("most", "rank"), [(1, 1), (2, 8), (8, 8), (9, 16), (28, 32)])
def test_files_obey_the_rules_of_servers(most, rank, tmp_path):
    model = tiny("llama", torch.float32)
    ids = torch.tensor([*range(most), 28])  # one neuron in the second layer, padded to the same rank
    neurons = NeuronSet(ids, np.full(len(ids), "good"), torch.zeros(len(ids)), Anatomy.of(model))
    nl.to_peft(model, neurons, tmp_path / "adapter", "lora", good=0.5)
    check_for_servers(tmp_path / "adapter", model)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == rank


@pytest.mark.parametrize(("name", "ends"), [("llama", ["down_proj"]), ("gpt2", ["mlp.c_proj"]), ("opt", ["fc2"])])
def test_a_lora_reaches_down_projections_of_the_edited_layers_alone(name, ends, tmp_path):
    model = tiny(name, torch.float32)
    neurons = some_neurons(model).take([3, 4])  # of the second layer
    nl.to_peft(model, neurons, tmp_path / "adapter", "lora")
    check_for_servers(tmp_path / "adapter", model)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"] == ends
    wrapped = [n for n, m in loaded(model, tmp_path / "adapter").named_modules() if hasattr(m, "lora_A")]
    assert wrapped == [f"base_model.model.{Anatomy.of(model).sites[1].down}"]


def test_more_neurons_than_servers_take_are_refused(tmp_path):
    model = tiny("llama", torch.float32, intermediate_size=520)
    for count in (512, 513):
        neurons = NeuronSet(torch.arange(count), np.full(count, "good"), torch.zeros(count), Anatomy.of(model))
        if count == 512:
            nl.to_peft(model, neurons, tmp_path / "512", "lora", good=0.0)
            check_for_servers(tmp_path / "512", model)
            continue
        with refused("model.layers.0.mlp.down_proj", "513", "512", "bake", "ia3"):
            nl.to_peft(model, neurons, tmp_path / "513", "lora", good=0.0)
        nl.to_peft(model, neurons, tmp_path / "ia3", good=0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["512", "ia3"]


# ---- the folder ----


def test_the_folder_tells_what_it_is(tmp_path):
    model = tiny("llama", torch.float32)
    scores = nl.attribute(model, None, quiz(2), progress=False)
    neurons = scores.find(3, 3)
    nl.to_peft(model, neurons, tmp_path / "adapter", mode="enhance")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "neuronllm_adapter.json",
    ]
    card = (tmp_path / "adapter" / "README.md").read_text()
    for line in neurons.describe().split("\n"):
        assert line in card
    for part in ('library_name: "peft"', '"ia3"', 'PeftModel.from_pretrained(model, "adapter")', "enhance"):
        assert part in card
    told = json.loads((tmp_path / "adapter" / "neuronllm_adapter.json").read_text())
    assert told["provenance"] == neurons.provenance and told["mode"] == "enhance" and told["for"]["config"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    with refused("adapter: an earlier result stands there", "overwrite=True"):
        nl.to_peft(model, neurons, tmp_path / "adapter", "lora", mode="degrade")
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before
    nl.to_peft(model, neurons, tmp_path / "adapter", "lora", mode="degrade", overwrite=True)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"


@pytest.mark.parametrize("kind", ["ia3", "lora"])
def test_the_card_shows_the_report_and_what_learning_came_to(kind, tmp_path):
    model = tiny("llama", torch.float32)
    turned = {"good_up": 2, "good_down": 1, "bad_up": 0, "bad_down": 3}
    said = {
        "goal": "enhance",
        "seeds": 3,
        "steps": 8,
        "positions": "all",
        "kept": True,
        "collapsed": False,
        "margin": 2,
    }
    said |= {"turned": turned, "accuracy": [0.25, 0.5], "validation_questions": 40}
    neurons = some_neurons(model, method="gradient", learned=said)
    report = nl.evaluate(model, None, quiz(6, variants=False), neurons, controls=20, progress=False)
    nl.to_peft(model, neurons, tmp_path / "adapter", kind, report=report)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"\n| p_right | {report.base['p_right']:.3f} | {report.p_right:.3f} | " in card and "20 random sets" in card
    assert "- method: gradient\n- positions: all\n" in card
    assert "accuracy of 40 validation questions 0.250 -> 0.500" in card
    report.base = None
    with refused("report: it is of the unedited model"):
        nl.to_peft(model, neurons, tmp_path / "other", kind, report=report)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_of_somebody_else_is_not_replaced(tmp_path):
    model = tiny("llama", torch.float32)
    peft.get_peft_model(copy.deepcopy(model), peft.IA3Config(task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "theirs"
    )
    before = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    with refused("theirs", "not one of ours"):
        nl.to_peft(model, some_neurons(model), tmp_path / "theirs")
    assert {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()} == before


# ---- what cannot be ----


@pytest.mark.parametrize("kind", ["ia3", "lora"])
def test_edits_of_the_answer_position_are_refused_unless_asked_for_everywhere(kind, tmp_path):
    model = tiny("llama", torch.float32)
    neurons = some_neurons(model, positions="answer")
    with refused("answer position", "adapters cannot hold", 'positions="all"'):
        nl.to_peft(model, neurons, tmp_path / "adapter", kind)
    with refused("positions='answer'", "adapters cannot hold"):
        nl.to_peft(model, some_neurons(model), tmp_path / "adapter", kind, positions="answer")
    assert not list(tmp_path.iterdir())
    nl.to_peft(model, neurons, tmp_path / "adapter", kind, positions="all")
    assert distance(logits(loaded(model, tmp_path / "adapter")), live(model, neurons)) < 1e-6


@pytest.mark.parametrize("kind", ["ia3", "lora"])
def test_stacked_experts_are_refused(kind, tmp_path):
    model = tiny("mixtral", torch.float32)
    with refused("experts", "bake"):
        nl.to_peft(model, some_neurons(model), tmp_path / "adapter", kind)
    assert not list(tmp_path.iterdir())


def test_an_expert_that_all_tokens_share_is_a_linear_module(tmp_path):
    model = tiny("qwen2_moe", torch.float32)
    shared = next(n for n, site in enumerate(Anatomy.of(model).sites) if not site.experts)
    ids = Anatomy.of(model).offsets[shared] + torch.tensor([1, 4])
    neurons = NeuronSet(ids, np.array(["good", "bad"]), torch.zeros(2), Anatomy.of(model))
    for kind in ("ia3", "lora"):
        nl.to_peft(model, neurons, tmp_path / kind, kind, good=1.5, bad=0.0)
        edited = live(model, neurons, good=1.5, bad=0.0)
        assert distance(logits(loaded(model, tmp_path / kind)), edited) < 1e-6
    assert sorted(NeuronSet.from_peft(tmp_path / "ia3", model).ids.tolist()) == ids.tolist()


def test_quantised_weights_take_an_ia3_only(tmp_path):
    model = tiny("llama", torch.float32)
    down = model.model.layers[0].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.detach().to(torch.int8), requires_grad=False)
    neurons = some_neurons(model)
    with refused("model.layers.0.mlp.down_proj", "quantised", 'kind="ia3"'):
        nl.to_peft(model, neurons, tmp_path / "lora", "lora")
    nl.to_peft(model, neurons, tmp_path / "ia3")
    assert [path.name for path in tmp_path.iterdir()] == ["ia3"]
    assert "no IA3 into 4-bit or 8-bit weights" in (tmp_path / "ia3" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"kind": "dora"}, ["kind='dora'", "ia3, lora"]),
        ({"mode": "stronger"}, ["mode='stronger'"]),
        ({"good": float("nan")}, ["good", "finite"]),
        ({"good": 1.0, "bad": 1.0}, ["no neuron is edited"]),
    ],
)
def test_bad_arguments_leave_nothing_behind(arguments, parts, tmp_path):
    model = tiny("llama", torch.float32)
    with untouched(model), refused(*parts):
        nl.to_peft(model, some_neurons(model), tmp_path / "adapter", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["ia3", "lora"])
def test_a_factor_beyond_the_type_of_the_model_is_refused(kind, tmp_path):
    model = tiny("llama", torch.float16)
    with untouched(model), refused("layers.0.mlp.down_proj", "1e+06", "float16", "bfloat16"):
        nl.to_peft(model, some_neurons(model), tmp_path / "adapter", kind, good=1e6)
    assert not list(tmp_path.iterdir())
    nl.to_peft(model, some_neurons(model), tmp_path / "adapter", kind, good=65504)
    nl.to_peft(model.bfloat16(), some_neurons(model), tmp_path / "wide", kind, good=1e6)


@pytest.mark.parametrize(
    ("name", "told"),
    [("somebody/theirs", "somebody/theirs"), ("gpt2", "gpt2"), ("demo", None), ("", None), ("/no/such/folder", None)],
)
def test_the_base_model_is_a_name_that_peft_can_load_or_none(name, told, tmp_path):
    model = tiny("llama", torch.float32)
    model.config._name_or_path = name
    nl.to_peft(model, some_neurons(model), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == told
    assert (
        f"- for: {told or ('demo' if name == 'demo' else 'llama (config ')}"
        in (tmp_path / "adapter" / "README.md").read_text()
    )
    loaded(model, tmp_path / "adapter")


def test_a_set_of_another_model_is_refused(tmp_path):
    with refused("28", "40"):
        nl.to_peft(tiny("llama", intermediate_size=40), some_neurons(tiny("llama")), tmp_path / "adapter")
