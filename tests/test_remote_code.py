"""Models whose code comes with the checkpoint: found, judged and steered, once it is allowed to run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, dynamic_module_utils

import neuronllm as nl
from neuronllm.cli.main import main
from neuronllm.model.anatomy import Anatomy
from tests import plain
from tests.checks import refused, untouched
from tests.tiny import random_prompts
from tests.tiny_tokenizers import numbered

CODE = Path(__file__).with_name("remote_code")
AUTO = {
    "AutoConfig": "configuration_packed.PackedConfig",
    "AutoModelForCausalLM": "modeling_packed.PackedForCausalLM",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint that brings its code along; what transformers copies of it stays in a folder of the tests."""
    found = tmp_path_factory.mktemp("checkpoint") / "packed"
    shutil.copytree(CODE, found, ignore=shutil.ignore_patterns("__pycache__"))
    (found / "config.json").write_text(json.dumps({"model_type": "packed_for_tests", "auto_map": AUTO}))
    numbered().save_pretrained(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(found, trust_remote_code=True)
        AutoModelForCausalLM.from_config(config, trust_remote_code=True).double().save_pretrained(found)
        yield found


def load(folder: Path) -> Any:
    return nl.load_model(folder, trust_remote_code=True)[0]


def test_code_does_not_run_unasked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with refused(str(folder), "code of its own", "trust_remote_code=True", "--trust-remote-code"):
        nl.load_model(folder)
    assert main(["attribute", "--model", str(folder), "--questions", "demo:facts/search", "--output", "never"]) == 2
    assert "--trust-remote-code" in capsys.readouterr().err


def test_neurons_are_found_and_scored(folder: Path) -> None:
    model, prompts = load(folder), random_prompts(2)
    assert type(model).__name__ == "PackedForCausalLM" and model.dtype == torch.float64
    anatomy = Anatomy.of(model)
    assert [site.down for site in anatomy.sites] == plain.downs(model) and anatomy.sizes == [28, 28]
    with untouched(model):
        gradient, exact = (
            nl.attribute(model, None, prompts, method, positions="answer", objective="logp_options", progress=False)
            for method in ("gradient", "exact")
        )
    slopes = []
    for prompt in prompts:
        points, grads = plain.slopes(model, prompt, plain.logp_options)
        slopes.append(torch.cat([h[-1] * grad[-1] for h, grad in zip(points, grads, strict=True)]))
    effects = [plain.effects(model, prompt, plain.logp_options, 0.0) for prompt in prompts]
    for scores, right in ((gradient, slopes), (exact, effects)):
        assert torch.allclose(scores.values.double(), torch.stack(right).mean(0), atol=1e-6)


def test_neurons_are_steered_and_baked(folder: Path, tmp_path: Path) -> None:
    model, prompts = load(folder), random_prompts(3)
    neurons = nl.attribute(model, None, prompts, "gradient", progress=False).find(good=4, bad=4)
    ids = torch.tensor([prompts[0].input_ids])
    with torch.no_grad():
        plainly = model(ids).logits
        with neurons.degrade(model, positions="all"):
            live = model(ids).logits
        nl.bake(model, neurons, mode="degrade", positions="all")
        model.save_pretrained(tmp_path / "baked")
        numbered().save_pretrained(tmp_path / "baked")
        shutil.copytree(CODE, tmp_path / "baked", dirs_exist_ok=True)
        baked = load(tmp_path / "baked")(ids).logits
    assert not torch.allclose(plainly, live) and torch.allclose(baked, live, atol=1e-12)
