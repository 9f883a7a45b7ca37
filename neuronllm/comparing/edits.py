"""The edits that are compared: which neurons, turned how hard, and what that is to do to the accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..common.errors import InputError

WIDE = 4  # times k: what tuning chooses from, and the end of a curve


class EditKind(NamedTuple):
    """What an edit is to do, and the factors of the good and the bad neurons; None where a role is left alone.

    `made` says how its neurons come about: "found" by their scores, or as `nl.tune`, `nl.verify` or `nl.learn` make
    them, where tuned and learned sets have their own factors.
    """

    aim: str
    good: float | None
    bad: float | None
    made: str = "found"


EDITS = {
    "enhance": EditKind("enhance", 2.0, 0.0),
    "degrade": EditKind("degrade", 0.0, 2.0),
    "good": EditKind("enhance", 2.0, None),
    "bad": EditKind("enhance", None, 0.0),
    "suppress": EditKind("degrade", 0.0, None),
    "tuned": EditKind("enhance", None, None, "tuned"),
    "verified": EditKind("enhance", 2.0, 0.0, "verified"),
    "learned": EditKind("enhance", None, None, "learned"),
}


def check_edits(edits: Sequence[str]) -> None:
    for edit in edits:
        if edit not in EDITS:
            raise InputError(f"edits: {edit!r} is none, known edits are {', '.join(EDITS)}")


def sizes(k: int) -> list[int]:
    """The numbers of neurons of a role that are tried, around the one that was asked for.

    >>> sizes(16), sizes(2)
    ([4, 16, 64], [1, 2, 8])
    """
    return sorted({max(1, k // WIDE), k, WIDE * k})
