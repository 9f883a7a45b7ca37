"""The normaliser of the vocabulary, streamed: answers in words need it at every token, and nobody needs the logits.

The head computes the logits of the tokens that are read, and its input is kept. From that the normaliser is computed
piece by piece of the vocabulary, and with it, where a gradient is wanted, the mean row of the head under the model's
probabilities, which is all of its gradient. No tensor of tokens x vocabulary is made.

What a model does to its logits (scale, cap) is known by trying: `bend_of` compares with the logits of a plain pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .borrowed import DRIVING_ERRORS, STATES, HeldStates, answer_logits, check_finite, tolerance
from .fused import normaliser_by_kernel, normaliser_wanted
from .head import Texts, only_options, wide
from .verdicts import Verdicts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt

NUMBERS = 2**22  # logits of a piece, at most: small enough to stay near the processor
FEWEST = 256  # rows of the vocabulary in a piece, at least
# Where configurations say by what logits are multiplied, or divided.
FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class Bend(NamedTuple):
    """What a model makes of the product with its head: softcap * tanh(scale * product / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, products: Tensor) -> tuple[Tensor, Tensor | float]:
        """Logits, and their derivative by the products."""
        logits = products if self.scale == 1 else products * self.scale
        if self.softcap is None:
            return logits, self.scale
        t = torch.tanh(logits / self.softcap)
        return self.softcap * t, self.scale * (1 - t * t)


def bends(model: PreTrainedModel) -> Iterator[Bend]:
    """What a model may do, by its configuration; its code decides."""
    config: Any = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    named = [getattr(config, name, None) for name in FACTORS]
    factors = [float(value) for value in named if isinstance(value, (int, float)) and value]
    for scale in [1.0, *factors, *(1 / value for value in factors)]:
        yield Bend(scale, softcap)


@torch.no_grad()
def bend_of(model: PreTrainedModel, prompt: Prompt, known: Verdicts) -> Bend | None:
    """The one that gives the plain logits, by one prompt and remembered; None where none does."""
    question = ("what is made of logits", model.dtype)
    if question not in known:
        known[question] = _found(model, torch.tensor([prompt.input_ids]))
    found: Bend | None = known[question]
    return found


def _found(model: PreTrainedModel, ids: Tensor) -> Bend | None:
    plain = answer_logits(model, ids)
    truth, few = wide(plain).logsumexp(-1), torch.arange(2)
    try:
        with keeping_states(model, few) as held:
            cut = answer_logits(model, ids)
        assert held.states is not None
        if not bool(((cut - plain[:, :2]).abs() <= tolerance(plain)).all()):
            return None
        states = held.states.reshape(1, -1)
        near = (bool((log_normaliser(model, states, bend) - truth).abs() <= tolerance(plain)) for bend in bends(model))
        return next((bend for bend, is_near in zip(bends(model), near, strict=False) if is_near), None)
    except DRIVING_ERRORS:
        return None


class _LogNormaliser(torch.autograd.Function):
    """log of the sum over the vocabulary of exp(logit), (rows,); the head itself takes no gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, bend: Bend) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        x = states.detach()
        top = torch.full((len(x),), float("-inf"), dtype=wide(x).dtype, device=x.device)
        total, mean = torch.zeros_like(top), torch.zeros_like(wide(x)) if wanted else None
        size = max(FEWEST, NUMBERS // max(1, len(x)))
        for start in range(0, len(weight), size):
            rows = weight[start : start + size].to(x.dtype)
            some = None if bias is None else bias[start : start + size].to(x.dtype)
            logits, slope = bend(wide(torch.nn.functional.linear(x, rows, some)))
            higher = torch.maximum(top, logits.amax(-1))
            weights = logits.sub_(higher[:, None]).exp_()  # in their place, which are the most numbers of a pass
            old = (top - higher).exp()
            total = total * old + weights.sum(-1)
            if mean is not None:
                mean = mean * old[:, None] + wide(_times(weights, slope).to(x.dtype) @ rows)
            top = higher
        if mean is not None:
            ctx.save_for_backward(mean / total[:, None])
            ctx.dtype = x.dtype
        return top + total.log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (mean,) = ctx.saved_tensors
        return (grads[0][:, None] * mean).to(ctx.dtype), None, None, None


def _times(weights: Tensor, slope: Tensor | float) -> Tensor:
    return weights if isinstance(slope, float) and slope == 1 else weights.mul_(slope)


def log_normaliser(model: PreTrainedModel, states: Tensor, bend: Bend) -> Tensor:
    """(rows, D), what goes into the head -> (rows,)."""
    head: Any = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    if normaliser_wanted(states, head.weight):
        return normaliser_by_kernel(states, head.weight, bias, *bend)
    found: Tensor = _LogNormaliser.apply(states, head.weight, bias, bend)
    return found


@contextmanager
def keeping_states(model: PreTrainedModel, ids: Tensor) -> Iterator[HeldStates]:
    """The head computes the logits of these token ids only, and what goes into it is kept, pass by pass."""
    with only_options(model, ids):
        head: Any = model.get_output_embeddings()
        cut, held = head.forward, HeldStates()

        def keep(x: Tensor) -> Tensor:
            held.states = x
            return cut(x)

        vars(keep).update(vars(cut))
        setattr(keep, STATES, held)
        head.forward = keep
        try:
            yield held
        finally:
            head.forward = cut


@contextmanager
def streamed(model: PreTrainedModel, choices: Texts, bend: Bend, first: bool = True) -> Iterator[Texts]:
    """The same choices, read without logits of the whole vocabulary while the context lasts.

    Without `first`, scores lack the normaliser at the last prompt token, which is the same for all options.
    """
    ids, few = choices.columns()
    rows = choices.rows[choices.there & (first | (choices.nodes > 0))].unique()
    with keeping_states(model, ids) as held:

        def normaliser(logits: Tensor) -> Tensor:
            assert held.states is not None
            index = rows.to(logits.device)
            states = held.states.reshape(*logits.shape[:2], -1)[index]
            found = log_normaliser(model, states.flatten(0, 1), bend).reshape(len(index), -1)
            check_finite(model, found)
            return found.new_zeros(logits.shape[:2]).index_copy(0, index, found)

        yield replace(few, normaliser=normaliser)
