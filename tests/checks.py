"""What several test files need: one-line refusals, proof that a model is untouched, neurons with a planted effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from neuronllm.common.errors import InputError
from neuronllm.data.prompts import Prompt
from neuronllm.data.rendering import option_orders
from tests.tiny import VOCABULARY, tiny


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    """The body must raise an InputError of one line that holds every one of `parts`."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def bad(call: Callable[[], object]) -> str:
    """The message of the InputError that the call must raise, after checking that it is one line."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    return message


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
        "generate": id(vars(model).get("generate")),
        "hooks": {
            name: {key: len(value) for key, value in vars(module).items() if key.endswith("hooks")}
            for name, module in modules.items()
        },
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "experts": model.get_experts_implementation(),
        "visitors": [name for name, module in modules.items() if any("neuronllm" in key for key in vars(module))],
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


def letter_model() -> tuple[Any, int, int]:
    """A GPT-2 with two constant neurons that cancel: one pushes towards option A's token, the other back."""
    model = tiny("gpt2", n_inner=28)
    push = 60 * model.transformer.wte.weight[3].detach()
    return model, plant(model, 0, 4, push), plant(model, 0, 5, -push)


def with_every_letter(model: Any) -> list[Prompt]:
    """Prompts that the model answers with every letter equally often, every second one wrong."""
    pool, kept = quiz(400, variants=False, options=(4,)), {letter: [] for letter in range(4)}
    for prompt in pool:
        with torch.no_grad():
            logits = model(torch.tensor([prompt.input_ids])).logits[0, -1]
        letter = int(torch.stack([logits[ids].logsumexp(0) for ids in prompt.first_tokens]).argmax())
        if len(kept[letter]) < 4:
            answer = (letter + len(kept[letter]) % 2) % 4
            kept[letter].append(Prompt(prompt.input_ids, prompt.option_ids, answer, question_id=prompt.question_id))
    assert all(len(prompts) == 4 for prompts in kept.values())
    return [prompt for prompts in kept.values() for prompt in prompts]


def quiz(count: int = 10, seed: int = 3, variants: bool = True, options: tuple[int, ...] = (2, 3, 4)) -> list[Prompt]:
    """Questions of two to four options and unequal lengths, each asked in every rotation."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for n in range(count):
        k = options[n % len(options)]
        answer = (n // 2) % k
        for order in option_orders(k, answer, "rotate" if variants else "none"):
            length = int(torch.randint(5, 20, (1,), generator=generator))
            ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
            tokens = [[[3 + 2 * j], [4 + 2 * j]] if j != 1 else [5] for j in range(k)]
            prompts.append(Prompt(ids, tokens, order.index(answer), question_id=f"q{seed}-{n}", order=order))
    return prompts
