"""How a model answered: what follows from the options' log-probabilities of many prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.forms import option_name
from ..data.prompts import Prompt, group_by_question
from .streaming import Streaming

FEW, ENOUGH = 4, 8  # prompts: below ENOUGH a lean is only seen where all of them agree, below FEW never
SIZES = ("shortest", "between", "longest")


class Answers:
    """How a model answered prompts: option log-probabilities and everything that follows from them."""

    def __init__(self, prompts: Sequence[Prompt], logprobs: Tensor) -> None:
        self.groups = group_by_question(prompts)
        self.form = "texts" if any(prompt.form == "texts" for prompt in prompts) else "letters"
        self.logprobs = logprobs
        self.right_option = np.array([p.answer for p in prompts])
        self.picked = logprobs.argmax(-1).numpy()
        self.right = self.picked == self.right_option
        self.p_right = logprobs.exp()[torch.arange(len(prompts)), torch.from_numpy(self.right_option)].double().numpy()
        self.choice = chosen_choices(logprobs, self.groups).numpy()
        self.question_right = self.choice == np.array(right_choices(self.groups))

    def by_question(self, values: np.ndarray) -> np.ndarray:
        """The mean of prompts' values over the variants of each question."""
        sizes = np.array([len(group) for group in self.groups])
        return np.add.reduceat(values.astype(float), np.cumsum(sizes) - sizes) / sizes

    @property
    def accuracy(self) -> float:
        return float(self.by_question(self.right).mean())

    @property
    def balanced_accuracy(self) -> float:
        """The mean over displayed options, letters or places, of the accuracy where that option is right."""
        return float(np.mean([self.right[self.right_option == n].mean() for n in np.unique(self.right_option)]))

    @property
    def mean_p_right(self) -> float:
        return float(self.by_question(self.p_right).mean())

    @property
    def options(self) -> dict[str, float]:
        """Share of the prompts answered with each displayed option: by letter, or by place."""
        share = np.bincount(self.picked, minlength=self.logprobs.shape[1]) / len(self.picked)
        return {option_name(self.form, n): float(s) for n, s in enumerate(share)}

    @cached_property
    def lengths(self) -> dict[str, Any] | None:
        """Whether short or long options are picked, beside whether these are right, where options differ in length.

        By tokens; {"prompts": how many, "picked": shares by size, "right": the same}. None where all are equal.
        """
        prompts = [prompt for group in self.groups for prompt in group]
        picked, told = shares_by_size(prompts, self.picked)
        right, _ = shares_by_size(prompts, self.right_option)
        return {"prompts": told, "picked": picked, "right": right} if told else None

    @cached_property
    def heard(self) -> Heard:
        """Which options were picked, and which were right."""
        heard = Heard(self.logprobs.shape[1])
        heard.add(torch.from_numpy(self.picked), torch.from_numpy(self.right_option))
        return heard

    @property
    def collapsed(self) -> bool:
        """True if the predictions are more than half of the way to one constant option, a letter or a place."""
        return self.heard.collapsed

    def summary(self) -> dict[str, Any]:
        """The numbers of a report; which bias is watched goes by the form of the answers."""
        letters = self.form == "letters"
        bias = {"letters": self.options} if letters else {"options": self.options, "lengths": self.lengths}
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "p_right": self.mean_p_right,
            **bias,
            "collapsed": self.collapsed,
        }


