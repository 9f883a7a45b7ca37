"""The methods by name. Each is one file that says what to compute and never touches a hook."""

from __future__ import annotations

from typing import Any

from ..common.checks import short
from ..common.errors import InputError
from ..common.registry import check_own_name, known_names, offered
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

ENTRY_POINTS = "neuronllm.methods"
METHODS: dict[str, type[Method]] = {}
OURS: frozenset[str] = frozenset()  # names that are taken


def register(method: type[Method]) -> type[Method]:
    """Add a method under its name, so that `nl.attribute(..., method=name)` finds it; usable as a decorator.

    A package does the same without a call, by an entry point in the group "neuronllm.methods" named after the method.
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise InputError(f"method: register a class that derives from Method, not {short(method)}")
    check_own_name("method", getattr(method, "name", None), OURS)
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
OURS = frozenset(METHODS)


def get_method(name: str | Method, options: dict[str, Any] | None = None) -> Method:
    """The method called `name` with its options checked; a class by itself, and a method that was made already.

    >>> get_method("ace", {"steps": 8}).steps
    8
    """
    if isinstance(name, Method):
        if options:
            raise InputError(f"{next(iter(options))}: give the options of a method object when it is made")
        return name
    if isinstance(name, type) and issubclass(name, Method):
        return name.with_options(options or {})
    found = METHODS.get(name) or offered(ENTRY_POINTS, name) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise InputError(f"method={name!r}: known methods are {known_names(ENTRY_POINTS, METHODS)}")
    return found.with_options(options or {})
