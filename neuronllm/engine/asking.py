"""Ask the model: how it answers many prompts, in batches, with or without an edit.

Prompts of like length share a batch, padded on the right, where padding is invisible to a causal model; nothing of the
tokenizer is used, so its padding side does not matter. What prompts start with in common (instructions, demonstration,
the stem of a question's variants) is computed once for all of them, under the same edit, where the model lets itself be
driven so.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.errors import InputError
from ..model.anatomy import Anatomy
from ..model.edit import edit
from ..results.answers import Answers
from .attention import piece_attention
from .batching import Plan, backing_off
from .borrowed import DRIVING_ERRORS, answer_logits, borrowed, check_prompts, quietly, rope_limit
from .full import padded
from .head import Choices
from .objectives import NEVER
from .prefill import piece_inputs, prefill_root, shared_levels
from .selfcheck import tolerance
from .tree import Level, root_length, siblings, tails
from .verdicts import Verdicts, reach, verdicts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt

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


class Asker:
    """The same prompts, asked again and again under different edits: the one way to hear what a model answers.

    >>> ask = Asker(model, prompts)   # doctest: +SKIP
    >>> ask().accuracy                # doctest: +SKIP
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Prompt], batch_size: int | str = "auto") -> None:
        check_prompts(model, prompts)
        self.model, self.prompts = model, prompts
        self.root = root_length(prompts)
        groups = siblings(prompts, self.root)
        groups.sort(key=lambda group: max(len(prompts[n].input_ids) for n in group))
        order = [n for group in groups for n in group]
        self.longest = max(prompts, key=lambda p: len(p.input_ids))
        own = len(self.longest.input_ids) - self.root
        size = max(1, TOKENS // own) if check_batch_size(batch_size) == "auto" else int(batch_size)
        self.plan = Plan(prompts=size, answer_tokens=size, window=size)
        limit = rope_limit(model) or len(self.longest.input_ids)
        # Prompts on both sides of the limit do not share a pass.
        self.sides = [[n for n in order if (len(prompts[n].input_ids) > limit) == beyond] for beyond in (False, True)]
        self.worth_sharing = bool(self.root or len(groups) < len(prompts)) and not self.sides[1]

    @cached_property
    def anatomy(self) -> Anatomy:
        return Anatomy.of(self.model)

    def __call__(self, change: Edit | None = None, label: str = "asking", progress: bool = False) -> Answers:
        """How the model answers under an edit, or as it is."""
        return Answers(self.prompts, self.logprobs(change, label, progress))

    @torch.no_grad()
    def logprobs(self, change: Edit | None = None, label: str = "asking", progress: bool = False) -> Tensor:
        """Log-probabilities among each prompt's options, (prompts, most options), -inf where a prompt has fewer."""
        edited = Edited(self.model, change, self.anatomy if change is not None else None)
        out = torch.full((len(self.prompts), max(len(p.option_ids) for p in self.prompts)), float("-inf"))
        with (
            borrowed(self.model, attention=None),
            tqdm(total=len(self.prompts), desc=label, disable=not progress, unit="prompt", leave=False) as bar,
        ):
            shares = self._shares(edited)
            root = self._root(edited) if shares and self.root else None
            for side in self.sides:
                size = self.plan.prompts
                batches = [side[start : start + size] for start in range(0, len(side), size)]
                for places, found in backing_off(batches, partial(self._batch, root, edited, shares), self.plan, 0):
                    out[torch.tensor(places), : found.shape[1]] = found.to(out)
                    bar.update(len(places))
        return out

    def _batch(self, root: Level | None, edited: Edited, shares: bool, places: list[int]) -> Tensor:
        batch = [self.prompts[n] for n in places]
        logits = _through_tree(batch, root, edited) if shares else _plain(batch, edited)
        scores = Choices.of(batch).scores(logits[:, None])[:, 0]
        return scores.log_softmax(-1).masked_fill(scores <= NEVER, float("-inf"))

    def _root(self, edited: Edited) -> Level:
        """What all prompts start with, under the edit."""
        with edited(None):
            return prefill_root(self.model, self.prompts[0].input_ids[: self.root])

    def _shares(self, edited: Edited) -> bool:
        """Whether the prompts may be asked through the tree of prefixes: it must give the plain answers."""
        if not self.worth_sharing:
            return False
        where = None if edited.change is None else edited.change.positions
        question = ("tree of prompts", where, bool(self.root), reach(self.model, self.longest))
        if question not in (known := self._verdicts):
            known[question] = self._agrees(edited)
        return bool(known[question])

    @cached_property
    def _verdicts(self) -> Verdicts:
        """Those remembered with the model, as it was at the first call; of a model with hooks, this asker's own."""
        return verdicts(self.model)

    def _agrees(self, edited: Edited) -> bool:
        batch = [self.prompts[n] for n in self.sides[0][-min(4, self.plan.prompts) :]]
        plain = _plain(batch, edited)
        try:
            with quietly():
                shared = _through_tree(batch, self._root(edited) if self.root else None, edited)
        except DRIVING_ERRORS:
            return False
        return bool(((shared - plain).abs() <= tolerance(plain)).all())


class Edited:
    """An edit around passes: `edited(answer)` where those tokens answer, `edited(None)` before any answer token."""

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
