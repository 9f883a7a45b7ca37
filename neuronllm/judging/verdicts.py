"""Whether an edit did what it should, beyond what random neurons and chance do, in one word."""

from __future__ import annotations

from collections.abc import Sequence

SURE = 0.05


def outcome(
    gain: float, accuracy: float, band: Sequence[float] | None, p: float, aim: str = "enhance", collapsed: bool = False
) -> str:
    """ "shown", "not shown", "hurts" (it was to enhance and lowers accuracy), or "collapse" onto one option.

    An edit is shown where accuracy moved as it should, lies outside the `band` of random sets, and p is small.

    >>> outcome(0.06, 0.86, (0.78, 0.81), 0.001)
    'shown'
    """
    if collapsed:
        return "collapse"
    if band is None or p >= SURE:
        return "not shown"
    low, high = band
    if aim == "degrade":
        return "shown" if gain < 0 and accuracy < low else "not shown"
    if gain > 0 and accuracy > high:
        return "shown"
    return "hurts" if gain < 0 and accuracy < low else "not shown"
