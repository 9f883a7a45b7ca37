"""Trainings that are done, and the one under way: in memory, or in a folder that a killed run goes on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.files import read_json, read_tensors, take_place, write_json, write_tensors
from ..results.scores import MANIFEST
from ..runs.processes import Ranks
from ..runs.provenance import check_same

UNDER_WAY = "training.safetensors"


@dataclass(frozen=True)
class Trained:
    """The best factors that one seed found, and the way there."""

    factors: Tensor  # float64, one a neuron
    forced: Tensor  # those of the best step, whether that was better than none or not
    curve: list[dict[str, float]]  # step by step
    step: int  # the best one, 0 where no step was better than none


class Trainings:
    """By name, each of which is done once. All processes know the same; the first one writes."""

    def __init__(self, ranks: Ranks, folder: Path | None = None) -> None:
        self._ranks, self._folder = ranks, folder
        self._done: dict[str, Trained] = {}

    @property
    def on_disk(self) -> bool:
        return self._folder is not None

    def open(self, settings: dict[str, Any], resume: bool) -> None:
        """Begin the folder, or go on with it where it was begun with the same settings."""
        if self._folder is None:
            return
        settings = json.loads(json.dumps(settings))
        with self._ranks.together():
            if resume and (self._folder / MANIFEST).is_file():
                before = read_json(self._folder, MANIFEST, "run")
                check_same(before, settings, f"output {self._folder}: the run was begun with")
            elif self._ranks.first:
                try:
                    self._folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise InputError(f"output {self._folder}: cannot be made: {error.strerror}") from error
                write_json(self._folder / MANIFEST, settings)
        self._ranks.wait()

    def done(self, name: str) -> Trained | None:
        path = None if self._folder is None else self._folder / f"{name}.safetensors"
        if name not in self._done and path is not None and path.is_file():
            found = read_tensors(path.parent, path.name, "run")
            facts = json.loads(bytes(found["facts"].tolist()))
            self._done[name] = Trained(found["factors"], found["forced"], facts["curve"], facts["step"])
        return self._done.get(name)

    def finish(self, name: str, trained: Trained) -> Trained:
        self._done[name] = trained
        facts = {"curve": trained.curve, "step": trained.step}
        self._write(f"{name}.safetensors", {"factors": trained.factors, "forced": trained.forced}, facts)
        return trained

    def state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved of the training of this name, if it is the one under way."""
        if self._folder is None or not (self._folder / UNDER_WAY).is_file():
            return None
        found = read_tensors(self._folder, UNDER_WAY, "run")
        facts: dict[str, Any] = json.loads(bytes(found.pop("facts").tolist()))
        return (found, facts) if facts["name"] == name else None

    def save(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self._write(UNDER_WAY, tensors, facts | {"name": name})

    def discard(self, work: bool = True) -> None:
        """Take the folder away; without `work`, only where nothing was done yet."""
        if self._folder is None or not self._ranks.first:
            return
        if not self._folder.is_dir() or (not work and any(self._folder.glob("*.safetensors"))):
            return
        marked_last = sorted(self._folder.iterdir(), key=lambda path: path.name == MANIFEST)
        for path in marked_last:  # so that what a kill leaves is known as ours
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        self._folder.rmdir()

    def replace(self, target: Path, write: Callable[[Path], None]) -> None:
        """Write the result in this folder, whole, then let it take the place of the target."""
        assert self._folder is not None
        if self._ranks.first:
            write(self._folder / target.name)  # the name stands in the card of a set
            take_place(self._folder / target.name, target)
        self.discard()

    def _write(self, file: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        if self._folder is not None and self._ranks.first:
            written = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
            write_tensors(self._folder / file, {**tensors, "facts": written})
