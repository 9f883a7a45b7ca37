"""Adapters that cannot be read back as neuron sets: one line says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import neuronllm as nl
from neuronllm.results.neurons import NeuronSet
from tests.checks import refused
from tests.test_adapters import some_neurons
from tests.tiny import tiny

peft = pytest.importorskip("peft")


def changed(folder: Path, change) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors), folder / "adapter_model.safetensors")


def broken(tensors: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    first = min(tensors)
    return tensors | {first: tensors[first].index_fill(1, torch.tensor([2]), value)}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: broken(t, float("nan")), ["layers.0.mlp.down_proj", "NaN"]),
        (lambda t: broken(t, float("inf")), ["layers.0.mlp.down_proj", "infinite"]),
        (lambda t: {name: x[:, :-1].contiguous() for name, x in t.items()}, ["(1, 27)", "(1, 28)", "another model"]),
        (lambda t: {name: x.T.contiguous() for name, x in t.items()}, ["(28, 1)", "puts out"]),
        (lambda t: {n.replace("layers.1", "layers.7"): x for n, x in t.items()}, ["another model", "layers.7"]),
        (lambda t: {n.replace("down_proj", "up_proj"): x for n, x in t.items()}, ["up_proj", "no down projection"]),
        (lambda t: {}, ["empty"]),
    ],
)
def test_adapters_that_cannot_be_read(change, parts, tmp_path):
    model = tiny("llama", torch.float32)
    nl.to_peft(model, some_neurons(model), tmp_path / "adapter")
    changed(tmp_path / "adapter", change)
    with refused("adapter", *parts):
        NeuronSet.from_peft(tmp_path / "adapter", model)


def test_what_is_no_ia3_is_refused(tmp_path):
    model = tiny("llama", torch.float32)
    with refused("no adapter of PEFT", "adapter_config.json"):
        NeuronSet.from_peft(tmp_path / "nowhere", model)
    nl.to_peft(model, some_neurons(model), tmp_path / "lora", "lora")
    with refused("a LORA adapter", "only an IA3"):
        NeuronSet.from_peft(tmp_path / "lora", model)
    nl.to_peft(model, some_neurons(model), tmp_path / "ia3")
    with refused("another model", "down_proj"):
        NeuronSet.from_peft(tmp_path / "ia3", tiny("gpt2", torch.float32))
    (tmp_path / "ia3" / "adapter_model.safetensors").rename(tmp_path / "ia3" / "adapter_model.bin")
    with refused("pickle", "safetensors"):
        NeuronSet.from_peft(tmp_path / "ia3", model)
    (tmp_path / "ia3" / "adapter_config.json").write_text("[]")
    with refused("only an IA3"):
        NeuronSet.from_peft(tmp_path / "ia3", model)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": [3, 11, 20, 30, 39, 4000]},
        {"role": ["good"]},
        {"factor": "1.5"},
        {"score": None},
    ],
)
def test_a_record_that_was_changed_is_refused(change, tmp_path):
    model, record = tiny("llama", torch.float32), tmp_path / "adapter" / "neuronllm_adapter.json"
    nl.to_peft(model, some_neurons(model), tmp_path / "adapter")
    told = json.loads(record.read_text())
    record.write_text(json.dumps(told | {"neurons": told["neurons"] | change}))
    with refused("neuronllm_adapter.json", "not as written here"):
        NeuronSet.from_peft(tmp_path / "adapter", model)
    for whole in ([1], {"for": "llama"}, {"for": {"config": "0"}}):
        record.write_text(json.dumps(whole))
        with refused("neuronllm_adapter.json", "not as written here"):
            NeuronSet.from_peft(tmp_path / "adapter", model)


def test_names_of_the_hub_are_no_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused("user/adapter: no such folder here", "hf download user/adapter --local-dir"):
        NeuronSet.from_peft("user/adapter", tiny("llama"))
