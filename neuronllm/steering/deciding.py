"""What a learned edit gains on validation questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..judging.gains import Gain
from ..results.answers import Heard
from .training import Judge, Looked


class Split(NamedTuple):
    """What one seed learns on, by the numbers of the questions, and who judges it."""

    search: Sequence[int]
    judge: Judge


class Weighed(NamedTuple):
    """An edit beside no edit."""

    accuracy: Gain
    objective: Gain
    before: float  # accuracy
    after: float
    collapsed: bool  # of the edited model, where the unedited one is not
    questions: int

    @classmethod
    def of(cls, splits: Sequence[Split], ids: Tensor, factors: Sequence[Tensor], positions: str) -> Weighed:
        """Validation questions that all seeds share judge the mean of their factors, others those of their own seed."""
        if all(split.judge is splits[0].judge for split in splits):
            splits, factors = splits[:1], [torch.stack(list(factors)).mean(0)]
        before = [split.judge.base for split in splits]
        after = [split.judge(ids, own, positions) for split, own in zip(splits, factors, strict=True)]
        right, was_right = _each(after, _right), _each(before, _right)
        by_objective = Gain.of(_each(after, _objective), _each(before, _objective))
        collapsed = _collapsed(after) and not _collapsed(before)
        by_accuracy = Gain.of(right, was_right)
        return cls(by_accuracy, by_objective, float(was_right.mean()), float(right.mean()), collapsed, len(right))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a provenance."""
        return {
            "gain": self.accuracy._asdict(),
            "gain_objective": self.objective._asdict(),
            "accuracy": [self.before, self.after],
            "collapsed": self.collapsed,
            "validation_questions": self.questions,
        }


def _right(seen: Looked) -> np.ndarray:
    return seen.answers.by_question(seen.answers.right)


def _objective(seen: Looked) -> np.ndarray:
    return seen.objective


def _each(seen: Sequence[Looked], of: Callable[[Looked], np.ndarray]) -> np.ndarray:
    return np.concatenate([of(one) for one in seen])


def _collapsed(seen: Sequence[Looked]) -> bool:
    heard = Heard()
    for one in seen:
        heard.merge(one.answers.heard)
    return heard.collapsed
