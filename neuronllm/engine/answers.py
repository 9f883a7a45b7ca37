"""Ask the model: option probabilities of many prompts in batches, with or without an edit.

Prompts of like length share a batch, padded on the right, where padding is invisible to a causal model; nothing of the
tokenizer is used, so its padding side does not matter. What prompts start with in common (instructions, demonstration,
the stem of a question's variants) is computed once for all of them, under the edit of the moment, where the model lets
itself be driven so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.errors import InputError
from ..model.anatomy import Anatomy
from ..model.edit import edit
from .attention import piece_attention
from .batching import unless_memory_ends
from .borrowed import DRIVING_ERRORS, answer_logits, borrowed, check_prompts, quietly, rope_limit
from .head import NEVER, Choices
from .prefill import piece_inputs, prefill_root, shared_levels
from .tree import Level, root_length, siblings, tails

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt

_log = logging.getLogger("neuronllm")
TOKENS = 2048  # that prompts of a batch have for themselves


class Edit(NamedTuple):
    """Factors on neurons, at all positions or at each prompt's answer position only."""

    ids: Tensor
    factors: Tensor
    positions: str = "answer"


def check_batch_size(batch_size: int | str) -> int | str:
    if batch_size != "auto" and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise InputError(f'batch_size={batch_size!r}: give a positive whole number or "auto"')
    return batch_size


class Questionnaire:
    """The same prompts, to be asked again and again under different edits.

    >>> ask = Questionnaire(model, prompts)   # doctest: +SKIP
    >>> ask().exp()                           # doctest: +SKIP
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Prompt], *, batch_size: int | str = "auto") -> None:
        check_prompts(model, prompts)
        self.model, self.prompts = model, prompts
        self.root = root_length(prompts)
        groups = siblings(prompts, self.root)
        groups.sort(key=lambda group: max(len(prompts[n].input_ids) for n in group))
        order = [n for group in groups for n in group]
        own = max(len(p.input_ids) for p in prompts) - self.root
        self.size = max(1, TOKENS // own) if check_batch_size(batch_size) == "auto" else int(batch_size)
        limit = rope_limit(model) or max(len(p.input_ids) for p in prompts)
        # Prompts on both sides of the limit do not share a pass.
        self.sides = [[n for n in order if (len(prompts[n].input_ids) > limit) == beyond] for beyond in (False, True)]
        self.worth_sharing = bool(self.root or len(groups) < len(prompts)) and not self.sides[1]
        self._shares: bool | None = None  # whether the model may be asked through the tree of prefixes; None: untried

    @torch.no_grad()
    def __call__(
        self,
        change: Edit | None = None,
        *,
        anatomy: Anatomy | None = None,
        progress: bool = False,
        label: str = "asking",
    ) -> Tensor:
        """Log-probabilities among each prompt's options, (prompts, most options), -inf where a prompt has fewer."""
        anatomy = anatomy or (Anatomy.of(self.model) if change is not None else None)
        edited = Edited(self.model, change, anatomy)
        out = torch.full((len(self.prompts), max(len(p.option_ids) for p in self.prompts)), float("-inf"))
        with (
            borrowed(self.model, attention=None),
            tqdm(total=len(self.prompts), desc=label, disable=not progress, unit="prompt", leave=False) as bar,
        ):
            root = self._shared_root(edited)
            for side in self.sides:
                waiting = list(side)
                while waiting:
                    places = waiting[: self.size]
                    found = unless_memory_ends(partial(self._asked, root, edited), places)
                    if found is None:
                        self._cut(len(places))
                    else:
                        out[torch.tensor(places), : found.shape[1]] = found
                        bar.update(len(places))
                        waiting = waiting[len(places) :]
        return out

    def _asked(self, root: Level | None, edited: Edited, places: list[int]) -> Tensor:
        batch = [self.prompts[n] for n in places]
        logits = _through_tree(batch, root, edited) if self._shares else _plain(batch, edited)
        scores = Choices.of(batch).scores(logits[:, None])[:, 0]
        return scores.log_softmax(-1).masked_fill(scores <= NEVER, float("-inf")).float().cpu()

    def _cut(self, prompts: int) -> None:
        if prompts == 1:
            raise InputError("out of memory with one prompt: shorten it, or use a device with more memory")
        self.size = prompts // 2
        _log.warning("out of memory with %d prompts: now %d at a time", prompts, self.size)

    def _shared_root(self, edited: Edited) -> Level | None:
        """What all prompts start with, under the edit; on first use, try whether the tree gives the plain answers."""
        start = self.prompts[0].input_ids[: self.root]
        if self._shares is None:
            batch = [self.prompts[n] for n in (self.sides[1] or self.sides[0])[-min(4, self.size) :]]
            self._shares = self._agrees(batch, start, edited)
        if not (self._shares and start):
            return None
        with edited(None):
            return prefill_root(self.model, start)

    def _agrees(self, batch: Sequence[Prompt], start: list[int], edited: Edited) -> bool:
        if not self.worth_sharing:
            return False
        plain = _plain(batch, edited)
        try:
            with quietly():
                with edited(None):
                    root = prefill_root(self.model, start) if start else None
                shared = _through_tree(batch, root, edited)
        except DRIVING_ERRORS:
            return False
        eps = 1000 * max(torch.finfo(kind).eps for kind in (plain.dtype, torch.float32))
        return bool(((shared - plain).abs() <= min(eps, 0.1) * plain.abs().max()).all())


def option_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    change: Edit | None = None,
    *,
    batch_size: int | str = "auto",
    progress: bool = False,
) -> Tensor:
    """Log-probabilities among each prompt's options, (prompts, most options), -inf where a prompt has fewer."""
    return Questionnaire(model, prompts, batch_size=batch_size)(change, progress=progress)


def padded(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor | None, Tensor]:
    """Token ids padded on the right, their mask (None without padding), and every prompt's answer position."""
    lengths = torch.tensor([len(p.input_ids) for p in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt.input_ids)] = torch.tensor(prompt.input_ids)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    # Prompts of one length need no mask: the model may then take its plain causal path.
    return ids, None if bool(mask.all()) else mask.long(), lengths - 1


class Edited:
    """The edit of the moment, around passes over the tokens that answer (None: over tokens before any answer)."""

    def __init__(self, model: PreTrainedModel, change: Edit | None, anatomy: Anatomy | None) -> None:
        self.model, self.change, self.anatomy = model, change, anatomy

    def __call__(self, answer: Tensor | None) -> AbstractContextManager[Any]:
        if self.change is None or (self.change.positions == "answer" and answer is None):
            return nullcontext()
        where: Any = answer if self.change.positions == "answer" else self.change.positions
        return edit(self.model, self.change.ids, self.change.factors, positions=where, anatomy=self.anatomy)


def _plain(prompts: Sequence[Prompt], edited: Edited) -> Tensor:
    """Logits (prompts, vocabulary) of whole prompts."""
    ids, mask, answer = padded(prompts)
    with edited(answer):
        return answer_logits(edited.model, ids, mask, answer)


def _through_tree(prompts: Sequence[Prompt], root: Level | None, edited: Edited) -> Tensor:
    """The same, computing what prompts share once."""
    with edited(None):
        above, begins = shared_levels(edited.model, prompts, root)
    level, pieces = tails(prompts, begins, [len(p.input_ids) for p in prompts])
    answer = level.lengths - 1
    with piece_attention(edited.model, level, above, None), edited(answer):
        inputs = piece_inputs(edited.model, level, pieces)
        return answer_logits(edited.model, inputs.pop("input_ids"), None, answer, **inputs)
