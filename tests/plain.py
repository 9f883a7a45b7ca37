"""What the methods are compared with: own hooks, one forward pass a number, nothing of the engine's scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neuronllm.data.prompts import Prompt
from neuronllm.engine.borrowed import DoublePrecision
from tests.tiny import random_prompts

DOWN = {"gpt2": "transformer.h.{}.mlp.c_proj", "falcon": "transformer.h.{}.mlp.dense_4h_to_h"}
Objective = Callable[[Tensor, Prompt], Tensor]


def downs(model: Any) -> list[str]:
    """The down projections' names, written out for the few families that are used here."""
    pattern = DOWN.get(model.config.model_type, "model.layers.{}.mlp.down_proj")
    return [pattern.format(layer) for layer in range(model.config.num_hidden_layers)]


def questions(*variants: int, options: int = 3) -> list[Prompt]:
    """Prompts of random tokens, so many variants for each question."""
    names = [f"q{n}" for n, count in enumerate(variants) for _ in range(count)]
    prompts = random_prompts(len(names), options=options)
    return [replace(prompt, question_id=name) for prompt, name in zip(prompts, names, strict=True)]


def by_question(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    names = list(dict.fromkeys(prompt.question_id for prompt in prompts))
    return [[prompt for prompt in prompts if prompt.question_id == name] for name in names]


@contextmanager
def hooked(model: Any, changes: dict[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Run each named module on changes[name](its input)."""
    handles = []
    for name, change in changes.items():
        hook = lambda module, args, change=change: (change(args[0]),)  # noqa: E731
        handles.append(model.get_submodule(name).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits(model: Any, prompt: Prompt, changes: dict[str, Callable[[Tensor], Tensor]] | None = None) -> Tensor:
    """Logits (vocabulary,) at the last token, in float64 throughout."""
    with hooked(model, changes or {}), DoublePrecision():
        return model(input_ids=torch.tensor([prompt.input_ids]), use_cache=False).logits[0, -1]


def activity(model: Any, prompt: Prompt) -> dict[str, Tensor]:
    """h (tokens, width) in front of every down projection."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        return lambda h: seen.setdefault(name, h.detach()[0])[None]

    logits(model, prompt, {name: keep(name) for name in downs(model)})
    return seen


def at_last(value: Tensor) -> Callable[[Tensor], Tensor]:
    """A change that puts `value` (width,) at the last token."""
    return lambda h: torch.cat([h[:, :-1], value[None, None]], 1)


def integrated(model: Any, prompt: Prompt, objective: Objective, alphas: Sequence[float]) -> Tensor:
    """h times the plain mean, over alphas, of dF/dh at alpha * h; one pass for each point."""
    scores = []
    for name, h in activity(model, prompt).items():
        total = torch.zeros_like(h[-1])
        for alpha in alphas:
            scaled = (alpha * h[-1]).requires_grad_(True)
            value = objective(logits(model, prompt, {name: at_last(scaled)}), prompt)
            total += torch.autograd.grad(value, scaled)[0]
        scores.append(h[-1] * total / len(alphas))
    return torch.cat(scores)


def slopes(model: Any, prompt: Prompt, objective: Objective) -> tuple[list[Tensor], list[Tensor]]:
    """(h, dF/dh) of every layer, each (tokens, width)."""
    points, grads = activity(model, prompt), []
    # h is put in by hand, which cuts it off from the layers below: one layer at a time.
    for name, h in points.items():
        point = h.clone().requires_grad_(True)
        value = objective(logits(model, prompt, {name: lambda h, point=point: point[None]}), prompt)
        grads.append(torch.autograd.grad(value, point)[0])
    return list(points.values()), grads


def effects(model: Any, prompt: Prompt, objective: Objective, factor: float) -> Tensor:
    """F(clean) - F(neuron times factor at the last token), one forward pass a neuron."""
    clean = objective(logits(model, prompt), prompt)
    scores = []
    with torch.no_grad():
        for name, h in activity(model, prompt).items():
            for neuron in range(h.shape[1]):
                edited = h[-1].clone()
                edited[neuron] *= factor
                scores.append(clean - objective(logits(model, prompt, {name: at_last(edited)}), prompt))
    return torch.stack(scores).detach()


def option_scores(logits: Tensor, prompt: Prompt) -> Tensor:
    """log of the summed exponentials of each option's token ids."""
    return torch.stack([logits[ids].exp().sum().log() for ids in prompt.first_tokens])


def logp_options(logits: Tensor, prompt: Prompt) -> Tensor:
    weights = option_scores(logits, prompt).exp()
    return (weights[prompt.answer] / weights.sum()).log()


def p_vocab(logits: Tensor, prompt: Prompt) -> Tensor:
    return (logits.exp() / logits.exp().sum())[prompt.first_tokens[prompt.answer]].sum()


def p_bare_letter(logits: Tensor, prompt: Prompt) -> Tensor:
    return logits.softmax(-1)[prompt.first_tokens[prompt.answer][0]]
