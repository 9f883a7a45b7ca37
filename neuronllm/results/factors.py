"""How hard each neuron of a set is turned: by the factor of its role, or by a factor of its own."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError

ROLES = ("good", "bad")
FACTORS = {"enhance": (2.0, 0.0), "degrade": (0.0, 2.0)}  # of the good and of the bad neurons
MODES = (*FACTORS, "own", "tuned")
NOTHING_SAID = (
    'give mode="enhance" or "degrade" (--mode), or factors good= and bad= (--good, --bad), or tune or learn factors '
    "first (nl.tune, nl.learn, with_factors; neuronllm tune, neuronllm learn)"
)


class Steering(NamedTuple):
    """Factors to steer with. A role without one is left as it is, but for neurons with factors of their own."""

    mode: str | None
    good: float | None
    bad: float | None
    own: tuple[str, ...] = ()  # the roles whose neurons' own factors come before the role's


def steering_of(
    mode: str | None, good: float | None, bad: float | None, own: Tensor | None, tuned: dict[str, Any] | None
) -> Steering:
    """What is asked for by hand or by mode; else the neurons' own factors, and where they have none the tuned ones."""
    if mode is not None and mode not in MODES:
        raise InputError(f"mode={mode!r}: known modes are {', '.join(MODES)}")
    if mode is None:
        if good is not None or bad is not None:
            return Steering(None, good, bad)
        mode = "own" if own is not None else "tuned"
    given = {"good": good, "bad": bad}
    if mode in FACTORS:
        chosen: dict[str, float | None] = dict(zip(ROLES, FACTORS[mode], strict=True))
        first: tuple[str, ...] = ()
    elif mode == "own":
        if own is None:
            raise InputError('mode="own": the neurons have no factors of their own: give them some with with_factors')
        chosen, first = {role: (tuned or {}).get(role) for role in ROLES}, ROLES
    elif tuned is None:
        raise InputError(NOTHING_SAID)
    else:  # a role without a tuned factor was tuned with its neurons' own ones
        chosen = {role: tuned[role] for role in ROLES}
        first = tuple(role for role in ROLES if tuned[role] is None)
    first = tuple(role for role in first if given[role] is None)
    factors = {role: chosen[role] if value is None else value for role, value in given.items()}
    return Steering(mode, **factors, own=first)


def factors_of(role: np.ndarray, own: Tensor | None, how: Steering) -> Tensor:
    """One factor a neuron, float64; 1 where nothing is asked of it."""
    factors = torch.ones(len(role), dtype=torch.float64)
    for name, value in zip(ROLES, (how.good, how.bad), strict=True):
        if value is not None and not math.isfinite(value):
            raise InputError(f"{name}={value}: a factor must be a finite number")
        here = torch.from_numpy(role == name)
        factors[here] = 1.0 if value is None else float(value)
        if own is not None and name in how.own:
            has_own = here & ~own.isnan()
            factors[has_own] = own[has_own].double()
    return factors


def checked_own(factor: Any, count: int) -> Tensor | None:
    """Own factors as float32, one a neuron; None where no neuron has one."""
    if factor is None:
        return None
    try:
        values = torch.as_tensor(factor)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("factor: give one number a neuron, NaN where the factor of its role applies") from error
    if values.dtype == torch.bool or values.is_complex():
        raise InputError(f"factor: give numbers, not {str(values.dtype).removeprefix('torch.')}")
    if values.shape != (count,):
        raise InputError(f"factor: give one number a neuron: {count} neurons, shape {tuple(values.shape)}")
    values = values.detach().to("cpu", torch.float32)
    if bool(values.isinf().any()):
        raise InputError("factor: every factor must be a finite number, or NaN where the factor of its role applies")
    return None if bool(values.isnan().all()) else values


def own_range(role: np.ndarray, own: Tensor | None, roles: tuple[str, ...] = ROLES) -> dict[str, list[float]]:
    """The least and the greatest of the own factors of each role that has some."""
    if own is None:
        return {}
    values = {name: own[torch.from_numpy(role == name) & ~own.isnan()] for name in roles}
    return {name: [float(v.min()), float(v.max())] for name, v in values.items() if len(v)}


def show_factor(value: float | None, own: list[float] | None) -> str:
    """The factor of a role as a report shows it.

    >>> show_factor(2.0, None), show_factor(None, [0.25, 1.5]), show_factor(None, None)
    ('x2', 'x0.25 to x1.5, their own', 'as they are')
    """
    if own is None:
        return "as they are" if value is None else f"x{value:g}"
    text = f"x{own[0]:g}" if own[0] == own[1] else f"x{own[0]:g} to x{own[1]:g}"
    return f"{text}, their own" + ("" if value is None else f" (else x{value:g})")


def check_every_neuron_has_one(role: np.ndarray, own: Tensor | None, roles: tuple[str, ...]) -> None:
    """Where nothing was tuned, own factors have to say it all, but for roles whose factor is given by hand."""
    here = np.isin(role, roles)
    without = int(here.sum()) if own is None else int((own.isnan().numpy() & here).sum())
    if without:
        raise InputError(
            f"{without} of {len(role)} neurons have no factor of their own, and the set was not tuned: give them one "
            "with with_factors, or steer all by mode= or good= and bad="
        )
