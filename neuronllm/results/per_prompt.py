"""The scores of single prompts: the highest and lowest of each (`Top`), or all of them on disk (`ShardedScores`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.checks import short
from ..common.errors import InputError
from ..select import extremes_rows

PROMPTS = "prompts"  # the tensor of a shard that says which prompts its scores are of


class TopEnd(NamedTuple):
    """One end of every prompt's scores, best first: (prompts, k) each. Where a prompt has fewer, -1 and NaN."""

    ids: Tensor
    values: Tensor


class Top(NamedTuple):
    """The k highest and the k lowest scores of every prompt.

    >>> top = top_of(torch.tensor([[0.5, -2.0, 3.0]]), 2)
    >>> top.largest.ids.tolist(), top.smallest.values.tolist()
    ([[2, 0]], [[-2.0, 0.5]])
    """

    largest: TopEnd
    smallest: TopEnd

    def tensors(self) -> dict[str, Tensor]:
        """By name, as they are saved."""
        pairs = (("largest", self.largest), ("smallest", self.smallest))
        return {f"{end}.{name}": tensor for end, both in pairs for name, tensor in both._asdict().items()}

    @classmethod
    def of_tensors(cls, found: dict[str, Tensor]) -> Top:
        ends = (TopEnd(found[f"{end}.ids"], found[f"{end}.values"]) for end in ("largest", "smallest"))
        return cls(*ends)


def top_of(scores: Tensor, k: int) -> Top:
    """The ends of every row of scores (prompts, n_neurons); equal scores in the order of their ids."""
    found = extremes_rows(scores, largest=k, smallest=k)
    ends = (TopEnd(end.indices.to(torch.int32), end.values) for end in (found.largest, found.smallest))
    return Top(*ends)


class ShardedScores:
    """Raw scores of every prompt in several files, in the order of the prompts; those of a prompt are read when needed.

    Index it like a tensor's first dimension: `scores[3]`, `scores[10:20]`, `scores[::-1]`, `scores[[5, 1]]`;
    `scores[:]` reads all.

    >>> scores.per_prompt[:2].shape     # doctest: +SKIP
    torch.Size([2, 11264])
    """

    def __init__(self, folder: str | os.PathLike[str], names: Sequence[str]) -> None:
        from ..common.files import open_tensors

        self.folder, self.names = Path(folder), list(names)
        prompts = []
        for name in self.names:
            with open_tensors(self.folder / name, "scores") as shard:
                prompts.append(shard.get_tensor(PROMPTS))
                scores = shard.get_slice("scores")
                width, self.dtype = scores.get_shape()[1], scores[:0].dtype
        order = torch.cat(prompts).argsort()
        starts = torch.tensor([0, *(len(some) for some in prompts)]).cumsum(0)
        self._shard = torch.searchsorted(starts, order, right=True) - 1
        self._row = order - starts[self._shard]
        self.shape = torch.Size((len(order), width))

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"ShardedScores({len(self)} prompts, {self.shape[1]} neurons, {len(self.names)} files in {self.folder})"

    def __getitem__(self, index: Any) -> Tensor:
        from ..common.files import open_tensors

        prompts = self._prompts(index)
        flat = prompts.reshape(-1)
        found = torch.empty(len(flat), self.shape[1], dtype=self.dtype)
        where = self._shard[flat]
        for number in where.unique().tolist():
            mine = (where == number).nonzero()[:, 0]
            at = self._row[flat[mine]]
            low = int(at.min())
            with open_tensors(self.folder / self.names[number], "scores") as shard:
                found[mine] = shard.get_slice("scores")[low : int(at.max()) + 1][at - low]
        return found.reshape(*prompts.shape, self.shape[1])

    def _prompts(self, index: Any) -> Tensor:
        """The numbers of the prompts that an index means."""
        if isinstance(index, int):
            return torch.tensor(range(len(self))[index])  # its IndexError ends a loop over the prompts
        try:
            if isinstance(index, slice):
                return torch.tensor(range(len(self))[index], dtype=torch.int64)
            if isinstance(index, str):
                raise TypeError("text is no index")
            if isinstance(index, list):
                index = torch.as_tensor(index, dtype=None if index else torch.int64)
            prompts = torch.arange(len(self))[index]
        except (IndexError, TypeError, ValueError, RuntimeError) as error:
            given = " ".join(short(index).split())
            raise InputError(
                f"per_prompt[{given}]: give one of the prompts 0 to {len(self) - 1}, a slice or a list of them, "
                "or a mask of all; neurons are chosen of what comes back: per_prompt[prompts][:, neurons]"
            ) from error
        if prompts.ndim > 1:
            raise InputError("per_prompt on disk is indexed by prompts only: per_prompt[prompts][:, neurons]")
        return prompts

    def copy_to(self, folder: Path) -> None:
        """The same files in another folder, unless they are there already."""
        for name in self.names:
            if not (folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)
