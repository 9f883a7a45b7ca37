"""What contrastive_ce computes, in plain PyTorch; in float64 where it is given float64.

The derivatives are written out, so that nothing but the options' logits is kept. The normaliser of the vocabulary and
its gradient go over the vocabulary piece by piece: no tensor of batch x vocabulary is made.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

OBJECTIVES = ("logp_options", "p_options", "margin", "logp_vocab", "p_vocab")
NEVER = -1e30  # the score of an option that a question does not have: no -inf, whose gradients are NaN
PIECE = 8192  # rows of the vocabulary at a time


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def bent(logits: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor | float]:
    """Scaled and capped logits, and their derivative by the raw ones."""
    logits = logits * scale
    if softcap is None:
        return logits, scale
    t = torch.tanh(logits / softcap)
    return softcap * t, scale * (1 - t * t)


def contrastive_ce(
    hidden: Tensor,
    weight: Tensor,
    options: Tensor,
    right: Tensor,
    bias: Tensor | None,
    objective: str,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The objective (rows,), the options' scores (rows, options) and the gradient of hidden (rows, width)."""
    h, real = wide(hidden), options >= 0
    rows = wide(weight[options.clamp(min=0)])  # (rows, options, forms, width)
    logits = torch.einsum("bd,bkfd->bkf", h, rows)
    if bias is not None:
        logits = logits + wide(bias[options.clamp(min=0)])
    logits, slope = bent(logits, scale, softcap)
    logits = logits.masked_fill(~real, NEVER)
    scores = logits.logsumexp(-1)
    log_z = log_normaliser(hidden, weight, bias, scale, softcap) if "vocab" in objective else None
    value, above = value_and_slope(objective, scores, log_z, right)
    forms = (above[..., None] * logits.softmax(-1) * slope).masked_fill(~real, 0.0)
    grad = torch.einsum("bkf,bkfd->bd", forms, rows)
    if log_z is not None:
        much = torch.ones_like(value) if objective == "logp_vocab" else value
        grad = grad - much[:, None] * normaliser_gradient(hidden, weight, bias, scale, softcap, log_z)
    return value, scores, grad


def value_and_slope(objective: str, scores: Tensor, log_z: Tensor | None, right: Tensor) -> tuple[Tensor, Tensor]:
    """The objective and its derivative by the options' scores."""
    right = right.long()  # one_hot and gather take no int32
    at = torch.nn.functional.one_hot(right, scores.shape[-1]).to(scores)
    mine = scores.gather(-1, right[:, None])[:, 0]
    if objective == "margin":
        others = scores.masked_fill(at.bool(), NEVER)
        found = others > NEVER / 2  # a question of one option has nothing to lose to
        return mine - others.logsumexp(-1), at - others.softmax(-1).masked_fill(~found, 0.0)
    if log_z is not None:
        value = mine - log_z
        return (value, at) if objective == "logp_vocab" else (value.exp(), at * value.exp()[:, None])
    p = scores.softmax(-1).masked_fill(scores == NEVER, 0.0)  # also where no option has a token
    if objective == "logp_options":
        return mine - scores.logsumexp(-1), at - p
    mine = p.gather(-1, right[:, None])
    return mine[:, 0], mine * (at - p)


def pieces(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Iterator[tuple[Tensor, Tensor | float, Tensor]]:
    """Logits, their slopes and the head's rows, a piece of the vocabulary at a time."""
    h = wide(hidden)
    for start in range(0, len(weight), PIECE):
        rows = wide(weight[start : start + PIECE])
        raw = h @ rows.T if bias is None else torch.addmm(wide(bias[start : start + PIECE]), h, rows.T)
        logits, slope = bent(raw, scale, softcap)
        yield logits, slope, rows


def log_normaliser(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    parts = [logits.logsumexp(-1) for logits, _, _ in pieces(hidden, weight, bias, scale, softcap)]
    return torch.stack(parts, -1).logsumexp(-1)


def normaliser_gradient(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None, log_z: Tensor
) -> Tensor:
    """The gradient of log_z: the rows of the vocabulary, weighted by their probabilities."""
    total = torch.zeros_like(wide(hidden))
    for logits, slope, rows in pieces(hidden, weight, bias, scale, softcap):
        total += ((logits - log_z[:, None]).exp() * slope) @ rows
    return total
