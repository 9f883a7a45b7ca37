"""The rules of integrated gradients: equal steps, as the papers take them, or as many points as a tolerance takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from .base import Engine
    from .objectives import Objective

QUADRATURES = ("right", "midpoint", "endpoints", "gauss")
TOLERANCES = {"adaptive": 0.01, "fast": 0.03}  # how far off a prompt's scores may be, beside their norm
STEPS, MOST = 16, 10_000


def steps_of(rule: str, steps: int | None, usual: int = STEPS) -> int | None:
    """The steps of a rule, the usual ones where none are given; None of one to a tolerance, which takes none.

    >>> steps_of("midpoint", None), steps_of("adaptive", None)
    (16, None)
    """
    if rule not in (*TOLERANCES, *QUADRATURES):
        raise InputError(f"quadrature={rule!r}: known rules are {', '.join((*TOLERANCES, *QUADRATURES))}")
    if rule in TOLERANCES:
        if steps is not None:
            raise InputError(f"steps={steps!r}: quadrature={rule!r} takes as many points as it needs; leave it out")
        return None
    found = usual if steps is None else steps
    quadrature(rule, found)
    return found


def integrated(engine: Engine, prompts: Sequence[Prompt], objective: Objective, rule: str, steps: int | None) -> Tensor:
    """(prompts, n_neurons): integrated gradients by a rule."""
    if rule in TOLERANCES:
        return engine.integrate_to(prompts, objective, TOLERANCES[rule])
    assert steps is not None
    return engine.integrate(prompts, objective, *quadrature(rule, steps))


def quadrature(name: str, steps: int) -> tuple[Tensor, Tensor]:
    """(alphas, weights) in float64; the weights sum to 1.

    right: k/m, the papers' rule. midpoint: (k-1/2)/m. endpoints: m points from 0 to 1 with equal weights, as released
    code of the field does. gauss: Gauss-Legendre, exact for polynomials of degree 2m-1.

    >>> quadrature("right", 4)[0].tolist()
    [0.25, 0.5, 0.75, 1.0]
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MOST:
        raise InputError(f"steps={steps!r}: give a whole number from 1 to {MOST:,}")
    equal = torch.full((steps,), 1 / steps, dtype=torch.float64)
    if name == "right":
        return torch.arange(1, steps + 1, dtype=torch.float64) / steps, equal
    if name == "midpoint":
        return (torch.arange(steps, dtype=torch.float64) + 0.5) / steps, equal
    if name == "endpoints":
        return torch.linspace(0, 1, steps, dtype=torch.float64), equal
    if name == "gauss":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy(points / 2 + 0.5), torch.from_numpy(weights / 2)
    raise InputError(f"quadrature={name!r}: known rules are {', '.join(QUADRATURES)}")
