"""The prefix of a prompt: every token before the answer position, whose keys and values no edit there can change.

Prompts share prefixes: instructions and demonstration are common to all, the stem to a question's variants. So the
prefixes of a batch form a tree of three levels (root, stems, tails) and every piece is computed once, without a graph.
A piece attends to the pieces above it and to itself. Pieces are padded on the right; what is padding, and where a
token stands, is known from lengths and starts, never guessed from token ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .answer_trees import AnswerTrees
from .caches import tensors

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from .mixers import Ended, Mixers

WORTH_SHARING = 32  # tokens saved, below which another pass costs more


@dataclass
class Level:
    """Pieces of one depth of the tree, with the keys and values of every layer: (pieces, groups, tokens, d)."""

    starts: Tensor  # (pieces,) position of the first token
    lengths: Tensor  # (pieces,) real tokens
    piece: Tensor  # (prompts,) which piece is a prompt's
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    trees: AnswerTrees | None = None  # that the pieces end with, in the order of the prompts
    ended: list[Ended] = field(default_factory=list)  # of a model with mixers: the pieces, those of one end together
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
    def firsts(self) -> Tensor:
        """(pieces,) the first prompt of each piece."""
        firsts = torch.zeros(len(self.lengths), dtype=torch.int64)
        firsts[self.piece.flip(0)] = torch.arange(len(self.piece)).flip(0)
        return firsts

    def end_of(self, piece: int) -> tuple[int, int]:
        """Among which of `ended` a piece is, and its place there."""
        return next((n, int(at)) for n, e in enumerate(self.ended) for at in (e.pieces == piece).nonzero()[:, 0])

    @property
    def positions(self) -> Tensor:
        """(pieces, width) where each token stands in its prompt."""
        places = self.starts[:, None] + torch.arange(self.width)
        for piece, first, count in _ends(self.lengths, self.trees):
            assert self.trees is not None
            places[piece, first : first + count] = places[piece, first] + self.trees.depth[piece, :count]
        return places

    @property
    def nodes(self) -> Tensor:
        """(pieces, nodes) the columns of the answer trees; those that pad a tree are its last node again."""
        assert self.trees is not None
        count = self.trees.real.sum(1, keepdim=True)
        node = torch.minimum(torch.arange(self.trees.width)[None], count - 1)
        return self.lengths[:, None] - count + node

    @property
    def seen(self) -> Tensor:
        """(pieces, width, width): what the tokens of a piece see of each other, by token and of tokens."""
        causal = torch.ones(self.width, self.width, dtype=torch.bool).tril().repeat(len(self.lengths), 1, 1)
        for piece, first, count in _ends(self.lengths, self.trees):
            assert self.trees is not None
            own = slice(first, first + count)
            causal[piece, own, own] = self.trees.seen[piece, :count, :count]
        return causal

    @property
    def real(self) -> Tensor:
        """(pieces, width) which tokens are no padding."""
        return torch.arange(self.width) < self.lengths[:, None]

    def n_bytes(self) -> int:
        """What keys, values and states take."""
        held = [part for pair in self.layers.values() for part in pair]
        return sum(part.numel() * part.element_size() for part in held) + self.state_bytes()

    def state_bytes(self) -> int:
        """What caches of mixers take."""
        held = [part for ended in self.ended for part in tensors(ended.cache)]
        return sum(part.numel() * part.element_size() for part in held)

    def for_prompts(self, count: int) -> Level:
        """The same single piece, shared by so many prompts."""
        return self.of_pieces(torch.zeros(count, dtype=torch.int64))

    def of_pieces(self, piece: Tensor) -> Level:
        """The same pieces for other prompts."""
        return replace(self, piece=piece, _placed={})


def _ends(lengths: Tensor, trees: AnswerTrees | None) -> Iterator[tuple[int, int, int]]:
    """Of every piece that ends with a tree: its number, the column of the tree's first node, how many it has."""
    if trees is not None:
        counts = trees.real.sum(1)
        yield from zip(range(len(counts)), (lengths - counts).tolist(), counts.tolist(), strict=True)


class End(NamedTuple):
    """Prompts whose prefixes end together."""

    ended: Ended
    prompts: Tensor
    rows: Tensor  # of the cache there, one for each prompt


class Prefix:
    """The levels above the answer tokens of a batch, how many tokens each prompt has there, and its answer tokens."""

    def __init__(self, levels: list[Level], lengths: Tensor, trees: AnswerTrees, mixers: Mixers | None = None) -> None:
        self.levels, self.lengths, self.trees, self.mixers = levels, lengths, trees, mixers
        self.ends = list(_prefix_ends(levels[-1])) if mixers is not None else []
        self.attended: set[int] = set()  # the layers whose answer tokens have attended to it
        self._visible: dict[tuple[int | None, torch.device], Tensor | None] = {}

    def n_bytes(self) -> int:
        """What the keys and values take."""
        return sum(level.n_bytes() for level in self.levels)

    @property
    def ended_order(self) -> Tensor:
        """Where each prompt stands among the prompts of all ends."""
        return torch.cat([end.prompts for end in self.ends]).argsort()

    def visible(self, window: int | None, device: torch.device) -> Tensor | None:
        """(prompts, nodes, tokens + nodes): what answer tokens see within a sliding window, last of each other.

        None: everything.
        """
        if (window, device) not in self._visible:
            parts = []
            for level in self.levels:
                seen = level.real[level.piece][:, None].expand(-1, self.trees.width, -1)
                if window is not None:
                    nearest = self.lengths[:, None] + self.trees.depth - window
                    seen = seen & (level.positions[level.piece][:, None] > nearest[:, :, None])
                parts.append(seen)
            seen = torch.cat([*parts, self.trees.near(window)], 2)
            self._visible[window, device] = None if bool(seen.all()) else seen.to(device)
        return self._visible[window, device]


def _prefix_ends(level: Level) -> Iterator[End]:
    """The ends of prompts whose last level this is."""
    for ended in level.ended:
        here = (level.piece[:, None] == ended.pieces).nonzero()
        if len(here):
            yield End(ended, here[:, 0], here[:, 1])


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


def with_answers(prompts: Sequence[Any], begins: list[int]) -> tuple[Level, list[list[int]]]:
    """What each prompt, or whole question, has for itself, from `begins` to the end of its answer tree.

    A level to be computed, and its tokens.
    """
    trees = AnswerTrees(prompts)
    pieces = [[*p.input_ids[begin:], *p.tree.tokens[1:]] for p, begin in zip(prompts, begins, strict=True)]
    lengths = torch.tensor([len(piece) for piece in pieces])
    return Level(torch.tensor(begins), lengths, torch.arange(len(prompts)), trees=trees), pieces


def tails(prompts: Sequence[Prompt], begins: list[int], ends: list[int]) -> tuple[Level, list[list[int]]]:
    """What each prompt has for itself, from `begins` to `ends`: a level to be computed, and its tokens."""
    lengths = torch.tensor([end - begin for begin, end in zip(begins, ends, strict=True)])
    level = Level(torch.tensor(begins), lengths, torch.arange(len(prompts)))
    return level, [list(p.input_ids[b:e]) for p, b, e in zip(prompts, begins, ends, strict=True)]