class Heard(Streaming):
    """How often each displayed option was picked, and how often it was right: counts that grow as prompts are heard.

    `options` is how many there are at most, where that is known.

    >>> heard = Heard()
    >>> heard.add(torch.full((8,), 2), torch.arange(8) % 4)
    >>> heard.leaning()
    (2, 1.0)
    """

    def __init__(self, options: int = 0) -> None:
        self.picked = torch.zeros(options, dtype=torch.int64)
        self.right = torch.zeros(options, dtype=torch.int64)

    def add(self, picked: Tensor, right: Tensor) -> None:
        """Take in prompts: the number of the option that each picked, and of the right one."""
        self._count(*(torch.bincount(options.reshape(-1).cpu()) for options in (picked, right)))

    def merge(self, other: Heard) -> None:
        self._count(other.picked, other.right)

    @property
    def counts(self) -> list[list[int]]:
        """The same as plain data, which `of` reads."""
        return [self.picked.tolist(), self.right.tolist()]

    @classmethod
    def of(cls, counts: list[list[int]]) -> Heard:
        heard = cls()
        heard._count(*(torch.tensor(numbers, dtype=torch.int64) for numbers in counts))
        return heard

    def taken(self) -> Heard:
        """What was heard since this was last asked."""
        heard = Heard()
        heard.merge(self)
        self.picked, self.right = torch.zeros_like(self.picked), torch.zeros_like(self.right)
        return heard

    def _count(self, picked: Tensor, right: Tensor) -> None:
        most = max(len(self.picked), len(picked), len(right))
        self.picked = _padded(self.picked, most) + _padded(picked, most)
        self.right = _padded(self.right, most) + _padded(right, most)

    @property
    def prompts(self) -> int:
        return int(self.picked.sum())

    @property
    def collapsed(self) -> bool:
        """Whether one option was picked so much more often than it is right: more than half of the way to always."""
        return self._leaning() is not None

    def leaning(self) -> tuple[int, float] | None:
        """The option that the model leans on and the share of the prompts that picked it; None: on none.

        Of a handful of prompts nothing is said unless all of them agree: chance alone makes most of them agree.
        """
        found = self._leaning()
        few = self.prompts < FEW or (self.prompts < ENOUGH and found is not None and found[1] < 1)
        return None if few else found

    def _leaning(self) -> tuple[int, float] | None:
        if not self.prompts:
            return None
        picked, right = (counts.numpy() / self.prompts for counts in (self.picked, self.right))
        excess = picked - right
        option = int(excess.argmax())
        return (option, float(picked[option])) if excess[option] > (1 - right[option]) / 2 else None


def leaning_words(form: str, option: str, share: float) -> str:
    """What an unedited model does that leans on an option, and what helps against it."""
    if form == "letters":
        return (
            f"the unedited model answers {option} in {share:.0%} of the prompts whatever is asked, so this says more "
            'of that letter than of the task; have the answers scored as texts: answers="texts" (--answers texts)'
        )
    return (
        f"the unedited model picks option {option} in {share:.0%} of the prompts whatever is asked, so this says more "
        'of that option than of the task; length="unconditional" (--length unconditional) takes off how likely a text '
        "is anyway"
    )


def _padded(counts: Tensor, most: int) -> Tensor:
    return torch.nn.functional.pad(counts, (0, most - len(counts)))


def _sizes(prompt: Prompt) -> list[str]:
    """For each option whether it is the shortest, the longest or between; empty where all are of the same length."""
    lengths = [max(len(ids) for ids in option) for option in prompt.option_ids]
    least, most = min(lengths), max(lengths)
    if least == most:
        return []
    return [SIZES[0] if n == least else SIZES[2] if n == most else SIZES[1] for n in lengths]


def shares_by_size(prompts: Sequence[Prompt], options: Sequence[int] | np.ndarray) -> tuple[dict[str, float], int]:
    """Of prompts whose options differ in length, how often the given one is the shortest, between and the longest.

    And how many such prompts there are.
    """
    seen = [sizes[option] for prompt, option in zip(prompts, options, strict=True) if (sizes := _sizes(prompt))]
    return {size: seen.count(size) / max(1, len(seen)) for size in SIZES}, len(seen)


def right_choices(groups: Sequence[Sequence[Prompt]]) -> list[int]:
    """Of every question the right choice, in the order in which the question gives them."""
    return [g[0].order[g[0].answer] if g[0].order else g[0].answer for g in groups]


def chosen_choices(logprobs: Tensor, groups: Sequence[Sequence[Prompt]]) -> Tensor:
    """Of every question the choice whose mean probability over the variants is highest, (questions,)."""
    prompts = [prompt for group in groups for prompt in group]
    most = logprobs.shape[1]
    order = torch.tensor([[*p.order, *range(len(p.order), most)] for p in prompts])  # which choice stands where
    probabilities = torch.zeros_like(logprobs).scatter(1, order, logprobs.exp())
    question = torch.tensor([n for n, group in enumerate(groups) for _ in group])
    total = torch.zeros(len(groups), most, dtype=probabilities.dtype).index_add(0, question, probabilities)
    count = torch.tensor([[len(group)] for group in groups])
    return (total / count).argmax(-1)


def answered_right(logprobs: Tensor, groups: Sequence[Sequence[Prompt]]) -> Tensor:
    """Which questions' mean probability over their variants is highest for the right choice, (questions,)."""
    return chosen_choices(logprobs, groups) == torch.tensor(right_choices(groups))
