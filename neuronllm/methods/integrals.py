"""The rule of a method's integral: equal steps as the papers take them, or as many points as a tolerance takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..common.errors import InputError
from ..engine.quadrature import QUADRATURES, quadrature

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..engine.base import Engine
    from ..engine.objectives import Objective

# How far off a prompt's scores may be, beside their norm.
TOLERANCES = {"adaptive": 0.01, "fast": 0.05}
STEPS = 16


def check_rule(rule: str, steps: int | None) -> None:
    """Refuse what is no rule; steps are those of an equal one, and any other takes as many as it needs."""
    if rule not in (*TOLERANCES, *QUADRATURES):
        raise InputError(f"quadrature={rule!r}: known rules are {', '.join((*TOLERANCES, *QUADRATURES))}")
    quadrature("right" if rule in TOLERANCES else rule, STEPS if steps is None else steps)


def integrated(engine: Engine, prompts: Sequence[Prompt], objective: Objective, rule: str, steps: int | None) -> Tensor:
    if rule in TOLERANCES:
        return engine.integrate_to(prompts, objective, TOLERANCES[rule])
    return engine.integrate(prompts, objective, *quadrature(rule, STEPS if steps is None else steps))
