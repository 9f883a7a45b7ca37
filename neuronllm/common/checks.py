"""Small checks of arguments, and how a wrong value is shown in an error."""

from __future__ import annotations

import operator
from typing import Any


def integer(value: Any) -> int | None:
    """`value` as an int where it is one (numpy's too); None for booleans and everything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
