"""A run on disk: an attribution that writes as it goes, may be killed at any moment, and goes on where it was.

While it is under way, OUTPUT.partial holds

    run.json                    what decides the bytes of the result and the plan of the batches, frozen at the start
    part-R-NNNNN.safetensors    a shard: scores of prompts that process R has done (keep="topk" and "all")
    state-R.safetensors         what process R has gathered, and how far it is
    rounds/                     attributions that this one is made of, each a run of its own (method "exact" with top=)

A file gets its name when it is whole and on the disk, and a shard is written before the state that counts it. So the
state is right whenever the process is killed; what came after it is done again, to the same bytes. At the end the
scores are written beside, what is no longer needed goes, and the folder takes the place of OUTPUT.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.files import check_new_folder, clear_aside, open_tensors, read_json, read_tensors, take_place, write_json
from ..results.per_prompt import PROMPTS
from ..results.scores import CONFIG, MANIFEST, PARTIAL, TENSORS, Scores
from .processes import Ranks
from .provenance import check_same

ROUNDS = "rounds"
EVERY = 64  # prompts of a shard, unless their scores are large
SHARD_BYTES = 2**28


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run on disk; the message says how far it is and how to go on."""


class Run:
    """The folder of a run: new, under way (`manifest` is not None), or `complete`.

    `settings` are what decides the bytes of the result; a run is only taken up again with the same.
    """

    def __init__(self, output: str | os.PathLike[str], settings: dict[str, Any], resume: bool, ranks: Ranks) -> None:
        self.target = Path(output)
        self.folder = partial_folder(output)
        self.settings, self._ranks = json.loads(json.dumps(settings)), ranks
        self.manifest: dict[str, Any] | None = None
        self.complete = False
        if not resume:
            return
        for folder in (self.folder, self.target):
            if (folder / MANIFEST).is_file():
                self.manifest = read_json(folder, MANIFEST, "run")
                check_same(self.manifest.get("settings", {}), self.settings, f"output {folder}: the run was begun with")
                self.complete = (folder / CONFIG).is_file()
                return
        if (self.target / CONFIG).is_file():
            raise InputError(
                f"output {self.target}: finished scores, but not of a run that can go on; name a new folder"
            )

    def freeze(self, plan: dict[str, Any], **facts: Any) -> None:
        """Write down before the start how the work is cut into batches; of a run under way, check it.

        For all processes together: none may write before the first one is through.
        """
        if self.manifest is not None:
            check_same(self.manifest, facts, f"output {self.folder}: the run was begun with")
        elif self._ranks.first:
            self.manifest = {"settings": self.settings, "plan": plan, **facts}
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"output {self.folder}: cannot be made: {error.strerror}") from error
            write_json(self.folder / MANIFEST, self.manifest)
        if self._ranks.first:
            self._sweep(".*")

    def discard(self, work: bool = False) -> None:
        """Take the folder away again, unless it holds work that was done; with `work`, then too."""
        done = any(self.folder.glob("state-*")) or any(self.folder.glob(f"{ROUNDS}/*"))
        if self._ranks.first and (work or not done):
            shutil.rmtree(self.folder, ignore_errors=True)

    def windows_done(self, rank: int) -> int:
        """How many windows a process has written down as done."""
        path = self.folder / state_name(rank)
        if not path.is_file():
            return 0
        with open_tensors(path, "run") as state:
            return int(state.get_tensor("done")[0])

    def shards(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("part-*.safetensors"))

    def read_shards(self) -> dict[str, Tensor]:
        """The per-prompt scores of all shards, in the order of the prompts."""
        shards = [read_tensors(self.folder, name, "run") for name in self.shards()]
        per_prompt = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
        order = per_prompt[PROMPTS].argsort()
        return {name: tensor[order] for name, tensor in per_prompt.items()}

    def finish(self, scores: Scores, backoffs: list[Any]) -> None:
        """Write the scores, then let the folder take the place of OUTPUT."""
        write_json(self.folder / MANIFEST, {**(self.manifest or {}), "backoffs": backoffs})
        scores.write_into(self.folder)
        self.settle()

    def settle(self) -> None:
        """The last steps of a run whose scores are written, which may have been cut short at any of them."""
        if (self.folder / CONFIG).is_file():
            needed = {CONFIG, TENSORS, MANIFEST, *read_json(self.folder, CONFIG, "scores").get("parts", [])}
            for ours in (".*", "part-*", "state-*"):
                self._sweep(ours, needed)
            shutil.rmtree(self.folder / ROUNDS, ignore_errors=True)
            take_place(self.folder, self.target)
        clear_aside(self.target)

    def _sweep(self, pattern: str, needed: set[str] | None = None) -> None:
        for path in self.folder.glob(pattern):
            if path.name not in (needed or ()):
                path.unlink()


def state_name(rank: int) -> str:
    return f"state-{rank}.safetensors"


def partial_folder(output: str | os.PathLike[str]) -> Path:
    """Where a run is written until it is complete."""
    return Path(output).with_name(Path(output).name + PARTIAL)


def check_output(
    output: str | os.PathLike[str],
    resume: bool,
    overwrite: bool = False,
    mark: str = CONFIG,
    manifest: str = MANIFEST,
) -> None:
    """Refuse a place for a run that holds something else, before any work is done.

    A finished result, which holds the file `mark`, may stand there where it is to be replaced, or is perhaps that of
    the run to go on with. A run under way holds the file `manifest`.
    """
    if resume and overwrite:
        raise InputError("overwrite=True with resume=True: the one begins anew, the other goes on; give one of them")
    check_new_folder(output, mark, replace=resume or overwrite)
    for above in Path(output).absolute().parents:
        finished = (above / CONFIG).is_file() and (above / TENSORS).is_file()
        if finished or (above.name.endswith(PARTIAL) and (above / MANIFEST).is_file()):
            raise InputError(f"output {output}: {above} holds the scores of another run; name a folder outside it")
    folder = partial_folder(output)
    if not os.path.lexists(folder):
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if manifest not in names and any(not name.startswith(f".{manifest}") for name in names):
        raise InputError(f"output {output}: {folder} stands there, which is not ours; name another folder")
    if manifest in names and not resume:
        only = ", as overwrite=True (--overwrite) replaces finished results only" if overwrite else ""
        raise InputError(
            f"output {output}: {folder} is a run under way: go on with resume=True (--resume), or delete it{only}"
        )


def every_prompts(bytes_a_prompt: int) -> int:
    """How many prompts go into a shard: few enough that their scores are small beside the memory of a computer."""
    return max(1, min(EVERY, SHARD_BYTES // max(1, bytes_a_prompt)))
