"""Small checks of arguments, and how a wrong value is shown in an error."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, overload

from .errors import InputError

if TYPE_CHECKING:
    import torch


def integer(value: Any) -> int | None:
    """`value` as an int where it is one (numpy's too); None for booleans and everything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


@overload
def floating(name: str, value: None) -> None: ...
@overload
def floating(name: str, value: torch.dtype | str) -> torch.dtype: ...
def floating(name: str, value: torch.dtype | str | None) -> torch.dtype | None:
    """The floating type of torch that an argument of this name is, or names; None stays None.

    >>> floating("dtype", "float64")
    torch.float64
    """
    import torch

    found = getattr(torch, value.removeprefix("torch."), value) if isinstance(value, str) else value
    if found is None or isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise InputError(f'{name}={value!r}: give a floating type of torch or its name, such as "float64"')


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
