"""Points and weights on [0, 1] for integrated gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError

QUADRATURES = ("right", "midpoint", "endpoints", "gauss")


def quadrature(name: str, steps: int) -> tuple[Tensor, Tensor]:
    """(alphas, weights) in float64; the weights sum to 1.

    right: k/m, the papers' rule. midpoint: (k-1/2)/m. endpoints: m points from 0 to 1 with equal weights, as released
    code of the field does. gauss: Gauss-Legendre, exact for polynomials of degree 2m-1.

    >>> quadrature("right", 4)[0].tolist()
    [0.25, 0.5, 0.75, 1.0]
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps={steps!r}: give a positive whole number")
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
