"""Objectives: one number of the answer logits that attribution explains.

Every objective is a function of the option scores (for each option, the logsumexp of the logits of its token ids), the
log of the vocabulary's normaliser, and the right option.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from ..prompts import Prompt

Formula = Callable[[Tensor, Tensor, int], Tensor]


def _margin(options: Tensor, log_z: Tensor, right: int) -> Tensor:
    others = [n for n in range(options.shape[-1]) if n != right]
    return options[..., right] - options[..., others].logsumexp(-1)


OBJECTIVES: dict[str, Formula] = {
    "logp_options": lambda s, log_z, right: s.log_softmax(-1)[..., right],
    "p_options": lambda s, log_z, right: s.softmax(-1)[..., right],
    "margin": _margin,
    "logp_vocab": lambda s, log_z, right: s[..., right] - log_z,
    "p_vocab": lambda s, log_z, right: (s[..., right] - log_z).exp(),
}
# The probability of the bare letter alone ("A", never " A"), which QRNCA's released code explains.
BARE_LETTER = "p_vocab_bare"


def check_objective(name: str) -> str:
    if name not in (*OBJECTIVES, BARE_LETTER):
        raise InputError(f"objective={name!r}: known objectives are {', '.join(OBJECTIVES)}")
    return name


def option_scores(logits: Tensor, option_ids: list[list[int]]) -> Tensor:
    """(..., vocabulary) -> (..., options): the logsumexp over each option's token ids, in float32 or better.

    >>> option_scores(torch.zeros(10), [[1, 2], [3]])
    tensor([0.6931, 0.0000])
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.stack([logits[..., ids].logsumexp(-1) for ids in option_ids], -1)


def objective_value(name: str, logits: Tensor, prompt: Prompt) -> Tensor:
    """The objective of answer logits (..., vocabulary) for a prompt, one value a row, in float32 or better."""
    option_ids = [list(ids) for ids in prompt.option_ids]
    if name == BARE_LETTER:
        name, option_ids = "p_vocab", [ids[:1] for ids in option_ids]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    options = option_scores(logits, option_ids)
    log_z = logits.logsumexp(-1) if "vocab" in name else logits.new_zeros(logits.shape[:-1])
    return OBJECTIVES[name](options, log_z, prompt.answer)
