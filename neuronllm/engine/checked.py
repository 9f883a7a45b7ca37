"""An engine that drives the model by answer tokens, once it has checked that this gives the plain answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from operator import is_
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batching import alike
from .borrowed import DRIVING_ERRORS, quietly, rope_limit
from .branch import Batch
from .causality import not_causal
from .everywhere import WholePrompt
from .full import plain_trees
from .handed import ways
from .head import Choices, Letters, Texts, choices_of, only_options
from .kept_prefixes import KeptPrefixes
from .mixers import Mixers
from .objectives import Objective, get_objective
from .planned import PlannedEngine
from .positions import counting_modules, heeding, moving_token
from .prefill import prefill, prefill_root
from .reference import ReferenceEngine
from .selfcheck import Blocks, Differs, Verdict, check_gradient, clean_branch, head_can_be_cut, try_blocks
from .stream import HALVES, float32_stream
from .tree import Level, Prefix, siblings
from .verdicts import reach, verdicts
from .vocabulary import Bend, bend_of, streamed

if TYPE_CHECKING:
    from ..data.prompts import Prompt


class CheckedEngine(PlannedEngine):
    """What `FastEngine` is made of: the self-check, and batches whose prefixes are there."""

    def _begin(self) -> None:
        super()._begin()
        self._roots: dict[bool, tuple[list[int], Level]] = {}  # by whether they are computed in float32
        self._ready: dict[bool, tuple[list[Prompt], Prefix]] = {}  # of the self-check, likewise
        self._kept: KeptPrefixes | None = None  # for passes to come
        self._blocks: Blocks | None = None  # what the self-check found of them
        self._mixers: Mixers | None = None  # likewise
        self._together = False  # likewise
        self._counting: tuple[str, ...] = ()  # likewise, modules that count positions themselves
        self.options_head = True  # whether the head may compute the options' logits alone
        self._bend: list[Bend | None] = []  # what the model makes of logits, once that was tried
        self._widened = False

    # ---- the self-check ----

    def unusable(self, prompts: Sequence[Prompt]) -> str | None:
        """Why this model cannot be driven by answer tokens, or None: a clean branch must equal the clean answer."""
        if min(len(p.input_ids) for p in prompts) < 2:
            return "a prompt of one token has no prefix"
        limit = rope_limit(self.model)
        if limit is not None and max(p.n_tokens for p in prompts) > limit:
            return f"its rotary angles depend on the longest prompt of a batch, and one is longer than {limit} tokens"
        if reason := not_causal(self.model, verdicts(self.model)):
            return reason
        self._make_plan(prompts)
        for places in alike(prompts):
            reason = self._unusable([prompts[n] for n in places])
            if reason is not None:
                return reason
        token = moving_token(self.model, self._counting, prompts)
        if token is not None:
            return f"the model counts positions by tokens, and one of a prompt moves the others (id {token})"
        return None

    def _unusable(self, prompts: Sequence[Prompt]) -> str | None:
        """The same of prompts that are all read at their last token, or all behind it."""
        longest = max(range(len(prompts)), key=lambda n: len(prompts[n].input_ids))
        family = next(group for group in siblings(prompts, self.plan.root) if longest in group)
        chosen = [longest, family[0], family[-1]]
        if len({len(prompts[n].input_ids) for n in chosen}) == 1:
            chosen.append(min(range(len(prompts)), key=lambda n: len(prompts[n].input_ids)))
        some = [prompts[n] for n in dict.fromkeys(chosen)]
        lengths = {len(prompt.input_ids) for prompt in some}
        known = verdicts(self.model)
        # A tree of another depth, prompts beyond another window: these are other questions to the model.
        how = (bool(self.plan.root), len(some) > 1, len(lengths) > 1, some[0].one_token, reach(self.model, some[0]))
        question = ("answer tokens", self.dtype, *how)
        if question not in known:
            with quietly():
                known[question] = self._checked(some)
        found = known[question]
        self._blocks, self._mixers, self._together = found.blocks, found.mixers, found.together
        self._counting = found.counting
        if some[0].one_token:
            self.options_head = found.options_head
        return found.reason

    def _checked(self, prompts: Sequence[Prompt]) -> Verdict:
        """The first way to drive the model that gives the plain answers; else why the last one does not."""
        plain = self._answers(prompts)  # an error here, of a user's hook for one, would meet the reference too
        counting = counting_modules(self.model)
        with heeding(self.model, counting):
            every = ways(self.model, self.dtype == torch.float64)
            for mixers, together in ((mixers, together) for mixers in every for together in (False, True)):
                verdict = self._tried(prompts, plain, mixers, together)
                if verdict.reason is None:
                    break
        return verdict._replace(counting=counting)

    def _tried(self, prompts: Sequence[Prompt], plain: Tensor, mixers: Mixers | None, together: bool) -> Verdict:
        narrow = self.model.dtype in HALVES
        self._together = together
        if mixers != self._mixers:
            self._mixers, self._roots, self._ready = mixers, {}, {}
        try:
            batch = self._to_check(prompts)
            blocks = clean_branch(batch, plain, trials=not narrow)
            if narrow:  # whose rounding would hide what a block adds
                with self._in_float32():
                    blocks = try_blocks(self._to_check(prompts))
            if mixers is not None:
                self._check_gradient(prompts[:1])
            return Verdict(None, prompts[0].one_token and head_can_be_cut(batch, plain), blocks, mixers, together)
        except Differs as found:
            return Verdict(str(found))
        except DRIVING_ERRORS as error:
            text = (str(error).splitlines() or [""])[0]
            return Verdict(f"it cannot be run on answer tokens ({type(error).__name__}: {text[:120]})")

    def _check_gradient(self, prompts: Sequence[Prompt]) -> None:
        explained, ready = get_objective("logp_options"), self._ready
        judged = ReferenceEngine(self.model, self.anatomy).gradients(prompts, explained)
        with self._choices(prompts) as choices:
            check_gradient(self._batch(prompts, partial(choices.value, explained)), judged)
        self._ready = ready

    @torch.no_grad()
    def _answers(self, prompts: Sequence[Prompt]) -> Tensor:
        """Logits (prompts x nodes, ids) of plain passes, as the reference has them."""
        return plain_trees(self.model, prompts)

    def _to_check(self, prompts: Sequence[Prompt]) -> Batch:
        """A batch whose prefix also serves the first scores, if these are of the same prompts."""
        before, batch = self._ready, self._batch(prompts, lambda logits: logits[..., 0])
        self._ready = before | {self._widened: (list(prompts), batch.prefix)}
        return batch

    def _prepare(self, prompts: Sequence[Prompt]) -> None:
        self._blocks_of(prompts)

    def _driving(self) -> AbstractContextManager[None]:
        return heeding(self.model, self._counting)

    def _blocks_of(self, prompts: Sequence[Prompt]) -> Blocks:
        """What the self-check found of the blocks, or would have."""
        if self._blocks is None:
            shortest = min(prompts, key=lambda p: len(p.input_ids))
            with self._driving(), self._in_float32():
                self._blocks = try_blocks(self._batch([shortest], lambda logits: logits[..., 0]))
        return self._blocks

    # ---- batches ----

    def _batch(self, prompts: Sequence[Prompt], value: Callable[[Tensor], Tensor]) -> Batch:
        prefix, tokens = self._prefill(prompts), self.plan.answer_tokens
        return Batch(self.model, self.anatomy, prompts, prefix, self._plain, value, tokens, together=self._together)

    def _whole(self, prompt: Prompt, value: Callable[[Tensor], Tensor]) -> Batch:
        tokens = self.plan.answer_tokens
        how = (self._plain, value, tokens, self._mixers, self._together)
        return WholePrompt(self.model, self.anatomy, prompt, *how)

    @property
    def _plain(self) -> frozenset[str]:
        """The blocks behind which branches may join."""
        return (self._blocks or Blocks()).plain

    def _prefill(self, prompts: Sequence[Prompt]) -> Prefix:
        """Their prefixes; what all prompts of the run start with is computed once."""
        ready, self._ready = self._ready.get(self._widened), {}  # not held any longer than to the next prompts
        same = ready is not None and len(ready[0]) == len(prompts) and all(map(is_, ready[0], prompts))
        prefix = ready[1] if ready is not None and same and not self._trial else self._prefilled(prompts)
        self._prefix_bytes = prefix.n_bytes() // len(prompts)
        return prefix

    def _prefilled(self, prompts: Sequence[Prompt]) -> Prefix:
        if self._kept is not None and not self._widened and all(prompt in self._kept for prompt in prompts):
            return self._kept.prefix(prompts)
        start = prompts[0].input_ids[: self.plan.root]
        shared = start and all(len(p.input_ids) > len(start) and p.input_ids[: len(start)] == start for p in prompts)
        root = self._root(start) if shared and self._shares else None
        return prefill(self.model, prompts, root, self._mixers)

    @property
    def _shares(self) -> bool:
        """Whether prompts may go on from the root of all."""
        return self._mixers is None or self._mixers.shares

    def _root(self, start: list[int]) -> Level:
        if self._roots.get(self._widened, (None,))[0] != start:
            self._roots[self._widened] = (list(start), prefill_root(self.model, start, self._mixers))
        return self._roots[self._widened][1]

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        """Float32 whatever the weights; keys and values from elsewhere are not used here, nor the other way round."""
        self._widened = self.model.dtype in HALVES
        try:
            with float32_stream(self.model):
                yield
        finally:
            self._widened = False

    def _bend_of(self, prompt: Prompt) -> Bend | None:
        if not self._bend:
            self._bend.append(bend_of(self.model, prompt, verdicts(self.model)))
        return self._bend[0]

    @contextmanager
    def _hearing(self, prompts: Sequence[Prompt], objective: Objective) -> Iterator[Callable[[Tensor], Tensor]]:
        """The objective as a function of a batch's logits; what the clean branches picked is noted at the end."""
        picked: list[Tensor] = []
        with self._choices(prompts, objective) as choices:
            yield lambda logits: choices.value(objective, logits, picked)
        for options in picked:
            self.heard.add(options, choices.right)

    @contextmanager
    def _choices(self, prompts: Sequence[Prompt], objective: Objective | None = None) -> Iterator[Choices]:
        """The choices of a batch, with a head that computes their logits alone where that is enough."""
        choices = choices_of(prompts, objective.forms if objective else None)
        if isinstance(choices, Texts) and (bend := self._bend_of(prompts[0])):
            lengths = any(p.lengths or p.offsets for p in prompts)
            first = objective is None or objective.vocabulary or lengths
            with streamed(self.model, choices, bend, first) as few:
                yield few
        elif not isinstance(choices, Letters) or (objective and objective.vocabulary) or not self.options_head:
            yield choices
        else:
            ids, choices = choices.columns()
            with only_options(self.model, ids):
                yield choices
