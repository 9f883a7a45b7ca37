"""What QRNCA's public code does for its attribution scores, written anew, step by step and in its order.

It is published as a repository, not as a package to install, so the benchmark has its steps instead:

- one prompt after another, and in a prompt one layer after another;
- of every layer first the clean forward pass of the whole prompt, for the up projection's output at the last token;
- that output times 0, 1/(m-1), ..., 1, both ends included;
- copies of the whole prompt, `batch` at a time (all m unless told otherwise), through the model while a wrapper around
  the up projection puts the scaled values in its place; logits of every position, keys and values kept, as the model
  does unless it is told not to;
- the softmax over the vocabulary at the right letter, one gradient call for the sum of its rows;
- the sum of the gradients times the clean output over m.

One thing is better here than there: the parameters are frozen, so that no graph is kept of what lies below the layer.

Scaling the up projection's output u scales h = act(gate) u alike, and u dF/du = h dF/dh: its scores are those of the
neurons. Nothing here imports neuronllm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Replaced(nn.Module):
    """A projection whose output at the last token is something else."""

    def __init__(self, projection: nn.Module, values: Tensor) -> None:
        super().__init__()
        self.projection, self.values = projection, values

    def forward(self, x: Tensor) -> Tensor:
        out = self.projection(x)
        out[:, -1, :] = self.values
        return out


def qrnca_scores(model: Any, ids: Tensor, letters: Tensor, steps: int, batch: int | None = None) -> Tensor:
    """Scores (prompts, neurons) of prompts (prompts, tokens) whose right letters are `letters` (prompts)."""
    rows = []
    for prompt, letter in zip(ids, letters, strict=True):
        rows.append(torch.cat([_layer(model, layer, prompt, letter, steps, batch) for layer in model.model.layers]))
    return torch.stack(rows)


def _layer(model: Any, layer: Any, prompt: Tensor, letter: Tensor, steps: int, batch: int | None) -> Tensor:
    mlp, batch = layer.mlp, batch or steps
    clean = _clean(model, mlp.up_proj, prompt)
    scales = torch.linspace(0, 1, steps, dtype=clean.dtype, device=clean.device)
    scaled = (clean.repeat(steps, 1) * scales[:, None]).requires_grad_(True)
    total = torch.zeros_like(clean[0])
    for values in scaled.split(batch):
        projection = mlp.up_proj
        mlp.up_proj = Replaced(projection, values)
        try:
            logits = model(prompt.repeat(len(values), 1)).logits
        finally:
            mlp.up_proj = projection
        right = logits[:, -1, :].softmax(-1)[:, letter]
        (grad,) = torch.autograd.grad(torch.unbind(right), values)
        total += grad.sum(0)
    return total * clean[0] / steps


def _clean(model: Any, projection: nn.Module, prompt: Tensor) -> Tensor:
    """The projection's output at the last token (1, neurons), by a forward pass of the whole prompt."""
    seen: list[Tensor] = []
    handle = projection.register_forward_hook(lambda module, args, out: seen.append(out[:, -1, :]))
    try:
        model(prompt[None])
    finally:
        handle.remove()
    return seen[0].detach()
