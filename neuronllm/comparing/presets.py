"""Comparisons as their papers made them, as far as that is known; `unknown` says what is not, and what stands in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..common.errors import InputError


class Unknown(NamedTuple):
    """What a paper does not say, and what stands in, where this method is compared and the argument is not given.

    The argument is one of a comparison, or an option of the method.
    """

    said: str
    argument: str | None = None
    method: str | None = None


@dataclass(frozen=True)
class Preset:
    """What takes the place of arguments that are not given."""

    methods: tuple[str, ...]
    edits: tuple[str, ...]
    k: int
    positions: str | None = None
    orders: Mapping[str, str] = field(default_factory=dict)  # of a method, where it is not the method's own
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unknown: tuple[Unknown, ...] = ()


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
            Unknown("steps of the integral (16 here)", "steps", "ace"),
            Unknown("log P or P of the options (log P here)", method="ace"),
            Unknown("the printed mask (our reading: ambiguous, z 1 %)", "mask", "ace"),
            Unknown("number of neurons (16 of each role here)", "k"),
            Unknown("prompt text (ours)", "template"),
            Unknown("formulas of RAC and RCC (signed relative changes here)"),
        ),
    ),
    "qrnca": Preset(
        methods=("qrnca", "knowledge", "activation", "random"),
        edits=("good", "suppress"),
        k=20,
        positions="answer",
        options={"qrnca": {"steps": 16, "quadrature": "right", "threshold": 0.2, "common": 0.3}},
        unknown=(
            Unknown(
                "the paper takes 20 neurons of each query before the common ones go; here they are 20 of the task", "k"
            ),
            Unknown("prompt text of the three templates (ours)", "template"),
        ),
    ),
    "knowledge": Preset(
        methods=("knowledge", "random"),
        edits=("good", "suppress"),
        k=16,
        positions="answer",
        options={"knowledge": {"steps": 20, "quadrature": "endpoints", "threshold": 0.3, "share": 0.5}},
        unknown=(
            Unknown(
                "number of neurons (the paper's refinement leaves a few of each fact; here they are 16 of the task)",
                "k",
            ),
        ),
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
