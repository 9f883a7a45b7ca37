"""Models spread over devices, with weights on disk, and with quantised matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from neuronllm.engine.fast import FastEngine
from neuronllm.engine.reference import ReferenceEngine
from tests.test_fast import CALLS, differences, ragged
from tests.tiny import tiny

LABELS = ["integrate", "gradient", "gradient everywhere", "relp", "effects", "options", "direct", "activations"]


@pytest.mark.parametrize("place", ["cpu", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_is_moved_by_hooks(place, dtype, tmp_path):
    """accelerate wraps the forward of every module, as it does for several devices; on disk, weights come and go."""
    accelerate = pytest.importorskip("accelerate")
    prompts, model = ragged(), tiny("llama", dtype)
    with FastEngine(model) as engine:
        assert engine.unusable(prompts) is None
        truth = {label: CALLS[label](engine, prompts) for label in LABELS}
    whole = ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"]
    places: dict[str, Any] = dict.fromkeys(whole, "cpu") | {"model.layers.1": place}
    spread = accelerate.dispatch_model(
        model, device_map=places, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    forwards = {name: vars(module).get("forward") for name, module in spread.named_modules()}
    assert spread.model.layers[1].mlp.down_proj.weight.is_meta == (place == "disk")
    with FastEngine(spread) as engine:
        assert engine.unusable(prompts) is None
        for label in LABELS:
            limit = 1e-4 if dtype == torch.float32 or label == "effects" else 0.1
            assert differences(CALLS[label](engine, prompts), truth[label]) <= limit, label
    assert {name: vars(module).get("forward") for name, module in spread.named_modules()} == forwards


class Quantised(nn.Linear):
    """A linear module of whole numbers and a scale, as quantisation packages put in the place of the model's own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        scale = linear.weight.detach().abs().amax() / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.bias, self.scale = linear.bias, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_quantised_matrices_pass_gradients_through_activations_only(name):
    model, prompts = tiny(name, torch.float32), ragged()
    for parent in list(model.model.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, child_name, Quantised(child))
    model.lm_head = Quantised(model.lm_head)
    with FastEngine(model) as fast, ReferenceEngine(model) as judge:
        assert fast.unusable(prompts) is None
        assert fast._blocks.plain == frozenset() and not fast.options_head
        for label in LABELS:
            assert differences(CALLS[label](fast, prompts), CALLS[label](judge, prompts)) <= 1e-4, label
