"""What learning leaves with a neuron set: the sets that were learned the same way, and its story in lines."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.files import read_tensors

CONTROLS = "controls.safetensors"
KINDS = ("learned", "plain", "matched")
COLLAPSED = "edited, the model is more than half of the way to one answer whatever is asked, and unedited it was not"


@dataclass(frozen=True, eq=False)
class Controls:
    """Random neurons learned the same way as a set, and first of all the set itself, in no case left without an edit.

    >>> neurons.controls.kind[:2]   # doctest: +SKIP
    ('learned', 'plain')
    """

    kind: tuple[str, ...]  # "learned" (the set itself), "plain" (any neurons) or "matched" (about as strong ones)
    ids: Tensor  # (sets, neurons): flat ids
    factors: Tensor  # (sets, neurons): the mean of the seeds, float32

    def __post_init__(self) -> None:
        if self.ids.shape != self.factors.shape or self.ids.ndim != 2 or len(self.ids) != len(self.kind):
            raise InputError(
                f"controls: {len(self.kind)} kinds, ids {tuple(self.ids.shape)} and factors "
                f"{tuple(self.factors.shape)} do not belong together"
            )
        if self.kind[:1] != KINDS[:1] or not set(self.kind[1:]) <= set(KINDS[1:]):
            raise InputError(f"controls: the first is {KINDS[0]}, the others are one of {', '.join(KINDS[1:])}")

    def tensors(self) -> dict[str, Tensor]:
        """As `controls.safetensors` holds them."""
        kind = torch.tensor([KINDS.index(kind) for kind in self.kind], dtype=torch.uint8)
        return {"kind": kind, "ids": self.ids.contiguous(), "factors": self.factors.contiguous()}

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Controls | None:
        """Those beside a saved set; None where there are none."""
        if not (Path(folder) / CONTROLS).is_file():
            return None
        found = read_tensors(folder, CONTROLS, "neuron set")
        try:
            return cls(tuple(KINDS[n] for n in found["kind"].tolist()), found["ids"], found["factors"])
        except (KeyError, IndexError) as error:
            raise InputError(
                f"{folder}: {CONTROLS} is not as written here ({type(error).__name__}: {error})"
            ) from error


def learned_lines(learned: dict[str, Any], controls: Controls | None) -> list[str]:
    """What learning factors came to; which neurons were turned only where they are."""
    said = f"{learned['goal']}, {learned['seeds']} seeds of {learned['steps']} steps, positions {learned['positions']}"
    before, after = learned["accuracy"]
    held = f"accuracy of {learned['validation_questions']} validation questions {before:.3f} -> {after:.3f}"
    lines = [f"- learned: {said}; {held}"]
    lines += _turned_lines(learned) if learned["kept"] else [f"- no edit: {_why_none(learned)}"]
    if shuffled := learned.get("shuffled"):
        before, after = shuffled["accuracy"]
        lines.append(f"- learned from shuffled answers instead: accuracy {before:.3f} -> {after:.3f}")
    if controls is not None:
        kinds = [f"{controls.kind.count(kind)} {kind}" for kind in KINDS[1:]]
        lines.append(f"- random sets learned the same way: {' and '.join(kinds)}; nl.evaluate compares with them")
    return lines


def _why_none(learned: dict[str, Any]) -> str:
    """Why the model is left as it is."""
    if not any(learned["steps_taken"]):
        return "no step did better on the validation questions than leaving the model as it is"
    if learned["collapsed"]:
        return COLLAPSED
    by_accuracy = learned["goal"] in ("enhance", "degrade")
    gain = learned["gain" if by_accuracy else "gain_objective"]
    what = "accuracy" if by_accuracy else learned["objective"]
    way = "fall" if learned["goal"] == "degrade" else "rise"
    margin = learned["margin"]
    return (
        f"{what} has to {way} by more than {margin:g} standard errors, {margin * gain['stderr']:.3f}, "
        f"and changes by {gain['mean']:+.3f}"
    )


def _turned_lines(learned: dict[str, Any]) -> list[str]:
    turned = learned["turned"]
    with_role, against = turned["good_up"] + turned["bad_down"], turned["good_down"] + turned["bad_up"]
    if learned["goal"] == "degrade":
        with_role, against = against, with_role
    lines = [
        f"- turned up: {turned['good_up']} good, {turned['bad_up']} bad; turned down: {turned['good_down']} good, "
        f"{turned['bad_down']} bad; {against} of {with_role + against} against their role"
    ]
    if learned["collapsed"]:  # kept only where nothing had to be gained
        lines.append(f"- beware: {COLLAPSED}")
    return lines
