"""The prefix of a prompt: every token before the answer position, whose keys and values no edit there can change.

Prompts share prefixes: instructions and demonstration are common to all, the stem to a question's variants. So the
prefixes of a batch form a tree of three levels (root, stems, tails) and every piece is computed once, without a graph.
A piece attends to the pieces above it and to itself. Pieces are padded on the right; what is padding, and where a
token stands, is known from lengths and starts, never guessed from token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..data.prompts import Prompt

WORTH_SHARING = 32  # tokens saved, below which another pass costs more


@dataclass
class Level:
    """Pieces of one depth of the tree, with the keys and values of every layer: (pieces, groups, tokens, d)."""

    starts: Tensor  # (pieces,) position of the first token
    lengths: Tensor  # (pieces,) real tokens
    piece: Tensor  # (prompts,) which piece is a prompt's
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _placed: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    def piece_on(self, device: torch.device) -> Tensor:
        """`piece` on a device, brought there once: a copy to a GPU makes the host wait."""
        if device not in self._placed:
            self._placed[device] = self.piece.to(device)
        return self._placed[device]

    @property
    def width(self) -> int:
        return int(self.lengths.max())

    @property
    def positions(self) -> Tensor:
        """(pieces, width) where each token stands in its prompt."""
        return self.starts[:, None] + torch.arange(self.width)

    @property
    def real(self) -> Tensor:
        """(pieces, width) which tokens are no padding."""
        return torch.arange(self.width) < self.lengths[:, None]

    def for_prompts(self, count: int) -> Level:
        """The same single piece, shared by so many prompts."""
        return Level(self.starts, self.lengths, torch.zeros(count, dtype=torch.int64), self.layers)


class Prefix:
    """The levels above the answer tokens of a batch, and how many tokens each prompt has there."""

    def __init__(self, levels: list[Level], lengths: Tensor) -> None:
        self.levels, self.lengths = levels, lengths
        self.attended: set[int] = set()  # the layers whose answer tokens have attended to it
        self._visible: dict[tuple[int | None, torch.device], Tensor | None] = {}

    def n_bytes(self) -> int:
        """What the keys and values take."""
        pairs = [pair for level in self.levels for pair in level.layers.values()]
        return sum(part.numel() * part.element_size() for pair in pairs for part in pair)

    def visible(self, window: int | None, device: torch.device) -> Tensor | None:
        """(prompts, tokens + 1): what an answer token sees within a sliding window; last, itself. None: everything."""
        if (window, device) not in self._visible:
            parts = []
            for level in self.levels:
                seen = level.real[level.piece]
                if window is not None:
                    seen = seen & (level.positions[level.piece] > self.lengths[:, None] - window)
                parts.append(seen)
            seen = torch.nn.functional.pad(torch.cat(parts, 1), (0, 1), value=True)
            self._visible[window, device] = None if bool(seen.all()) else seen.to(device)
        return self._visible[window, device]


def common(sequences: Sequence[list[int]]) -> int:
    """How many tokens all sequences start with, always leaving each its last one."""
    first, last = min(sequences), max(sequences)  # what these two share, all share
    longest = min(len(s) for s in sequences) - 1
    return next((n for n in range(longest) if first[n] != last[n]), longest)


def root_length(prompts: Sequence[Prompt]) -> int:
    """How many tokens of all prompts are worth computing once for all."""
    shared = common([p.input_ids for p in prompts])
    return shared if shared * (len(prompts) - 1) >= WORTH_SHARING else 0


def siblings(prompts: Sequence[Prompt], root: int) -> list[list[int]]:
    """Places of neighbours that share a stem, such as the variants of a question."""
    groups: list[list[int]] = []
    for n, prompt in enumerate(prompts):
        before = prompts[groups[-1][0]] if groups else None
        if before is not None and common([before.input_ids, prompt.input_ids]) - root >= WORTH_SHARING // 4:
            groups[-1].append(n)
        else:
            groups.append([n])
    return groups


def tails(prompts: Sequence[Prompt], begins: list[int], ends: list[int]) -> tuple[Level, list[list[int]]]:
    """What each prompt has for itself, from `begins` to `ends`: a level to be computed, and its tokens."""
    lengths = torch.tensor([end - begin for begin, end in zip(begins, ends, strict=True)])
    level = Level(torch.tensor(begins), lengths, torch.arange(len(prompts)))
    return level, [list(p.input_ids[b:e]) for p, b, e in zip(prompts, begins, ends, strict=True)]
