"""The baselines of answers in words: what a competent user writes who scores every option as a sequence of its own.

As in plain.py they are given what makes them fast: frozen parameters, scaled-dot-product attention, batches of the
best size, logits of the answer's tokens only, no key-value cache where nothing reads it. With `cached` the keys and
values of a prompt are computed once, and its options run behind them. Nothing here imports neuronllm.

The objective is the log-probability of the right option among the options, each the sum over its tokens. All prompts of
a call have one length, and all options another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .plain import Prefix, _downs, _hooked


class Asked(NamedTuple):
    """Prompts (prompts, tokens), their options (prompts, options, answer tokens), and the right ones (prompts,)."""

    prompts: Tensor
    options: Tensor
    right: Tensor

    @property
    def span(self) -> int:
        return self.options.shape[2]

    @property
    def sequences(self) -> Tensor:
        """(prompts, options, tokens): each prompt with an option behind it, whose last token is read and not shown."""
        shown = self.prompts[:, None].expand(-1, self.options.shape[1], -1)
        return torch.cat([shown, self.options[..., :-1]], -1)

    def of(self, start: int, stop: int) -> Asked:
        return Asked(*(part[start:stop] for part in self))


def tensors(prompts: Sequence[Any], device: str) -> Asked:
    ids = torch.tensor([p.input_ids for p in prompts], device=device)
    options = torch.tensor([[option[0] for option in p.option_ids] for p in prompts], device=device)
    return Asked(ids, options, torch.tensor([p.answer for p in prompts], device=device))


@torch.no_grad()
def inference(model: Any, asked: Asked, batch: int) -> Tensor:
    """Logits of the answers' tokens, (sequences, answer tokens, vocabulary): the floor of everything."""
    rows = asked.sequences.flatten(0, 1).split(batch)
    return torch.cat([model(part, logits_to_keep=asked.span, use_cache=False).logits for part in rows])


def value(logits: Tensor, asked: Asked) -> Tensor:
    """(..., options, answer tokens, vocabulary) -> (...): the log-probability of the right option among the options."""
    logp = logits.float().log_softmax(-1).gather(-1, asked.options[..., None])[..., 0].sum(-1)
    return logp.log_softmax(-1).gather(-1, asked.right[..., None])[..., 0]


@torch.no_grad()
def _prefixes(model: Any, asked: Asked) -> Prefix:
    """Keys and values of all prompts but their last tokens."""
    layers = model(asked.prompts[:, :-1], logits_to_keep=1, use_cache=True).past_key_values.layers
    return [(layer.keys, layer.values) for layer in layers]


def _run(model: Any, asked: Asked, copies: int, prefix: Prefix | None) -> Tensor:
    """Logits (copies, options, span, vocabulary) of one prompt's sequences, so many times, or (prompts, ...) with 0."""
    rows = asked.sequences
    if copies:
        rows = rows.expand(copies, -1, -1)
    count, options = rows.shape[:2]
    if prefix is None:
        return model(rows.flatten(0, 1), logits_to_keep=asked.span, use_cache=False).logits.unflatten(
            0, (count, options)
        )
    from transformers import DynamicCache

    cache = DynamicCache()
    for number, pair in enumerate(prefix):
        keys, values = (
            (part.expand(count, -1, -1, -1) if copies else part).repeat_interleave(options, 0) for part in pair
        )
        cache.update(keys, values, number)
    logits = model(rows[..., -asked.span :].flatten(0, 1), past_key_values=cache).logits
    return logits.unflatten(0, (count, options))


def gradient(model: Any, asked: Asked, batch: int, everywhere: bool = False, cached: bool = False) -> Tensor:
    """h * dF/dh of all neurons, summed over the answers' tokens of all options, or over all positions of all sequences.

    `batch` prompts share a pass.
    """
    found = []
    for start in range(0, len(asked.prompts), batch):
        some = asked.of(start, start + batch)
        seen: list[Tensor] = []
        prefix = _prefixes(model, some) if cached else None

        def keep(number: int, h: Tensor, seen: list[Tensor] = seen) -> None:
            seen.append(h if h.requires_grad else h.requires_grad_(True))

        with _hooked(_downs(model), keep):
            total = value(_run(model, some, 0, prefix), some).sum()
        grads = torch.autograd.grad(total, seen)
        products = [h.detach() * g for h, g in zip(seen, grads, strict=True)]
        if not everywhere:
            products = [p[:, -some.span :] for p in products]
        found.append(torch.cat([p.sum(1).unflatten(0, (len(some.prompts), -1)).sum(1) for p in products], 1).float())
    return torch.cat(found)


def integrated_gradients(model: Any, asked: Asked, steps: int, cached: bool = False) -> Tensor:
    """All neurons at the answers' tokens, by the midpoint rule: per layer one pass of all sequences, once per alpha."""
    alphas = (torch.arange(steps, device=asked.prompts.device) + 0.5) / steps
    found = []
    for n in range(len(asked.prompts)):
        one, span = asked.of(n, n + 1), asked.span
        prefix = _prefixes(model, one) if cached else None
        clean: list[Tensor] = []
        with torch.no_grad(), _hooked(_downs(model), lambda _, h, seen=clean, span=span: seen.append(h[:, -span:])):  # type: ignore[misc]
            _run(model, one, 1, prefix)
        scores = []
        for down, h in zip(_downs(model), clean, strict=True):
            scaled = (alphas.to(h.dtype)[:, None, None, None] * h).requires_grad_(True)

            def put(_: int, x: Tensor, scaled: Tensor = scaled) -> Tensor:
                return torch.cat([x[:, : -scaled.shape[2]], scaled.flatten(0, 1)], 1)

            with _hooked([down], put):
                logits = _run(model, one, steps, prefix)
            (grad,) = torch.autograd.grad(value(logits, _many(one, steps)).sum(), scaled)
            scores.append((grad.float().mean(0) * h.float()).sum((0, 1)))
        found.append(torch.cat(scores))
    return torch.stack(found)


@torch.no_grad()
def effects(
    model: Any, asked: Asked, neurons: Sequence[tuple[int, int]], batch: int, before: tuple[Prefix | None, Tensor]
) -> Tensor:
    """F(clean) - F(neuron silenced at the answers' tokens) of ONE prompt, for (layer, index) pairs in a plain loop."""
    prefix, clean = before
    found, span, options = [], asked.span, asked.options.shape[1]
    for start in range(0, len(neurons), batch):
        chosen = neurons[start : start + batch]

        def silence(number: int, h: Tensor, chosen: Sequence[tuple[int, int]] = chosen) -> None:
            for copy, (layer, index) in enumerate(chosen):
                if layer == number:
                    h[copy * options : (copy + 1) * options, -span:, index] = 0

        with _hooked(_downs(model), silence):
            logits = _run(model, asked, len(chosen), prefix)
        found.append(clean - value(logits, _many(asked, len(chosen))))
    return torch.cat(found)


@torch.no_grad()
def once(model: Any, asked: Asked, cached: bool = False) -> tuple[Prefix | None, Tensor]:
    """What comes before the loop over the neurons of a prompt: the prefix, the clean objective."""
    prefix = _prefixes(model, asked) if cached else None
    return prefix, value(_run(model, asked, 1, prefix), asked)


def _many(asked: Asked, copies: int) -> Asked:
    """One prompt as many."""
    return Asked(asked.prompts.expand(copies, -1), asked.options.expand(copies, -1, -1), asked.right.expand(copies))
