"""What the answer logits are read for: the scores of options, and the objectives on them.

An option's score is the logsumexp of the logits of its token ids. Where an objective needs no other logits,
`only_options` lets the model's head compute those alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common.errors import InputError
from .objectives import NEVER, AnyObjective, Objective, Readout, get_objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt

CUT = "of_the_options"  # marks the forward of a head that is cut


@dataclass(frozen=True)
class Choices:
    """Which logits are whose: the option token ids of a batch of prompts, padded, and the right options.

    >>> choices = Choices.of([prompt])                # doctest: +SKIP
    >>> choices.value(objective, logits)              # doctest: +SKIP
    """

    ids: Tensor  # (prompts, options, forms)
    real: Tensor  # the same shape: no padding
    right: Tensor  # (prompts, 1)

    @classmethod
    def of(cls, prompts: Sequence[Prompt], forms: int | None = None) -> Choices:
        """The options of prompts, of each option's token forms the first so many; None: all."""
        options = [[ids[:forms] for ids in p.first_tokens] for p in prompts]
        most, longest = max(len(o) for o in options), max(len(ids) for o in options for ids in o)
        none = [-1] * longest
        lists = [[ids + none[len(ids) :] for ids in o] + [none] * (most - len(o)) for o in options]
        padded = torch.tensor(lists)
        return cls(padded.clamp(min=0), padded >= 0, torch.tensor([[p.answer] for p in prompts]))

    def columns(self) -> tuple[Tensor, Choices]:
        """The token ids that occur, and the same choices numbered by their places among those."""
        wanted, places = self.ids.unique(return_inverse=True)
        return wanted, Choices(places, self.real, self.right)

    def to(self, device: torch.device) -> Choices:
        return Choices(self.ids.to(device), self.real.to(device), self.right.to(device))

    def scores(self, logits: Tensor) -> Tensor:
        """(prompts, branches, ids) -> (prompts, branches, options), the logsumexp over each option's token ids."""
        here = self.to(logits.device)
        prompts, branches, _ = logits.shape
        index = here.ids.reshape(prompts, 1, -1).expand(-1, branches, -1)
        found = logits.gather(-1, index).unflatten(-1, here.ids.shape[1:])
        return wide(found).masked_fill(~here.real[:, None], NEVER).logsumexp(-1)

    def value(self, objective: Objective, logits: Tensor) -> Tensor:
        """The objective of every branch, (prompts, branches), in float32 or better."""
        log_z = wide(logits).logsumexp(-1) if objective.vocabulary else None
        value = objective.value(Readout(self.scores(logits), self.right.to(logits.device)[:, None], log_z))
        if getattr(value, "shape", None) != logits.shape[:-1]:
            raise InputError(
                f"objective {objective.name!r}: its value must be one number a branch, {tuple(logits.shape[:-1])}"
            )
        return value

    def each(self, logits: Tensor) -> Tensor:
        """Branch k's score of option k, (prompts, options): its gradient is that of one option alone."""
        return self.scores(logits).diagonal(dim1=1, dim2=2)


def wide(x: Tensor) -> Tensor:
    """At least float32, where scores are formed and summed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def option_scores(logits: Tensor, option_ids: list[list[int]]) -> Tensor:
    """(..., vocabulary) -> (..., options): the logsumexp over each option's token ids, in float32 or better.

    >>> option_scores(torch.zeros(10), [[1, 2], [3]])
    tensor([0.6931, 0.0000])
    """
    return torch.stack([wide(logits[..., list(ids)]).logsumexp(-1) for ids in option_ids], -1)


def objective_value(objective: AnyObjective, logits: Tensor, prompt: Prompt) -> Tensor:
    """The objective of answer logits (..., vocabulary) for a prompt, one value each, in float32 or better."""
    objective = get_objective(objective)
    one_prompt = logits.reshape(1, -1, logits.shape[-1])
    return Choices.of([prompt], objective.forms).value(objective, one_prompt).reshape(logits.shape[:-1])


@contextmanager
def only_options(model: PreTrainedModel, ids: Tensor) -> Iterator[None]:
    """Let the model's head compute the logits of these token ids only, in this order.

    The head's weight is cut, so whatever the model does to logits (scale, cap, bias) it goes on doing itself.
    """
    head: Any = model.get_output_embeddings()
    index = ids.to(head.weight.device)
    weight = wide(head.weight[index])  # few rows: float32 costs nothing and rounds no difference away
    bias = None if getattr(head, "bias", None) is None else wide(head.bias[index])
    own = vars(head).get("forward")

    def cut(x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x.to(weight.dtype), weight, bias)

    head.forward = cut
    setattr(cut, CUT, True)
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


def is_cut(module: torch.nn.Module) -> bool:
    """Whether a module is a head that `only_options` has cut."""
    return hasattr(vars(module).get("forward"), CUT)
