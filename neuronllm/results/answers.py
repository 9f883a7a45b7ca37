"""How a model answered: what follows from the options' log-probabilities of many prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.prompts import Prompt, group_by_question
from ..data.sources import LETTERS


class Answers:
    """How a model answered prompts: option log-probabilities and everything that follows from them."""

    def __init__(self, prompts: Sequence[Prompt], logprobs: Tensor) -> None:
        self.groups = group_by_question(prompts)
        self.logprobs = logprobs
        self.right_letter = np.array([p.answer for p in prompts])
        self.letter = logprobs.argmax(-1).numpy()
        self.right = self.letter == self.right_letter
        self.p_right = logprobs.exp()[torch.arange(len(prompts)), torch.from_numpy(self.right_letter)].double().numpy()
        self.question_right = answered_right(logprobs, self.groups).numpy()

    def by_question(self, values: np.ndarray) -> np.ndarray:
        """The mean of prompts' values over the variants of each question."""
        sizes = np.array([len(group) for group in self.groups])
        return np.add.reduceat(values.astype(float), np.cumsum(sizes) - sizes) / sizes

    @property
    def accuracy(self) -> float:
        return float(self.by_question(self.right).mean())

    @property
    def balanced_accuracy(self) -> float:
        """The mean over letters of the accuracy where that letter is right."""
        return float(np.mean([self.right[self.right_letter == n].mean() for n in np.unique(self.right_letter)]))

    @property
    def mean_p_right(self) -> float:
        return float(self.by_question(self.p_right).mean())

    @property
    def letters(self) -> dict[str, float]:
        """Share of the prompts answered with each letter."""
        share = np.bincount(self.letter, minlength=self.logprobs.shape[1]) / len(self.letter)
        return {LETTERS[n]: float(s) for n, s in enumerate(share)}

    @property
    def collapsed(self) -> bool:
        """True if the predicted letters are more than half of the way to one constant letter."""
        predicted = np.bincount(self.letter, minlength=self.logprobs.shape[1]) / len(self.letter)
        right = np.bincount(self.right_letter, minlength=self.logprobs.shape[1]) / len(self.letter)
        excess = predicted - right
        letter = excess.argmax()
        return bool(excess[letter] > (1 - right[letter]) / 2)

    def summary(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "p_right": self.mean_p_right,
            "letters": self.letters,
            "collapsed": self.collapsed,
        }


def answered_right(logprobs: Tensor, groups: Sequence[Sequence[Prompt]]) -> Tensor:
    """Which questions' mean probability over their variants is highest for the right choice, (questions,)."""
    prompts = [prompt for group in groups for prompt in group]
    most = logprobs.shape[1]
    order = torch.tensor([[*p.order, *range(len(p.order), most)] for p in prompts])  # which choice stands where
    probabilities = torch.zeros_like(logprobs).scatter(1, order, logprobs.exp())
    question = torch.tensor([n for n, group in enumerate(groups) for _ in group])
    total = torch.zeros(len(groups), most).index_add(0, question, probabilities)
    count = torch.tensor([[len(group)] for group in groups])
    right = [g[0].order[g[0].answer] if g[0].order else g[0].answer for g in groups]
    return (total / count).argmax(-1) == torch.tensor(right)
