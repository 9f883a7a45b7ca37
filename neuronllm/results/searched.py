"""Scores of which only the strongest were searched for (method "exact" with top=): how far they can be trusted."""

from __future__ import annotations

from typing import Any

from ..common.warning import warn


def searched(provenance: dict[str, Any]) -> dict[str, Any] | None:
    """What a provenance says of the search; None where every neuron was run."""
    exact = provenance.get("exact")
    return exact.get("top") if isinstance(exact, dict) else None


def missed_words(top: dict[str, Any]) -> str:
    """How many were run, and how many of the strongest may not be among them.

    >>> missed_words({"k": 50, "ran": 320, "estimated_missed": 0.14, "bound": 29})
    'the 50 best and the 50 worst, searched for among 320 neurons: about 0.14 missed, 29 at most (95 %)'
    """
    missed = f"about {top['estimated_missed']:.2g} missed, {top['bound']} at most (95 %)"
    return f"the {top['k']} best and the {top['k']} worst, searched for among {top['ran']} neurons: {missed}"


def warn_of_missed(provenance: dict[str, Any], asked: int) -> None:
    """Say where more neurons of a role are asked for than were searched for."""
    top = searched(provenance)
    if top and asked > top["k"]:
        warn(
            f"{asked} neurons of a role were asked for, and the {top['k']} strongest were searched for: the others are "
            "the strongest of those that happened to be run"
        )
