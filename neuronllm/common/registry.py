"""Things by name: our own, those that a user registers, and those that installed packages offer by an entry point."""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import lru_cache
from importlib.metadata import EntryPoints, entry_points
from typing import Any

from .errors import InputError


def points(group: str) -> EntryPoints:
    """Entry points of installed packages in a group; reading them anew would cost as much as a pass of a tiny model."""
    return _points(group, tuple(sys.path))


@lru_cache
def _points(group: str, path: tuple[str, ...]) -> EntryPoints:
    return entry_points(group=group)


def offered(group: str, name: str) -> Any | None:
    """What an installed package offers under this name in a group of entry points; None if none does."""
    for point in points(group).select(name=name):
        try:
            found = point.load()
        except Exception as error:  # whatever another package's import raises is no error of ours
            first = (str(error).strip().splitlines() or [""])[0]
            raise InputError(
                f"{group} {name!r}: {point.value} cannot be loaded ({type(error).__name__}: {first})"
            ) from error
        if getattr(found, "name", None) != name:
            raise InputError(f"{group} {name!r}: {point.value} calls itself {getattr(found, 'name', None)!r}")
        return found
    return None


def known_names(group: str, ours: Any) -> str:
    """All names, for an error: those at hand, then those of installed packages."""
    return ", ".join(dict.fromkeys([*ours, *(point.name for point in points(group))]))


def check_own_name(what: str, name: Any, ours: Collection[str]) -> None:
    """Refuse what has no name, and names of ours: what others find under them must not change."""
    if not isinstance(name, str) or not name:
        raise InputError(f"{what}: give it a name, a text, before it is registered")
    if name in ours:
        raise InputError(f"{what} {name!r} is one of ours: take a name of your own")
