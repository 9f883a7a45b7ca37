"""Ask the model: option probabilities of many prompts in padded batches, with or without an edit.

Prompts of like length share a batch, padded on the right, where padding is invisible to a causal model; nothing of the
tokenizer is used, so its padding side does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..anatomy import Anatomy
from ..errors import InputError
from ..steer import edit
from .borrowed import answer_logits, borrowed, check_prompts
from .objective import option_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..prompts import Prompt

BATCH_SIZE = 32


class Edit(NamedTuple):
    """Factors on neurons, at all positions or at each prompt's answer position only."""

    ids: Tensor
    factors: Tensor
    positions: str = "answer"


def check_batch_size(batch_size: int | str) -> int | str:
    if batch_size != "auto" and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise InputError(f'batch_size={batch_size!r}: give a positive whole number or "auto"')
    return batch_size


@torch.no_grad()
def option_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    change: Edit | None = None,
    *,
    anatomy: Anatomy | None = None,
    batch_size: int | str = "auto",
    progress: bool = False,
    label: str = "asking",
) -> Tensor:
    """Log-probabilities among each prompt's options, (prompts, most options), -inf where a prompt has fewer."""
    check_prompts(model, prompts)
    size = BATCH_SIZE if check_batch_size(batch_size) == "auto" else int(batch_size)
    anatomy = anatomy or (Anatomy.of(model) if change is not None else None)
    out = torch.full((len(prompts), max(len(p.option_ids) for p in prompts)), float("-inf"))
    by_length = sorted(range(len(prompts)), key=lambda n: len(prompts[n].input_ids))
    with (
        borrowed(model, attention=None),
        tqdm(total=len(prompts), desc=label, disable=not progress, unit="prompt", leave=False) as bar,
    ):
        for start in range(0, len(prompts), size):
            here = by_length[start : start + size]
            logits = _asked(model, [prompts[n] for n in here], change, anatomy)
            for row, n in zip(logits, here, strict=True):
                scores = option_scores(row, prompts[n].option_ids).log_softmax(-1)
                out[n, : len(scores)] = scores.float().cpu()
            bar.update(len(here))
    return out


def padded(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor | None, Tensor]:
    """Token ids padded on the right, their mask (None without padding), and every prompt's answer position."""
    lengths = torch.tensor([len(p.input_ids) for p in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt.input_ids)] = torch.tensor(prompt.input_ids)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    # Prompts of one length need no mask: the model may then take its plain causal path.
    return ids, None if bool(mask.all()) else mask.long(), lengths - 1


def _asked(model: PreTrainedModel, prompts: Sequence[Prompt], change: Edit | None, anatomy: Anatomy | None) -> Tensor:
    ids, mask, answer = padded(prompts)
    if change is None:
        return answer_logits(model, ids, mask, answer)
    where = answer if change.positions == "answer" else change.positions
    with edit(model, change.ids, change.factors, positions=where, anatomy=anatomy):
        return answer_logits(model, ids, mask, answer)


def by_choice(logprobs: Tensor, prompt: Prompt) -> Tensor:
    """A prompt's log-probabilities in the order in which its question gives the choices."""
    shown = logprobs[: len(prompt.option_ids)]
    if not prompt.order:
        return shown
    return torch.empty_like(shown).scatter(0, torch.tensor(prompt.order), shown)


def answered_right(logprobs: Tensor, prompts: Sequence[Prompt]) -> bool:
    """Whether the mean probability over the variants of one question is highest for the right choice."""
    pairs = list(zip(logprobs, prompts, strict=True))
    mean = torch.stack([by_choice(row, prompt).exp() for row, prompt in pairs]).mean(0)
    first = prompts[0]
    right = first.order[first.answer] if first.order else first.answer
    return int(mean.argmax()) == right
