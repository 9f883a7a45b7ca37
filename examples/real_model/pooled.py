"""The rows of the case study with all folds of a task pooled: how many questions changed, and whether that is luck."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rows import ROWS, SETS

import neuronllm as nl
from neuronllm.common.statistics import bootstrap_interval, holm, mcnemar, percent_of

TASKS = ("capitals", "currencies", "past_tense", "populations", "sentiment")
# The kinds of random sets, and what stands among them: rows that were made in the same way.
COMPARED = {
    "random": ("learned-256-one",),
    "matched": ("learned-256-one",),
    "edited": ("learned-256",),
    "silenced": ("verified", "worst"),
    "forgetting": ("degraded-256-one",),
}
KINDS = tuple(COMPARED)
# Random sets are learned with one seed, for time: so is the row that stands among them for one of several seeds.
ONE_SEED = {"learned-256": "learned-256-one", "degraded-256": "degraded-256-one"}
SURE = 0.05  # Holm's p of a row that worked is below
AMONG = 95  # a row has to be above so many percent of the random sets that were learned likewise (degraded: below)

Facts = dict[str, Any]


def read(folder: Path) -> list[Facts]:
    """All rows that are there."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise nl.InputError(f"{path}: not valid JSON ({error}); delete it, and do the row again") from None
    return found


@dataclass(frozen=True)
class Pooled:
    """A row of a task, with the folds that have both it and the base."""

    rows: Sequence[Facts]
    bases: Sequence[Facts]

    @property
    def folds(self) -> list[int]:
        return [row["fold"] for row in self.rows]

    @cached_property
    def right(self) -> np.ndarray:
        return _joined(self.rows)

    @cached_property
    def base(self) -> np.ndarray:
        return _joined(self.bases)

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def gain(self) -> float:
        return float(self.right.mean() - self.base.mean())

    @cached_property
    def interval(self) -> tuple[float, float]:
        return bootstrap_interval(self.right)

    @property
    def won(self) -> int:
        return int((self.right > self.base).sum())

    @property
    def lost(self) -> int:
        return int((self.right < self.base).sum())

    @property
    def p(self) -> float:
        return mcnemar(self.lost, self.won)

    @property
    def collapsed(self) -> bool:
        """Whether it answers one option whatever is asked, and the base does not."""
        return any(row["collapsed"] and not base["collapsed"] for row, base in zip(self.rows, self.bases, strict=True))

    def mean(self, name: str) -> float:
        """Of the seconds of a part of the work."""
        return float(np.mean([row["seconds"][name] for row in self.rows]))

    def changes(self, name: str) -> np.ndarray | None:
        """Side effects, one number a question of another task ("elsewhere") or a sentence ("texts"), pooled."""
        pairs: list[Facts] = []
        for row in self.rows:
            effects = row.get(name)
            if effects is None:
                return None
            pairs += [effects] if name == "texts" else [*effects.values()]
        return np.concatenate([np.subtract(pair["after"], pair["before"]) for pair in pairs])

    def turned(self) -> dict[str, int]:
        """How many neurons of each role went up and down."""
        counts: dict[str, int] = {}
        for row in self.rows:
            for name, count in row["learned"]["turned"].items() if "learned" in row else ():
                counts[name] = counts.get(name, 0) + count
        return counts


class Results:
    """All rows that are there, by task and name."""

    def __init__(self, rows: Sequence[Facts], tasks: Sequence[str] = TASKS) -> None:
        self.rows, self.tasks = rows, tasks
        self._found: dict[tuple[str, str], dict[int, Facts]] = {}
        for row in rows:
            self._found.setdefault((row["task"], row["row"]), {})[row["fold"]] = row

    def of(self, task: str, row: str) -> Pooled | None:
        """None where no fold has it."""
        folds = sorted(self._found.get((task, row), {}).keys() & self._found.get((task, "base"), {}).keys())
        return self._pooled(task, row, folds) if folds else None

    def sets(self, task: str, kind: str, folds: Sequence[int]) -> list[Pooled]:
        """The random sets of a kind that have all of these folds, cut to them."""
        names = [f"{kind}-{number:02d}" for number in range(SETS)]
        there = [name for name in names if set(folds) <= self._found.get((task, name), {}).keys()]
        return [self._pooled(task, name, folds) for name in there]

    def _pooled(self, task: str, row: str, folds: Sequence[int]) -> Pooled:
        pooled = Pooled(*([self._found[task, name][fold] for fold in folds] for name in (row, "base")))
        for own, base in zip(pooled.rows, pooled.bases, strict=True):
            if own["questions"] != base["questions"]:
                what = f"{task}, fold {own['fold']}: {row} was asked other questions than base"
                raise nl.InputError(f"{what}: delete the older file and do it again")
        return pooled

    def among(self, task: str, row: str, kind: str) -> float | None:
        """The percentile of a row among the random sets of a kind, on the same folds; None where there is none."""
        name = next((name for name in (row, ONE_SEED.get(row, row)) if name in COMPARED[kind]), None)
        own = None if name is None else self.of(task, name)
        drawn = [other.accuracy for other in self.sets(task, kind, own.folds)] if own else []
        return percent_of(drawn, own.accuracy) if own and drawn else None

    def holm(self, row: str) -> dict[str, float]:
        """McNemar's p of a row against the base, adjusted for all tasks; one that is missing counts as p = 1."""
        pooled = {task: self.of(task, row) for task in self.tasks}
        adjusted = holm([1.0 if own is None else own.p for own in pooled.values()])
        return {task: p for (task, own), p in zip(pooled.items(), adjusted, strict=True) if own is not None}

    def verdict(self, task: str, row: str) -> str | None:
        """Whether a row did what it is for: "yes", "no", or "harm" where it surely did the opposite."""
        own, aim = self.of(task, row), ROWS[row].aim
        if own is None or not aim:
            return None
        sign = 1 if aim == "enhance" else -1
        if self.holm(row)[task] >= SURE:
            return "no"
        if sign * own.gain < 0:
            return "harm"
        if own.collapsed:
            return "no"
        places = [self.among(task, row, kind) for kind in KINDS if kind != "edited"]
        surely = [place >= AMONG if sign > 0 else place <= 100 - AMONG for place in places if place is not None]
        return "yes" if all(surely) else "no"

    def missing(self, folds: int) -> dict[str, int]:
        """How many files of each row are not there; of random sets together."""
        counts: dict[str, int] = {}
        for row in ROWS:
            kind = row.rpartition("-")[0] if row.rpartition("-")[0] in KINDS else row
            there = sum(len(self._found.get((task, row), {})) for task in self.tasks)
            counts[kind] = counts.get(kind, 0) + len(self.tasks) * folds - there
        return {kind: count for kind, count in counts.items() if count}

    @property
    def seconds(self) -> float:
        return sum(sum(row["seconds"].values()) for row in self.rows)


def _joined(rows: Sequence[Facts]) -> np.ndarray:
    return np.concatenate([np.array(row["right"], dtype=float) for row in rows])
