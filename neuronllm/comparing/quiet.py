"""Calls whose warnings a comparison says in its tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any


def quietly(call: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """What a call returns, without the warnings that it gives its user."""
    return heard(call, *args, **keywords)[0]


def heard(call: Callable[..., Any], *args: Any, **keywords: Any) -> tuple[Any, list[str]]:
    """What a call returns, and the warnings that it gives its user.

    >>> heard(max, 1, 2)
    (2, [])
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = call(*args, **keywords)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    return found, list(dict.fromkeys(said))
