"""Comparisons as their papers made them, as far as that is known; `unknown` says what is not, and what stands in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..common.errors import InputError


@dataclass(frozen=True)
class Preset:
    """What takes the place of arguments that are not given."""

    methods: tuple[str, ...]
    edits: tuple[str, ...]
    k: int
    positions: str | None = None
    orders: Mapping[str, str] = field(default_factory=dict)  # of a method, where it is not the method's own
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


OURS = Preset(
    methods=("gradient", "relp", "ace", "qrnca", "knowledge", "random"), edits=("enhance", "degrade", "tuned"), k=16
)
PRESETS = {
    "neuronllm": Preset(
        methods=("ace", "qrnca", "random"),
        edits=("enhance", "degrade", "good", "bad"),
        k=16,
        positions="answer",
        orders={"ace": "shuffle3"},
        options={"ace": {"steps": 16, "quadrature": "right", "mask": "ambiguous"}},
        unknown=(
            "steps of the integral (16 here)",
            "log P or P of the options (log P here)",
            "the printed mask (our reading: ambiguous, z 1 %)",
            "number of neurons (16 of each role here)",
            "prompt text (ours)",
            "formulas of RAC and RCC (signed relative changes here)",
        ),
    ),
    "qrnca": Preset(
        methods=("qrnca", "knowledge", "activation", "random"),
        edits=("good", "suppress"),
        k=20,
        positions="answer",
        options={"qrnca": {"steps": 16, "quadrature": "right", "threshold": 0.2, "common": 0.3}},
        unknown=(
            "the paper takes 20 neurons of each query before the common ones go; here they are 20 of the task",
            "prompt text of the three templates (ours)",
        ),
    ),
    "knowledge": Preset(
        methods=("knowledge", "random"),
        edits=("good", "suppress"),
        k=16,
        positions="answer",
        options={"knowledge": {"steps": 20, "quadrature": "endpoints", "threshold": 0.3, "share": 0.5}},
        unknown=("number of neurons (the paper's refinement leaves a few of each fact; here they are 16 of the task)",),
    ),
}


def preset_of(name: str | None) -> Preset:
    """The preset called `name`; ours without a name.

    >>> preset_of("qrnca").k
    20
    """
    if name is not None and name not in PRESETS:
        raise InputError(f"preset={name!r}: known presets are {', '.join(PRESETS)}")
    return OURS if name is None else PRESETS[name]
