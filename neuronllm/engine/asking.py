"""Ask the model: how it answers many prompts, in batches, with or without an edit.

Prompts of like length share a batch, padded on the right, where padding is invisible to a causal model; nothing of the
tokenizer is used, so its padding side does not matter. What prompts start with in common (instructions, demonstration,
the stem of a question's variants) is computed once for all of them, under the same edit, where the model lets itself be
driven so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.errors import InputError
from ..model.anatomy import Anatomy
from ..model.edit import edit
from ..results.answers import Answers
from .answer import answer_pass, answering
from .answer_trees import AnswerTrees
from .attention import piece_attention
from .batching import Plan, backing_off
from .borrowed import DRIVING_ERRORS, answer_logits, borrowed, check_prompts, quietly, rope_limit, tolerance
from .causality import not_causal
from .full import padded, plain_trees
from .handed import ways
from .head import Choices, Texts, choices_of
from .kept_prefixes import KeptPrefixes
from .mixers import Mixers
from .objectives import NEVER
from .positions import counting_modules, heeding, moving_token
from .prefill import piece_inputs, prefill, prefill_root, shared_levels
from .tree import Level, Prefix, root_length, siblings, with_answers
from .verdicts import Verdicts, reach, verdicts
from .vocabulary import bend_of, streamed

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


class Shared(NamedTuple):
    """Whether prompts may be asked through the tree of prefixes, and how the model is driven meanwhile."""

    agrees: bool
    counting: tuple[str, ...] = ()  # modules that count positions themselves
    mixers: Mixers | None = None


class Asker:
    """The same prompts, asked again and again under different edits: the one way to hear what a model answers.

    >>> ask = Asker(model, prompts)   # doctest: +SKIP
    >>> ask().accuracy                # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        batch_size: int | str = "auto",
        kept: KeptPrefixes | None = None,
    ) -> None:
        """`kept` are prefixes that an engine holds, for edits at the answer while it is open."""
        check_prompts(model, prompts)
        self.model, self.prompts, self._kept = model, prompts, kept
        self.root = root_length(prompts)
        groups = siblings(prompts, self.root)
        groups.sort(key=lambda group: max(prompts[n].n_tokens for n in group))
        order = [n for group in groups for n in group]
        self.longest = max(prompts, key=lambda p: p.n_tokens)
        own = self.longest.n_tokens - self.root
        size = max(1, TOKENS // own) if check_batch_size(batch_size) == "auto" else int(batch_size)
        self.plan = Plan(prompts=size, answer_tokens=size, window=size)
        limit = rope_limit(model) or self.longest.n_tokens
        # Prompts on both sides of the limit do not share a pass, nor do letters and longer answers.
        kinds = {(prompt.n_tokens > limit, prompt.one_token) for prompt in prompts}
        beyond = [prompt.n_tokens > limit for prompt in prompts]
        self.sides = [[n for n in order if (beyond[n], prompts[n].one_token) == kind] for kind in sorted(kinds)]
        trees = not all(prompt.one_token for prompt in prompts)
        self.worth_sharing = bool(self.root or len(groups) < len(prompts) or trees) and not any(beyond)

    @cached_property
    def anatomy(self) -> Anatomy:
        return Anatomy.of(self.model)

    def __call__(self, change: Edit | None = None, label: str = "asking", progress: bool = False) -> Answers:
        """How the model answers under an edit, or as it is."""
        return Answers(self.prompts, self.logprobs(change, label, progress))

    def logprobs(self, change: Edit | None = None, label: str = "asking", progress: bool = False) -> Tensor:
        """Log-probabilities among each prompt's options, (prompts, most options), -inf where a prompt has fewer."""
        scores = self.scores(change, label, progress)
        # Not .float(), which means float64 while a judge computes in that.
        return torch.empty(scores.shape).copy_(scores.log_softmax(-1))

    @torch.no_grad()
    def scores(self, change: Edit | None = None, label: str = "asking", progress: bool = False) -> Tensor:
        """The scores of each prompt's options, (prompts, most options), -inf where a prompt has fewer."""
        edited = Edited(self.model, change, self.anatomy if change is not None else None)
        shape = (len(self.prompts), max(len(p.option_ids) for p in self.prompts))
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        out = torch.full(shape, float("-inf"), dtype=dtype)
        with (
            borrowed(self.model, attention=None),
            tqdm(total=len(self.prompts), desc=label, disable=not progress, unit="prompt", leave=False) as bar,
        ):
            for side in self.sides:
                shared = self._shared(edited, side)
                with heeding(self.model, shared.counting):
                    for places, found in self._side(edited, shared, side):
                        out[torch.tensor(places), : found.shape[1]] = found.to(out)
                        bar.update(len(places))
        return out

    def _side(self, edited: Edited, shared: Shared, side: list[int]) -> Iterator[tuple[list[int], Tensor]]:
        """The scores of one side's prompts, batch by batch, with their places."""
        kept = shared.agrees and self._served(edited, [self.prompts[n] for n in side])
        root = self._root(edited, shared.mixers) if shared.agrees and not kept else None
        size = self.plan.prompts
        batches = [side[start : start + size] for start in range(0, len(side), size)]
        yield from backing_off(batches, partial(self._batch, root, edited, shared), self.plan, 0)

    def _batch(self, root: Level | None, edited: Edited, shared: Shared, places: list[int]) -> Tensor:
        batch = [self.prompts[n] for n in places]
        # Whole prompts are run one by one, and what goes into the head is kept of one pass.
        with self._reading(batch) if shared.agrees else nullcontext(choices_of(batch)) as choices:
            if self._kept is not None and shared.agrees and self._served(edited, batch):
                logits = _on_prefix(self._kept.prefix(batch), edited)
            else:
                logits = _through_tree(batch, root, edited, shared.mixers) if shared.agrees else _plain(batch, edited)
            scores = choices.scores(logits[:, None])[:, 0]
        return scores.masked_fill(scores <= NEVER, float("-inf"))

    @contextmanager
    def _reading(self, batch: list[Prompt]) -> Iterator[Choices]:
        choices = choices_of(batch)
        bend = bend_of(self.model, batch[0], self._verdicts) if isinstance(choices, Texts) else None
        if bend is None or not isinstance(choices, Texts):
            yield choices
        else:
            with streamed(self.model, choices, bend) as few:
                yield few

    def _served(self, edited: Edited, prompts: Sequence[Prompt]) -> bool:
        """Whether kept prefixes are those of the edited model too."""
        return self._kept is not None and not edited.everywhere and all(prompt in self._kept for prompt in prompts)

    def _root(self, edited: Edited, mixers: Mixers | None) -> Level | None:
        """What all prompts start with, under the edit, where they may go on from it."""
        if not self.root or (mixers is not None and not mixers.shares):
            return None
        with edited(None):
            return prefill_root(self.model, self.prompts[0].input_ids[: self.root], mixers)

    def _shared(self, edited: Edited, side: list[int]) -> Shared:
        """Whether the prompts may be asked through the tree of prefixes: it must give the plain answers."""
        if not self.worth_sharing or not_causal(self.model, self._verdicts):
            return Shared(False)
        where = None if edited.change is None else edited.change.positions
        letters = self.prompts[side[0]].one_token
        how = (bool(self.root), letters, self._mixes(letters), reach(self.model, self.longest))
        question = ("tree of prompts", where, *how)
        if question not in (known := self._verdicts):
            known[question] = self._checked(edited, side)
        found: Shared = known[question]
        if moving_token(self.model, found.counting, [self.prompts[n] for n in side]) is not None:
            return Shared(False)
        return found

    @cached_property
    def _verdicts(self) -> Verdicts:
        """Those remembered with the model, as it was at the first call; of a model with hooks, this asker's own."""
        return verdicts(self.model)

    def _checked(self, edited: Edited, side: list[int]) -> Shared:
        batch = [self.prompts[n] for n in side[-min(4, self.plan.prompts) :]]
        plain, counting = _plain(batch, edited), counting_modules(self.model)
        real = AnswerTrees(batch).real.flatten().to(plain.device)
        with quietly(), heeding(self.model, counting):
            for mixers in ways(self.model) if self._mixes(batch[0].one_token) else (None,):
                with suppress(*DRIVING_ERRORS):
                    found = _through_tree(batch, self._root(edited, mixers), edited, mixers)
                    if bool(((found - plain).abs() <= tolerance(plain))[real].all()):
                        return Shared(True, counting, mixers)
        return Shared(False)

    def _mixes(self, letters: bool) -> bool:
        """Whether mixers may be less work than whole prompts: with them only prompts of one length share a pass."""
        return not letters or self._kept is not None or 2 * self.root >= self.longest.n_tokens


class Edited:
    """An edit around passes: `edited(answer)` where those tokens answer, `edited(None)` before any answer token."""

    def __init__(self, model: PreTrainedModel, change: Edit | None, anatomy: Anatomy | None) -> None:
        self.model, self.change, self.anatomy = model, change, anatomy

    @property
    def everywhere(self) -> bool:
        return self.change is not None and self.change.positions != "answer"

    def __call__(self, answer: Tensor | None) -> AbstractContextManager[Any]:
        if self.change is None or (self.change.positions == "answer" and answer is None):
            return nullcontext()
        where: Any = answer if self.change.positions == "answer" else self.change.positions
        return edit(self.model, self.change.ids, self.change.factors, positions=where, anatomy=self.anatomy)


def _plain(prompts: Sequence[Prompt], edited: Edited) -> Tensor:
    """Logits (prompts x nodes, vocabulary) of whole prompts, each with one answer after the other behind it."""
    if not prompts[0].one_token:
        return plain_trees(edited.model, prompts, edited)
    ids, mask, answer = padded([p.input_ids for p in prompts])
    with edited(answer):
        return answer_logits(edited.model, ids, mask, answer)


def _through_tree(prompts: Sequence[Prompt], root: Level | None, edited: Edited, mixers: Mixers | None) -> Tensor:
    """The same, computing what prompts and answers share once."""
    if mixers is not None:
        with edited(None):
            prefix = prefill(edited.model, prompts, root, mixers)
        return _on_prefix(prefix, edited)
    with edited(None):
        above, begins = shared_levels(edited.model, prompts, root)
    level, pieces = with_answers(prompts, begins)
    nodes = level.nodes
    answer = nodes[:, 0]
    if nodes.shape[1] > 1:
        answer = torch.zeros(len(prompts), level.width, dtype=torch.bool).scatter(1, nodes, True)
    with piece_attention(edited.model, level, above, None), edited(answer):
        inputs = piece_inputs(edited.model, level, pieces)
        return answer_logits(edited.model, inputs.pop("input_ids"), None, nodes, **inputs).flatten(0, 1)


def _on_prefix(prefix: Prefix, edited: Edited) -> Tensor:
    """The same, of answer trees behind prefixes that are there."""
    tokens = torch.ones(prefix.trees.tokens.numel(), 1, dtype=torch.bool)
    with answering(edited.model, prefix), edited(tokens):
        return answer_pass(edited.model, prefix)[:, 0]
