"""What the reference runs: every answer of a prompt as a sequence of its own, and what is read off them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .head import objective_value, option_scores, wide
from .objectives import AnyObjective, Readout, get_objective

if TYPE_CHECKING:
    from ..data.prompts import Prompt


class Shown(NamedTuple):
    """A sequence that is run: a prompt with an answer behind it but for its last token, which is read only."""

    tokens: list[int]
    span: int  # its last tokens, behind which the answer is read
    edited: int  # its last tokens, at which neurons are edited: the span, or all


def shown(prompt: Prompt, positions: str = "answer") -> list[Shown]:
    """Every sequence of a prompt, those that are the same once; to be edited at these positions."""
    behind = {tuple(ids[:-1]): None for option in prompt.option_ids for ids in option}
    before = len(prompt.input_ids) if positions == "all" else 1
    return [Shown([*prompt.input_ids, *tokens], 1 + len(tokens), before + len(tokens)) for tokens in behind]


def value_of(objective: AnyObjective, logits: Sequence[Tensor], prompt: Prompt) -> Tensor:
    """The objective, one value a copy, of the logits (copies, span, vocabulary) of every sequence of a prompt."""
    if prompt.one_token:
        return objective_value(objective, logits[0][:, -1], prompt)
    explained = get_objective(objective)
    scores = torch.stack([option_score(logits, prompt, k, explained.forms) for k in range(len(prompt.option_ids))], -1)
    right = torch.full_like(scores[:, :1], prompt.answer, dtype=torch.int64)
    return explained.value(Readout(scores, right, torch.zeros_like(scores[:, 0])))


def option_score(logits: Sequence[Tensor], prompt: Prompt, option: int, forms: int | None = None) -> Tensor:
    """The score of an option, one a copy."""
    if prompt.one_token:
        return option_scores(logits[0][:, -1], [prompt.first_tokens[option]])[:, 0]
    places = {tuple(row.tokens[len(prompt.input_ids) :]): n for n, row in enumerate(shown(prompt))}
    found = []
    for form, ids in enumerate(prompt.option_ids[option][:forms]):
        logp = wide(logits[places[tuple(ids[:-1])]]).log_softmax(-1)
        total = logp[:, range(len(ids)), ids].sum(-1)
        offset = prompt.offsets[option][form] if prompt.offsets else 0.0
        length = prompt.lengths[option][form] if prompt.lengths else 1.0
        found.append((total - offset) / length)
    return torch.stack(found, -1).logsumexp(-1)
