"""Warnings that point at the line of the user's that they are about, however deep in the package they are given."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

BETWEEN = {"neuronllm", "contextlib", "torch", "tqdm"}  # whose frames stand between a user's line and the warning


def warn(message: str) -> None:
    """A UserWarning at the nearest line that is neither ours nor of a library which calls ours.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warn("few questions")
    >>> print(caught[0].message)
    few questions
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _between(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)  # noqa: TID251 - the one place that counts frames


def _between(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in BETWEEN
