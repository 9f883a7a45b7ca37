"""What several test files need: one-line refusals, proof that a model is untouched, neurons with a planted effect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from neuronllm.errors import InputError


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    """The body must raise an InputError of one line that holds every one of `parts`."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def snapshot(model: Any) -> dict[str, Any]:
    """Everything of a model that borrowing it could change, in a form that `==` compares; weights as raw bytes."""
    modules = dict(model.named_modules())
    return {
        "bits": {
            name: tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
            for name, tensor in model.state_dict().items()
        },
        "tied": {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)},
        "dtypes": {name: p.dtype for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grads": [name for name, p in model.named_parameters() if p.grad is not None],
        "training": {name: module.training for name, module in modules.items()},
        "classes": {name: type(module) for name, module in modules.items()},
        "forwards": [name for name, module in modules.items() if "forward" in vars(module)],
        "hooks": {
            name: {key: len(value) for key, value in vars(module).items() if key.endswith("hooks")}
            for name, module in modules.items()
        },
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "random state": torch.get_rng_state().numpy().tobytes(),
        "grad mode": torch.is_grad_enabled(),
    }


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """The body must leave the model, torch's random state and the gradient mode as they were, also when it raises."""
    before = snapshot(model)
    try:
        yield
    finally:
        after = snapshot(model)
        for key, value in before.items():
            assert after[key] == value, f"{key} changed"


def lived_in(model: Any) -> Any:
    """The model as someone in the middle of their own work has it: eager attention, partly frozen, partly training."""
    model.set_attn_implementation("eager")
    model.train()
    list(model.modules())[-1].eval()
    list(model.parameters())[1].requires_grad_(False)
    model.get_submodule("model.layers.0").register_forward_hook(lambda *_: None)
    return model


class Fuse(RuntimeError):
    """Raised in the middle of a forward pass by `blow_after`."""


def blow_after(model: Any, calls: int) -> None:
    """Let the model's last norm raise from the given call on."""
    count = iter(range(10**9))

    def hook(*_: Any) -> None:
        if next(count) >= calls:
            raise Fuse

    model.model.norm.register_forward_pre_hook(hook)


@torch.no_grad()
def plant(model: Any, layer: int, index: int, push: torch.Tensor) -> int:
    """Make a neuron of a tiny GPT-2 fire alike on every token and push the residual stream by `push`; its flat id."""
    mlp = model.transformer.h[layer].mlp
    mlp.c_fc.weight[:, index] = 0
    mlp.c_fc.bias[index] = 6.0
    height = mlp.act(mlp.c_fc.bias[index])
    mlp.c_proj.weight[index] = push / height
    return layer * mlp.c_fc.weight.shape[1] + index
