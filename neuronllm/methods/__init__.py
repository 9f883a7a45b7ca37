"""The methods by name. Each is one file that says what to compute and never touches a hook."""

from __future__ import annotations

from typing import Any

from ..common.errors import InputError
from .ace import ACE
from .activation import Activation
from .base import Collector, Method, Summary
from .contrast import Contrast
from .exact import Exact
from .gradient import Gradient
from .knowledge import Knowledge
from .logprob import LogProb
from .neurgrad import NeurGrad
from .qrnca import QRNCA
from .random import Random
from .relp import RelP

__all__ = ["METHODS", "Collector", "Method", "Summary", "get_method", "register"]

METHODS: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Add a method under its name, so that `nl.attribute(..., method=name)` finds it; usable as a decorator."""
    METHODS[method.name] = method
    return method


for _method in (
    ACE,
    QRNCA,
    Knowledge,
    Gradient,
    NeurGrad,
    RelP,
    Exact,
    LogProb,
    Activation,
    Contrast,
    Random,
):
    register(_method)


def get_method(name: str, options: dict[str, Any] | None = None) -> Method:
    """The method called `name` with its options checked.

    >>> get_method("ace", {"steps": 8}).steps
    8
    """
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(f"method={name!r}: known methods are {', '.join(METHODS)}")
    return METHODS[name].with_options(options or {})
