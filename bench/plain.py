"""The baselines: what a competent user writes in plain PyTorch, with hooks on a Hugging Face model.

Pinned, so that a speed-up means the same from commit to commit. They are given what makes them fast without changing
what they are: frozen parameters, scaled-dot-product attention, logits of the last position only, no key-value cache
where nothing reads it, the alphas of a layer in one batch, the best batch size. Nothing here imports neuronllm.

With `cached` they are the same by somebody who has seen that the answer position alone changes: the keys and values of
all tokens before it are computed once, and every pass runs the last token only.

The objective is the log-probability of the right option among the options. All prompts of a call have the same length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def tensors(prompts: Sequence[Any], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (prompts, tokens), option ids (prompts, options) and right options of prompts of one length."""
    ids = torch.tensor([p.input_ids for p in prompts], device=device)
    options = torch.tensor([[ids[0] for ids in p.first_tokens] for p in prompts], device=device)
    return ids, options, torch.tensor([p.answer for p in prompts], device=device)


def _downs(model: Any) -> list[Any]:
    return [layer.mlp.down_proj for layer in model.model.layers]


Prefix = list[tuple[Tensor, Tensor]]  # keys and values of all tokens but the last, layer by layer


def _forward(model: Any, ids: Tensor, prefix: Prefix | None = None) -> Tensor:
    """Logits of the last position, of the whole prompts or of their last tokens behind a kept prefix."""
    if prefix is None:
        return model(ids, logits_to_keep=1, use_cache=False).logits[:, -1]
    from transformers import DynamicCache

    cache = DynamicCache()
    for number, (keys, values) in enumerate(prefix):
        cache.update(keys.expand(len(ids), -1, -1, -1), values.expand(len(ids), -1, -1, -1), number)
    return model(ids[:, -1:], past_key_values=cache).logits[:, -1]


@torch.no_grad()
def _prefix(model: Any, ids: Tensor, cached: bool) -> Prefix | None:
    if not cached:
        return None
    layers = model(ids[:, :-1], logits_to_keep=1, use_cache=True).past_key_values.layers
    return [(layer.keys, layer.values) for layer in layers]


def _objective(logits: Tensor, options: Tensor, answers: Tensor) -> Tensor:
    return logits.float().gather(1, options).log_softmax(-1).gather(1, answers[:, None])[:, 0]


@contextmanager
def _hooked(modules: Sequence[Any], hook: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Call hook(number, input) in front of each module; a tensor that it returns takes the input's place."""

    def one(number: int) -> Any:
        def before(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            new = hook(number, args[0])
            return None if new is None else (new,)

        return before

    handles = [module.register_forward_pre_hook(one(number)) for number, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def inference(model: Any, ids: Tensor, batch: int, use_cache: bool = False) -> Tensor:
    """Answer logits (prompts, vocabulary): the floor of everything."""
    parts = [model(part, logits_to_keep=1, use_cache=use_cache).logits[:, -1] for part in ids.split(batch)]
    return torch.cat(parts)


def gradient(
    model: Any,
    ids: Tensor,
    options: Tensor,
    answers: Tensor,
    batch: int,
    everywhere: bool = False,
    cached: bool = False,
) -> Tensor:
    """h * dF/dh of all neurons at the last position, or summed over all positions: one forward and backward a batch."""
    rows = []
    for part, choices, right in zip(ids.split(batch), options.split(batch), answers.split(batch), strict=True):
        seen: list[Tensor] = []
        prefix = _prefix(model, part, cached)

        def keep(number: int, h: Tensor, seen: list[Tensor] = seen) -> None:
            seen.append(h if h.requires_grad else h.requires_grad_(True))

        with _hooked(_downs(model), keep):
            value = _objective(_forward(model, part, prefix), choices, right)
        grads = torch.autograd.grad(value.sum(), seen)
        products = [h.detach() * g for h, g in zip(seen, grads, strict=True)]
        rows.append(torch.cat([p.sum(1) if everywhere else p[:, -1] for p in products], 1).float())
    return torch.cat(rows)


def integrated_gradients(
    model: Any,
    ids: Tensor,
    options: Tensor,
    answers: Tensor,
    steps: int,
    layers: Sequence[int] = (),
    cached: bool = False,
) -> Tensor:
    """All neurons (of some layers) at the last position, by the midpoint rule.

    One clean forward; then for every layer one forward and backward of the full prompt, once per alpha in one batch.
    """
    downs = [_downs(model)[n] for n in layers] if layers else _downs(model)
    alphas = (torch.arange(steps, device=ids.device) + 0.5) / steps
    rows = []
    for n in range(len(ids)):
        clean: list[Tensor] = []
        prefix = _prefix(model, ids[n : n + 1], cached)
        with torch.no_grad(), _hooked(downs, lambda _, h, seen=clean: seen.append(h[0, -1])):  # type: ignore[misc]
            _forward(model, ids[n : n + 1], prefix)
        scores = []
        copies = ids[n : n + 1].expand(steps, -1)
        for down, h in zip(downs, clean, strict=True):
            scaled = (alphas.to(h.dtype)[:, None] * h).requires_grad_(True)

            def put(_: int, x: Tensor, scaled: Tensor = scaled) -> Tensor:
                return torch.cat([x[:, :-1], scaled[:, None]], 1)

            with _hooked([down], put):
                logits = _forward(model, copies, prefix)
            value = _objective(logits, options[n].expand(steps, -1), answers[n].expand(steps))
            (grad,) = torch.autograd.grad(value.sum(), scaled)
            scores.append(grad.float().mean(0) * h.float())
        rows.append(torch.cat(scores))
    return torch.stack(rows)


Once = tuple[Prefix | None, Tensor]  # what a loop over neurons needs once a prompt: the prefix, the clean objective


@torch.no_grad()
def once(model: Any, ids: Tensor, options: Tensor, answers: Tensor, cached: bool = False) -> Once:
    """What comes before the loop over the neurons of a prompt."""
    prefix = _prefix(model, ids, cached)
    return prefix, _objective(_forward(model, ids, prefix), options, answers)


@torch.no_grad()
def effects(
    model: Any,
    ids: Tensor,
    options: Tensor,
    answers: Tensor,
    neurons: Sequence[tuple[int, int]],
    batch: int,
    before: Once,
    everywhere: bool = False,
) -> Tensor:
    """F(clean) - F(neuron silenced) at the last position of ONE prompt, or at all, for (layer, index) pairs in a loop.

    `batch` copies of the prompt share a forward pass, each with another neuron silenced; the neurons of a pass may be
    of different layers. `before` is what `once` gave.
    """
    prefix, clean = before
    found, positions = [], slice(None) if everywhere else slice(-1, None)
    for start in range(0, len(neurons), batch):
        chosen = neurons[start : start + batch]

        def silence(number: int, h: Tensor, chosen: Sequence[tuple[int, int]] = chosen) -> None:
            for row, (layer, index) in enumerate(chosen):
                if layer == number:
                    h[row, positions, index] = 0

        n = len(chosen)
        with _hooked(_downs(model), silence):
            logits = _forward(model, ids.expand(n, -1), prefix)
        found.append(clean - _objective(logits, options.expand(n, -1), answers.expand(n)))
    return torch.cat(found)
