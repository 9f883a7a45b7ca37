"""Where an attribution keeps what it gathers: in memory or on disk, with the same verbs.

    result    the scores, where the run was finished before
    begin     freeze how the work is cut into batches, and take up what is done already
    add, end  one window of questions more is done; the last one is
    stopped   what to raise after Ctrl-C
    discard   the work failed
    merged    what all processes gathered
    finish    the scores with what is kept of single prompts, written where that was asked for

Every process has a store of its own; those of a run on disk share its folder (checkpoint.py).
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.files import read_tensors, write_tensors
from ..common.interrupts import undisturbed
from ..results.per_prompt import PROMPTS, ShardedScores, Top
from ..results.scores import Scores
from ..results.streaming import Streaming
from .checkpoint import Interrupted, Run, every_prompts, state_name
from .processes import Ranks

C = TypeVar("C", bound=Streaming)
SAVE_SECONDS = 60.0  # of work that a kill may cost, when prompts are expensive


class Store(ABC, Generic[C]):
    """What one process has gathered, and how many windows of its questions are in it.

    `manifest` is what an earlier start of the same run froze; None where there was none.
    """

    def __init__(self, ranks: Ranks, new: Callable[[], C]) -> None:
        self.collector, self.windows = new(), 0
        self._ranks, self._new = ranks, new
        self._per_prompt: list[dict[str, Tensor]] = []  # scores of single prompts that are in no shard

    @property
    @abstractmethod
    def manifest(self) -> dict[str, Any] | None: ...

    @abstractmethod
    def result(self) -> Scores | None: ...

    @abstractmethod
    def begin(self, plan: dict[str, Any], **facts: Any) -> dict[str, Any]:
        """Freeze the plan of the batches and these facts; the plan to go on with, and its backoffs so far."""

    @abstractmethod
    def add(self, per_prompt: dict[str, Tensor], prompts: int, plan: dict[str, Any]) -> None:
        """One window more is done: the collector has it, and these scores of its single prompts are to be kept."""

    @abstractmethod
    def end(self, plan: dict[str, Any]) -> None: ...

    @abstractmethod
    def stopped(self, stop: KeyboardInterrupt, plan: dict[str, Any], done: str) -> KeyboardInterrupt:
        """What to raise after Ctrl-C; `done` says how much of the work is."""

    @abstractmethod
    def discard(self, work: bool = False) -> None:
        """Leave no trace of a start that came to nothing; with `work`, of work that was done neither."""

    @abstractmethod
    def finish(self, scores: Scores, backoffs: list[Any]) -> Scores: ...

    def merged(self) -> C:
        """What all processes gathered, the same in all of them to the bit."""
        return self._ranks.merge(self.collector, self._new)

    def _concatenated(self) -> dict[str, Tensor]:
        names = self._per_prompt[0] if self._per_prompt else ()
        return {name: torch.cat([some[name] for some in self._per_prompt]) for name in names}


class MemoryStore(Store[C]):
    """Nothing is written, and what is kept of single prompts stays here."""

    manifest = None

    def result(self) -> None:
        return None

    def begin(self, plan: dict[str, Any], **facts: Any) -> dict[str, Any]:
        return plan

    def add(self, per_prompt: dict[str, Tensor], prompts: int, plan: dict[str, Any]) -> None:
        self.windows += 1
        if per_prompt:
            self._per_prompt.append(per_prompt)

    def end(self, plan: dict[str, Any]) -> None:
        pass

    def stopped(self, stop: KeyboardInterrupt, plan: dict[str, Any], done: str) -> KeyboardInterrupt:
        return stop

    def discard(self, work: bool = False) -> None:
        pass

    def finish(self, scores: Scores, backoffs: list[Any]) -> Scores:
        return _with_per_prompt(scores, self._ranks.concatenate(self._concatenated()))


class DiskStore(Store[C]):
    """A run on disk: scores of single prompts go into shards, what was gathered into a state, all in one folder."""

    def __init__(self, run: Run, ranks: Ranks, new: Callable[[], C], every: int) -> None:
        super().__init__(ranks, new)
        self.run, self._every = run, every
        self._shards = self._waiting = 0  # shards that are written, and prompts that are in none yet
        self._state = state_name(ranks.rank)
        self._saved = time.monotonic()

    @property
    def manifest(self) -> dict[str, Any] | None:
        return self.run.manifest

    def result(self) -> Scores | None:
        if not self.run.complete:
            return None
        if self._ranks.first:
            self.run.settle()
        self._ranks.wait()
        return Scores.load(self.run.target)

    def begin(self, plan: dict[str, Any], **facts: Any) -> dict[str, Any]:
        with self._ranks.together():
            self.run.freeze(plan, **facts, every=self._every)
            return self._load() or plan

    def add(self, per_prompt: dict[str, Tensor], prompts: int, plan: dict[str, Any]) -> None:
        if per_prompt:
            self._per_prompt.append(per_prompt)
        self.windows += 1
        self._waiting += prompts
        if self._waiting >= self._every:
            self.end(plan)
        elif time.monotonic() - self._saved > SAVE_SECONDS:
            self._save(plan)

    def end(self, plan: dict[str, Any]) -> None:
        """Write the scores of the prompts that wait as a shard, then the state that counts it."""
        if self._per_prompt:
            self._write(f"part-{self._ranks.rank}-{self._shards:05d}.safetensors", self._concatenated())
            self._per_prompt = []
            self._shards += 1
        self._waiting = 0
        self._save(plan)

    def stopped(self, stop: KeyboardInterrupt, plan: dict[str, Any], done: str) -> KeyboardInterrupt:
        if not self.windows:
            return Interrupted("interrupted before the first questions were done: nothing is kept, start again")
        with undisturbed(stopping=True):
            self._save(plan)
        return Interrupted(f"interrupted, {done}; go on with resume=True (--resume)")

    def discard(self, work: bool = False) -> None:
        self.run.discard(work)

    def finish(self, scores: Scores, backoffs: list[Any]) -> Scores:
        with self._ranks.together(), undisturbed():
            if self._ranks.first:
                keep = self.run.settings["keep"]
                if keep == "all":
                    scores.per_prompt = ShardedScores(self.run.folder, self.run.shards())
                elif keep == "topk":
                    scores = _with_per_prompt(scores, self.run.read_shards())
                self.run.finish(scores, backoffs)
        return Scores.load(self.run.target)

    def _load(self) -> dict[str, Any] | None:
        """Go on from the last state, if there is one; the plan of the batches as it was then."""
        if not (self.run.folder / self._state).is_file():
            return None
        found = read_tensors(self.run.folder, self._state, "run")
        self.windows, self._shards, self._waiting = found["done"].tolist()
        gathered = {name.removeprefix("gathered."): tensor for name, tensor in found.items()}
        self.collector.load_state(gathered)
        waiting = {name.removeprefix("rows."): tensor for name, tensor in found.items() if name.startswith("rows.")}
        self._per_prompt = [waiting] if waiting else []
        plan: dict[str, Any] = json.loads(bytes(found["plan"].tolist()))
        return plan

    def _save(self, plan: dict[str, Any]) -> None:
        """Write the state, with the scores that wait, so that the shards are the same wherever a run was stopped."""
        state = {f"gathered.{name}": tensor for name, tensor in self.collector.state().items()}
        state |= {f"rows.{name}": tensor for name, tensor in self._concatenated().items()}
        state["done"] = torch.tensor([self.windows, self._shards, self._waiting])
        state["plan"] = torch.frombuffer(bytearray(json.dumps(plan).encode()), dtype=torch.uint8)
        self._write(self._state, state)
        self._saved = time.monotonic()

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        try:
            write_tensors(self.run.folder / name, tensors)
        except InputError as error:
            raise InputError(f"{error}; make room and go on with resume=True (--resume)") from error


def open_store(
    output: str | os.PathLike[str] | None,
    resume: bool,
    ranks: Ranks,
    settings: Callable[[], dict[str, Any]],
    new: Callable[[], C],
    bytes_a_prompt: int = 0,
) -> Store[C]:
    """The store of this process: a run on disk where there is an output, else memory.

    `settings` are what decides the bytes of the result; they cost a hash of every weight, and only the disk asks for
    them. `new` makes an empty collector.
    """
    if output is None:
        return MemoryStore(ranks, new)
    with ranks.together():
        run = Run(output, settings(), resume, ranks)
    return DiskStore(run, ranks, new, every_prompts(bytes_a_prompt))


def _with_per_prompt(scores: Scores, per_prompt: dict[str, Tensor]) -> Scores:
    """The scores with those of single prompts, in the order of the prompts."""
    if per_prompt:
        order = per_prompt.pop(PROMPTS).argsort()
        ordered = {name: tensor[order] for name, tensor in per_prompt.items()}
        scores.per_prompt = ordered.pop("scores", None)
        scores.top = Top.of_tensors(ordered) if ordered else None
    return scores
