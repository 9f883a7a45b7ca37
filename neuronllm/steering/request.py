"""What was asked of learning, but for the model and its questions: every argument and its check, in one place."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ..common.errors import InputError
from ..judging.gains import check_margin
from ..results.neurons import CONFIG, NeuronSet
from ..runs.checkpoint import check_output
from .recipe import Goal, Recipe


@dataclass(frozen=True)
class LearnRequest:
    """The arguments of `nl.learn`, which says what each means."""

    goal: Goal
    recipe: Recipe
    neurons: NeuronSet | None
    k: int | None
    orders: str
    template: str | list[str] | None
    answers: str | None
    length: str | None
    retain: Sequence[Any] | None
    seeds: int
    seed: int
    margin: float | None
    controls: int
    shuffled: bool
    batch_size: int | str
    backend: str
    cache_gib: float
    output: str | os.PathLike[str] | None
    resume: bool
    overwrite: bool
    progress: bool

    def checked(self) -> LearnRequest:
        """Itself, after refusing what cannot be done; it needs no model."""
        if self.neurons is not None and not isinstance(self.neurons, NeuronSet):
            raise InputError(
                f"neurons: give a neuron set, such as scores.find(128, 128) or NeuronSet.from_pretrained(folder), not "
                f"{type(self.neurons).__name__}"
            )
        if self.neurons is not None and not len(self.neurons):
            raise InputError("neurons: the set is empty, there are no factors to learn")
        self.recipe.checked()
        if self.margin is not None:
            check_margin(self.margin)
        for name, least in (("seeds", 1), ("seed", 0), ("controls", 0)):
            _check_whole(name, getattr(self, name), least)
        if self.k is not None:
            _check_whole("k", self.k)
        cache = self.cache_gib
        if isinstance(cache, bool) or not isinstance(cache, (int, float)) or not cache >= 0:
            raise InputError(f"cache_gib={cache!r}: give a number of GiB, 0 or more")
        if self.output is not None:
            check_output(self.output, self.resume, self.overwrite, CONFIG)
        return self

    @property
    def cache(self) -> int:
        """Bytes of prefixes that are kept."""
        return int(self.cache_gib * 2**30)

    def settings(self) -> dict[str, Any]:
        """What of it decides every byte, beside the model and the prompts; as plain data."""
        own = None if self.neurons is None else [getattr(self.neurons, what).tolist() for what in ("ids", "role")]
        return {
            "neurons": None if self.neurons is None or own is None else hashed([*own, self.neurons.score.tolist()]),
            "goal": self.goal.name,
            "objective": self.goal.objective.name,
            "recipe": self.recipe.to_dict(1),
            **{name: getattr(self, name) for name in ("k", "seeds", "seed", "margin", "controls", "shuffled")},
            "backend": self.backend,
            "batch_size": self.batch_size,
            "cache": self.cache,
        }


def hashed(data: Any) -> str:
    return sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _check_whole(name: str, value: Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: give a whole number, {least} or more")
