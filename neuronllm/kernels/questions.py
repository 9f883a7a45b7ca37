"""Which rows belong to which question, cut into chunks that programs of a grid can work on.

A chunk's bounds are counted from its own question's first row. So the additions of a question happen in the same order
whatever stands beside it in the batch, and its score has the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.errors import InputError
from .checks import WHOLE, check_small, check_tensors


@dataclass(frozen=True)
class Chunks:
    """Chunks in the order of their questions; those past the last one have no rows."""

    table: Tensor  # (3, chunks) int32 on the kernel's device: question, first row, rows
    first: Tensor  # (questions + 1,) int32: the first chunk of every question
    single: bool  # whether chunk n is known to be the whole of question n


def check_questions(lengths: Tensor | None, starts: Tensor | None, first: str, device: torch.device) -> None:
    """Refuse what is wrong as far as it can be seen without waiting for a device."""
    check_tensors(lengths=lengths, starts=starts)
    if lengths is None:
        if starts is not None:
            raise InputError("starts: give lengths as well")
        return
    for name, found in (("lengths", lengths), ("starts", starts)):
        if found is not None and (found.ndim != 1 or found.dtype not in WHOLE):
            raise InputError(f"{name}: give one whole number a question, not {tuple(found.shape)} of {found.dtype}")
    if starts is not None and (starts.shape[0] != lengths.shape[0] or starts.device != lengths.device):
        raise InputError("starts: give one a question, on the same device as lengths")
    check_small("lengths", lengths, first, device)


def bounds(lengths: Tensor | None, starts: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """First rows and lengths of the questions, int64. Without lengths all rows are one question."""
    if lengths is None:
        return torch.zeros(1, dtype=torch.int64), torch.tensor([rows])
    lengths = lengths.long()
    known = lengths.device.type == "cpu" and lengths.numel() > 0
    if known and int(lengths.min()) < 0:
        raise InputError(f"lengths: {int(lengths.min())} rows are no length, give whole numbers from 0 on")
    # Sums only of what is known to be small: those of numbers near 2**63 would wrap around and pass every check.
    if known and int(lengths.max()) > rows:
        raise InputError(f"lengths: a question reaches beyond the {rows} rows that there are")
    starts = lengths.cumsum(0) - lengths if starts is None else starts.long()
    if known:
        if int(starts.min()) < 0:
            raise InputError(f"starts: {int(starts.min())} is no row, give whole numbers from 0 on")
        if bool((starts > rows - lengths).any()):
            raise InputError(f"lengths: a question reaches beyond the {rows} rows that there are")
        order = starts.argsort(stable=True)
        some = order[lengths[order] > 0]
        if bool(((starts + lengths)[some][:-1] > starts[some][1:]).any()):
            raise InputError("lengths: two questions share a row")
    return starts, lengths


def covering(lengths: Tensor | None, starts: Tensor | None, rows: int) -> bool:
    """Whether every row is known to belong to a question."""
    if lengths is None:
        return True
    return starts is None and lengths.device.type == "cpu" and int(lengths.sum()) == rows


def cut(
    lengths: Tensor | None,
    starts: Tensor | None,
    rows: int,
    chunk: int,
    device: torch.device,
    known: bool | None = None,
) -> Chunks:
    """The chunks of questions. Lengths on the CPU are known: nobody then has to wait for a device, or to guess."""
    begin, length = bounds(lengths, starts, rows)
    known, questions = length.device.type == "cpu" if known is None else known, len(length)
    if known and questions and int(length.max()) <= chunk:
        ids = torch.arange(questions)
        table = torch.stack([ids, begin, length]).int()
        return Chunks(table.to(device), torch.arange(questions + 1, dtype=torch.int32).to(device), True)
    counts = (length + chunk - 1) // chunk
    first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    total = int(first[-1]) if known else -(-rows // chunk) + questions  # on a device: as many as there can be
    ids = torch.arange(total, device=length.device)
    question = torch.searchsorted(first[1:].contiguous(), ids, right=True)
    real = question < questions
    question = question.clamp(max=max(questions - 1, 0))
    offset = (ids - first[question]) * chunk
    row = (begin[question] + offset).clamp(0, rows)
    count = torch.minimum((length[question] - offset).clamp(max=chunk), rows - row).clamp(min=0)
    table = torch.stack([question, row, torch.where(real, count, 0)]).int()
    # Lengths on a device are not looked at: wrong ones give wrong sums, but no address outside the chunks.
    return Chunks(table.to(device), first.clamp(0, total).int().to(device), False)
