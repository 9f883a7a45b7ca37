"""The public face of objectives: make one, register it, and `nl.attribute(..., objective=name)` finds it.

>>> from neuronllm.objectives import Objective
>>> Objective("of_right", lambda read: read.of_right(read.options)).name
'of_right'
"""

from __future__ import annotations

from .engine.objectives import OBJECTIVES, Objective, Readout, get_objective, register

__all__ = ["OBJECTIVES", "Objective", "Readout", "get_objective", "register"]
