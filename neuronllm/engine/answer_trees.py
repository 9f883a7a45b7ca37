"""The answer trees of a batch of prompts: the tokens that are asked behind the prefixes.

A letter is read behind the last prompt token, and its tree is that token. An answer of several tokens has further nodes
behind it. A node sees its prompt's prefix, the nodes above it and itself; its position is that on the path to it.

Passes of answer tokens have a row for every node, prompt by prompt, and in it a column for every branch: (prompts x
nodes, branches, ...). So all tokens of a row stand at one position, however many branches join on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..data.question_trees import QuestionTree


class Nodes(NamedTuple):
    """Nodes of one depth in some prompts' trees."""

    prompts: Tensor  # whose they are, by its place among these prompts
    nodes: Tensor
    above: Tensor  # the node above each, by its place among the nodes of the depth before


class AnswerTrees:
    """Trees as tensors (prompts, width, ...), padded with nodes that see themselves only.

    >>> AnswerTrees([prompt]).width   # doctest: +SKIP
    1
    """

    def __init__(self, prompts: Sequence[Prompt] | Sequence[QuestionTree]) -> None:
        trees = [prompt.tree for prompt in prompts]
        self.width = max(len(tree.tokens) for tree in trees)
        self.tokens = torch.zeros(len(trees), self.width, dtype=torch.int64)
        self.depth = torch.zeros(len(trees), self.width, dtype=torch.int64)
        self.real = torch.zeros(len(trees), self.width, dtype=torch.bool)
        self.seen = torch.eye(self.width, dtype=torch.bool).repeat(len(trees), 1, 1)  # (prompts, by node, of nodes)
        for n, tree in enumerate(trees):
            self.tokens[n, : len(tree.tokens)] = torch.tensor(tree.tokens)
            self.real[n, : len(tree.tokens)] = True
            for node, parent in enumerate(tree.parents[1:], start=1):
                self.depth[n, node] = self.depth[n, parent] + 1
                self.seen[n, node] |= self.seen[n, parent]

    def near(self, window: int | None) -> Tensor:
        """(prompts, by node, of nodes): what nodes see of each other within a sliding window."""
        if window is None:
            return self.seen
        return self.seen & (self.depth[:, None] > self.depth[:, :, None] - window)

    def by_depth(self, prompts: Sequence[int]) -> Iterator[Nodes]:
        """The nodes of these prompts' trees, depth by depth."""
        places: dict[tuple[int, int], int] = {}
        for depth in range(int(self.depth[prompts].max()) + 1):
            here = self.real[prompts] & (self.depth[prompts] == depth)
            pairs: list[tuple[int, int]] = [(n, node) for n, node in here.nonzero().tolist()]
            above = [places[n, self._above(prompts[n], node)] for n, node in pairs] if depth else [0] * len(pairs)
            places = {pair: place for place, pair in enumerate(pairs)}
            at = torch.tensor(pairs)
            yield Nodes(at[:, 0], at[:, 1], torch.tensor(above))

    def _above(self, prompt: int, node: int) -> int:
        before = self.seen[prompt, node] & (self.depth[prompt] == self.depth[prompt, node] - 1)
        return int(before.nonzero())


def of_prompts(rows: Tensor, width: int) -> Tensor:
    """(prompts x nodes, ...) -> (prompts, ...), summed over each prompt's nodes."""
    return rows if width == 1 else rows.unflatten(0, (-1, width)).sum(1)
