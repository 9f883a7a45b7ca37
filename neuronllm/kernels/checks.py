"""Refusals that the operations share: of what is no tensor, stands on another device, or is a number of no use.

Everything here looks at types, shapes and devices alone and so works on traced tensors too. What must look at values
stands inside the operators, which tracing does not enter.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.int32, torch.int64)


def check_tensors(**given: Any) -> None:
    """Refuse arguments that are neither a tensor nor None; the names are those of the arguments."""
    for name, x in given.items():
        if x is not None and not isinstance(x, Tensor):
            raise InputError(f"{name}: give a tensor, not {type(x).__name__}")


def check_given(**given: Any) -> None:
    """Refuse arguments that are no tensor."""
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise InputError(f"{name}: give a tensor, not {type(x).__name__}")


def check_device(first: str, device: torch.device, **given: Tensor | None) -> None:
    """Tensors that a kernel reads where they lie must lie where the first argument does."""
    for name, x in given.items():
        if x is not None and x.device != device:
            raise InputError(f"{name}: it is on {x.device}, {first} on {device}; move it there")


def check_small(name: str, x: Tensor, first: str, device: torch.device) -> None:
    """Small whole numbers are moved for the caller, from the CPU or from another device of the same kind."""
    if x.device.type != "cpu" and x.device.type != device.type:
        raise InputError(f"{name}: it is on {x.device}, {first} on {device}; move it there, or to the CPU")


def check_name(name: str, given: Any, known: Iterable[str], what: str) -> None:
    """A choice by name. What is no string may not even be comparable."""
    if not isinstance(given, str) or given not in known:
        raise InputError(f"{name}={one_line(given)}: known {what} are {', '.join(known)}")


def check_flags(**given: Any) -> None:
    for name, x in given.items():
        if not isinstance(x, (bool, int)):
            raise InputError(f"{name}={one_line(x)}: give True or False")


def check_softcap(softcap: Any) -> None:
    if softcap is not None and not (isinstance(softcap, (int, float)) and 0 < softcap <= sys.float_info.max):
        raise InputError(f"softcap={one_line(softcap)}: give a positive number, or None for no cap")


def check_scale(scale: Any) -> None:
    # NumPy's numbers would bring the bounds to their own type, where these are infinite.
    x = scale if isinstance(scale, (int, float)) else float(scale) if isinstance(scale, Real) else math.nan
    if not -sys.float_info.max <= x <= sys.float_info.max:
        raise InputError(f"scale={one_line(scale)}: give a finite number")


def one_line(x: Any) -> str:
    """What was given, as a line that fits into a message."""
    text = " ".join(repr(x).split())
    return text if len(text) <= 60 else text[:57] + "..."


def check_weights(weights: Tensor | None, questions: int, neurons: int, first: str, device: torch.device) -> None:
    if weights is None:
        return
    # Sizes one by one: traced ones compare as numbers, but a tuple of them is not found in a tuple.
    one = weights.ndim == 1 and weights.shape[0] == questions
    if not one and not (weights.ndim == 2 and weights.shape[0] == questions and weights.shape[1] == neurons):
        raise InputError(f"weights: give one a question ({questions}) or one a question and neuron")
    if weights.dtype not in FLOATS:
        raise InputError(f"weights: give float16, bfloat16, float32 or float64, not {weights.dtype}")
    if weights.requires_grad:
        raise InputError("weights: they take no gradient, detach them")
    check_device(first, device, weights=weights)
