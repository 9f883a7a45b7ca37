"""What the answer logits are read for: the scores of options, and the objectives on them.

A letter's score is the logsumexp of the logits of its token ids. Where an objective needs no other logits,
`only_options` lets the model's head compute those alone. The score of an answer of several tokens is its
log-probability, which needs the logits of the whole vocabulary at every token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..model.wrapped import is_wrapped
from .objectives import NEVER, AnyObjective, Objective, Readout, get_objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt

CUT = "of_the_options"  # marks the forward of a head that is cut


class Choices(ABC):
    """Which logits are whose, in a batch of prompts.

    >>> choices = choices_of([prompt])                # doctest: +SKIP
    >>> choices.value(objective, logits)              # doctest: +SKIP
    """

    real: Tensor  # (prompts, options, forms): no padding
    right: Tensor  # (prompts, 1)

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Logits (prompts x nodes, branches, ids) -> the scores of options (prompts, branches, options)."""

    @abstractmethod
    def log_z(self, logits: Tensor) -> Tensor:
        """(prompts, branches): what a score is to be lessened by to be a log-probability among the vocabulary."""

    @property
    def count(self) -> int:
        """Options of a prompt, at most."""
        return self.real.shape[1]

    def value(self, objective: Objective, logits: Tensor, heard: list[Tensor] | None = None) -> Tensor:
        """The objective of every branch, (prompts, branches), in float32 or better.

        `heard`, while it is empty, is given the options that the first branch of each prompt picks.
        """
        scores = self.scores(logits)
        if heard is not None and not heard:
            heard.append(scores.detach()[:, 0].argmax(-1))
        log_z = self.log_z(logits) if objective.vocabulary else None
        value = objective.value(Readout(scores, self.right.to(logits.device)[:, None], log_z))
        if getattr(value, "shape", None) != scores.shape[:-1]:
            raise InputError(
                f"objective {objective.name!r}: its value must be one number a branch, {tuple(scores.shape[:-1])}"
            )
        return value

    def each(self, logits: Tensor) -> Tensor:
        """Branch k's score of option k, (prompts, options): its gradient is that of one option alone."""
        return self.scores(logits).diagonal(dim1=1, dim2=2)


def choices_of(prompts: Sequence[Prompt], forms: int | None = None) -> Choices:
    """The options of prompts, of each one's sequences the first so many; None: all.

    All of them are read either at the last prompt token or behind it.
    """
    return Letters.of(prompts, forms) if all(p.one_token for p in prompts) else Texts.of(prompts, forms)


@dataclass(frozen=True)
class Letters(Choices):
    """Options that are single tokens, read at the last prompt token."""

    ids: Tensor  # (prompts, options, forms)
    real: Tensor
    right: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Prompt], forms: int | None = None) -> Letters:
        options = [[ids[:forms] for ids in p.first_tokens] for p in prompts]
        most, longest = max(len(o) for o in options), max(len(ids) for o in options for ids in o)
        none = [-1] * longest
        lists = [[ids + none[len(ids) :] for ids in o] + [none] * (most - len(o)) for o in options]
        padded = torch.tensor(lists)
        return cls(padded.clamp(min=0), padded >= 0, torch.tensor([[p.answer] for p in prompts]))

    def columns(self) -> tuple[Tensor, Letters]:
        """The token ids that occur, and the same choices numbered by their places among those."""
        wanted, places = self.ids.unique(return_inverse=True)
        return wanted, Letters(places, self.real, self.right)

    def scores(self, logits: Tensor) -> Tensor:
        ids, real = self.ids.to(logits.device), self.real.to(logits.device)
        prompts, branches, _ = logits.shape
        index = ids.reshape(prompts, 1, -1).expand(-1, branches, -1)
        found = logits.gather(-1, index).unflatten(-1, ids.shape[1:])
        return wide(found).masked_fill(~real[:, None], NEVER).logsumexp(-1)

    def log_z(self, logits: Tensor) -> Tensor:
        return wide(logits).logsumexp(-1)


