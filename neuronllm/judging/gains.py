"""What an edit gains over no edit, question by question, and whether that is more than luck."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..common.errors import InputError


class Gain(NamedTuple):
    """The mean over questions, and its standard error.

    >>> Gain.of(np.array([1.0, 1.0, 1.0, 0.0]), np.zeros(4)).worth(2.0)
    True
    """

    mean: float
    stderr: float

    @classmethod
    def of(cls, after: np.ndarray, before: np.ndarray) -> Gain:
        gained = after - before
        error = float(gained.std(ddof=1) / len(gained) ** 0.5) if len(gained) > 1 else math.inf
        return cls(float(gained.mean()), error)

    def worth(self, margin: float) -> bool:
        """Whether it is above so many standard errors: of many edits the best is a little better by luck alone."""
        return self.mean > margin * self.stderr


def check_margin(margin: Any) -> None:
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not margin >= 0:
        raise InputError(f"margin={margin!r}: give a number of standard errors, 0 or more")
