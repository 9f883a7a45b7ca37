"""The variants of a question as one tree: what they start with once, then the rest of each with its answers behind it.

Where only the mean over a question's variants is wanted, one pass over that tree has it: the gradient of a sum is the
sum of the gradients, and a token that several variants share is one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from os.path import commonprefix

from .prompts import AnswerTree, Prompt


@dataclass(frozen=True)
class QuestionTree:
    """What variants start with, and one tree of all the rest; it is cut into batches as a prompt is."""

    prompts: list[Prompt]
    input_ids: list[int]
    tree: AnswerTree
    nodes: list[list[int]]  # of every prompt, the nodes of its own answer tree

    one_token = False

    @property
    def n_tokens(self) -> int:
        return len(self.input_ids) + len(self.tree.tokens) - 1

    @classmethod
    def of(cls, prompts: Sequence[Prompt]) -> QuestionTree | None:
        """None where the variants have no common start."""
        alike = commonprefix([prompt.input_ids for prompt in prompts])
        shared = min(len(alike), *(len(prompt.input_ids) - 1 for prompt in prompts))
        if not shared:
            return None
        tokens, parents = [prompts[0].input_ids[shared - 1]], [-1]
        children: dict[tuple[int, int], int] = {}

        def child(node: int, token: int) -> int:
            if (node, token) not in children:
                children[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            return children[node, token]

        nodes = []
        for prompt in prompts:
            last = 0
            for token in prompt.input_ids[shared:]:
                last = child(last, token)
            own = [last]
            for token, parent in zip(prompt.tree.tokens[1:], prompt.tree.parents[1:], strict=True):
                own.append(child(own[parent], token))
            nodes.append(own)
        return cls(list(prompts), prompts[0].input_ids[:shared], AnswerTree(tokens, parents, []), nodes)


def question_trees(prompts: Sequence[Prompt], sizes: Sequence[int]) -> list[QuestionTree] | None:
    """One a question, where that says something new: of answers in words, with variants that start alike."""
    if max(sizes) < 2 or any(prompt.one_token for prompt in prompts):
        return None
    ends = list(accumulate(sizes))
    trees = [QuestionTree.of(prompts[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    return None if None in trees else [tree for tree in trees if tree is not None]