@dataclass(frozen=True)
class Texts(Choices):
    """Options that are token sequences, read off the nodes of the answer trees."""

    nodes: Tensor  # (prompts, options, forms, tokens): behind which node a token is read
    ids: Tensor  # the same shape
    there: Tensor  # the same shape: no padding
    real: Tensor  # (prompts, options, forms)
    lengths: Tensor  # the same shape: what the log-probability is divided by
    offsets: Tensor  # the same shape: what is subtracted before
    right: Tensor
    width: int  # nodes of a tree
    # (prompts x nodes, branches, ids) -> (prompts x nodes, branches): the log of the vocabulary's normaliser
    normaliser: Callable[[Tensor], Tensor] = lambda logits: wide(logits).logsumexp(-1)

    @classmethod
    def of(cls, prompts: Sequence[Prompt], forms: int | None = None) -> Texts:
        options = max(len(p.option_ids) for p in prompts)
        most = max(len(option[:forms]) for p in prompts for option in p.option_ids)
        shape = (len(prompts), options, most, max(p.span for p in prompts))
        nodes, ids = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        there = torch.zeros(shape, dtype=torch.bool)
        lengths, offsets = (torch.full(shape[:3], number, dtype=torch.float64) for number in (1.0, 0.0))
        for n, prompt in enumerate(prompts):
            for k, option in enumerate(prompt.option_ids):
                for f, sequence in enumerate(option[:forms]):
                    tokens = slice(0, len(sequence))
                    ids[n, k, f, tokens] = torch.tensor(sequence)
                    nodes[n, k, f, tokens] = torch.tensor(prompt.tree.paths[k][f])
                    there[n, k, f, tokens] = True
                    if prompt.lengths:
                        lengths[n, k, f] = prompt.lengths[k][f]
                    if prompt.offsets:
                        offsets[n, k, f] = prompt.offsets[k][f]
        width = max(len(p.tree.tokens) for p in prompts)
        right = torch.tensor([[p.answer] for p in prompts])
        return cls(nodes, ids, there, there.any(-1), lengths, offsets, right, width)

    @property
    def rows(self) -> Tensor:
        """(prompts, options, forms, tokens): the row of each token's node in a pass."""
        return self.nodes + self.width * torch.arange(len(self.nodes))[:, None, None, None]

    def columns(self) -> tuple[Tensor, Texts]:
        """The token ids that occur, and the same choices numbered by their places among those."""
        wanted, places = self.ids.unique(return_inverse=True)
        return wanted, replace(self, ids=places)

    def scores(self, logits: Tensor) -> Tensor:
        rows, ids, there, real = (x.to(logits.device) for x in (self.rows, self.ids, self.there, self.real))
        log_z = self.normaliser(logits)
        found = wide(logits[rows, :, ids]) - log_z[rows]  # (prompts, options, forms, tokens, branches)
        logp = found.masked_fill(~there[..., None], 0).sum(-2).movedim(-1, 1)
        real = real[:, None]
        scores = (logp - self.offsets.to(logp)[:, None]) / self.lengths.to(logp)[:, None]
        return scores.masked_fill(~real, NEVER).logsumexp(-1)

    def log_z(self, logits: Tensor) -> Tensor:
        """Scores are log-probabilities already."""
        return wide(logits).new_zeros(len(self.nodes), logits.shape[1])


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
    return Letters.of([prompt], objective.forms).value(objective, one_prompt).reshape(logits.shape[:-1])


@contextmanager
def only_options(model: PreTrainedModel, ids: Tensor) -> Iterator[None]:
    """Let the model's head compute the logits of these token ids only, in this order.

    The head's weight is cut, so whatever the model does to logits (scale, cap, bias) it goes on doing itself.
    """
    head: Any = model.get_output_embeddings()
    if is_wrapped(head):
        raise RuntimeError("what PEFT has added to the head's weight is not in it")
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
