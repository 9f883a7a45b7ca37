"""Objectives: one number of a model's answer that attribution explains. `neuronllm.objectives` is its public face.

An objective is a function of what is read off the answer logits: a score for every option (the logsumexp of the logits
of its tokens), which option is right, and, for those that ask for it, the log of the normaliser over the vocabulary.
One that does not ask for it lets the model's head compute a handful of logits alone.

>>> from neuronllm.engine.objectives import Objective
>>> above_mean = Objective("above_mean", lambda read: read.of_right(read.options) - read.options.mean(-1))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.registry import check_own_name, known_names, offered

ENTRY_POINTS = "neuronllm.objectives"
NEVER = -1e30  # the score of an option that a prompt does not have: no -inf, whose gradients are NaN


@dataclass(frozen=True)
class Readout:
    """What an objective may read, in float32 or better; any number of leading dimensions, such as prompts and rows."""

    options: Tensor  # (..., options): the score of every option, NEVER where a prompt has fewer
    right: Tensor  # (..., 1): the number of the right option
    log_z: Tensor | None = None  # (...): log of the vocabulary's normaliser, where the objective asks for it

    def of_right(self, values: Tensor) -> Tensor:
        """(..., options) -> (...): the value of the right option."""
        return values.gather(-1, self.right.expand(*values.shape[:-1], 1))[..., 0]

    @property
    def others(self) -> Tensor:
        """(..., options): the scores of all options but the right one, which is NEVER."""
        return self.options.scatter(-1, self.right.expand(*self.options.shape[:-1], 1), NEVER)

    @property
    def logp_vocab(self) -> Tensor:
        """(...): log-probability of the right option among the whole vocabulary."""
        if self.log_z is None:
            raise InputError("objective: it reads the vocabulary's normaliser without asking for it: vocabulary=True")
        return self.of_right(self.options) - self.log_z


@dataclass(frozen=True)
class Objective:
    """A number of the answer, differentiable: `value(readout)` has one a row of the readout."""

    name: str
    value: Callable[[Readout], Tensor]
    vocabulary: bool = False  # it reads log_z, so the head computes the logits of the whole vocabulary
    forms: int | None = None  # of the token forms of an option ("A", " A"), how many count; None: all
    least: int = 1  # options that every prompt must have; 2 where the right one is compared with others

    def __str__(self) -> str:
        return self.name


# What callers may give: a name, or the object itself, registered or not.
AnyObjective: TypeAlias = "Objective | str"
OBJECTIVES: dict[str, Objective] = {}
OURS: frozenset[str] = frozenset()  # names that are taken


def register(objective: Objective) -> Objective:
    """Add an objective under its name, so that `nl.attribute(..., objective=name)` finds it.

    A package does the same without a call, by an entry point in the group "neuronllm.objectives" named after it.
    """
    if not isinstance(objective, Objective):
        raise InputError(f"objective: register an Objective, not {type(objective).__name__}")
    check_own_name("objective", objective.name, OURS)
    OBJECTIVES[objective.name] = objective
    return objective


def get_objective(objective: AnyObjective) -> Objective:
    """The objective of this name; an object is its own.

    >>> get_objective("margin").vocabulary
    False
    """
    if isinstance(objective, Objective):
        return objective
    found = OBJECTIVES.get(objective) or offered(ENTRY_POINTS, objective) if isinstance(objective, str) else None
    if not isinstance(found, Objective):
        known = known_names(ENTRY_POINTS, OBJECTIVES)
        raise InputError(f"objective={objective!r}: known objectives are {known}")
    return found


def _nothing(read: Readout) -> Tensor:
    raise InputError("objective: this method explains none")


# What a method is handed that explains no objective.
NO_OBJECTIVE = Objective("", _nothing)
# The probability of the bare letter alone ("A", never " A"), which QRNCA's released code explains.
BARE_LETTER = Objective("p_vocab_bare", lambda read: read.logp_vocab.exp(), vocabulary=True, forms=1)


def _mean_margin(read: Readout) -> Tensor:
    """The right option's score less the mean of the others': linear, so that over rotations letters cancel exactly."""
    real = read.options > NEVER / 2
    right = read.of_right(read.options)
    others = torch.where(real, read.options, 0.0).sum(-1) - right
    return right - others / (real.sum(-1) - 1)


for _objective in (
    Objective("logp_options", lambda read: read.of_right(read.options.log_softmax(-1)), least=2),
    Objective("p_options", lambda read: read.of_right(read.options.softmax(-1)), least=2),
    Objective("margin", lambda read: read.of_right(read.options) - read.others.logsumexp(-1), least=2),
    Objective("mean_margin", _mean_margin, least=2),
    Objective("logp_vocab", lambda read: read.logp_vocab, vocabulary=True),
    Objective("p_vocab", lambda read: read.logp_vocab.exp(), vocabulary=True),
    BARE_LETTER,
):
    register(_objective)
OURS = frozenset(OBJECTIVES)
