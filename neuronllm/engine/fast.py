"""The fast engine: what the reference computes, on answer tokens against a cached prefix, batches at a time.

Edits and gradients of multiple-choice attribution happen at the answer position, and attention is causal, so nothing
before it ever changes. `unusable` checks on first use that a model lets itself be driven so; where it does not,
the reference does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.question_trees import QuestionTree, question_trees
from ..model.anatomy import Anatomy
from .adaptive import attainable
from .base import FactorGradients
from .batching import Plan, alike
from .borrowed import DRIVING_ERRORS, quietly, rope_limit
from .branch import Batch
from .direct import direct
from .effects import effects, rounding
from .everywhere import WholePrompt
from .first_order import at_factors, gradient, held
from .full import plain_trees, recomputing
from .head import Choices, Letters, Texts, choices_of, only_options
from .integrals import integral, integral_to, tokens_of
from .kept_prefixes import KeptPrefixes
from .objectives import AnyObjective, Objective, get_objective
from .planned import PlannedEngine
from .prefill import prefill, prefill_root
from .selfcheck import Blocks, Differs, Verdict, clean_branch, head_can_be_cut, try_blocks
from .stream import HALVES, float32_stream
from .tree import Level, Prefix, siblings
from .verdicts import reach, verdicts
from .vocabulary import Bend, bend_of, streamed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt

ALONE = 2**31  # answer tokens of a prompt that shares no pass with another one


class FastEngine(PlannedEngine):
    """The reference's answers, without running what comes before the answer again for every edit."""

    name = "fast"

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy | None = None,
        *,
        dtype: torch.dtype | None = None,
        batch_size: int | str = "auto",
        plan: Plan | None = None,
    ) -> None:
        super().__init__(model, anatomy, dtype=dtype, batch_size=batch_size, plan=plan)
        self._roots: dict[bool, tuple[list[int], Level]] = {}  # by whether they are computed in float32
        self._ready: dict[bool, tuple[list[Prompt], Prefix]] = {}  # of the self-check, likewise
        self._kept: KeptPrefixes | None = None  # for passes to come
        self._blocks: Blocks | None = None  # what the self-check found of them
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
        self._make_plan(prompts)
        for places in alike(prompts):
            reason = self._unusable([prompts[n] for n in places])
            if reason is not None:
                return reason
        return None

    def _unusable(self, prompts: Sequence[Prompt]) -> str | None:
        """The same of prompts that are all read at their last token, or all behind it."""
        longest = max(range(len(prompts)), key=lambda n: len(prompts[n].input_ids))
        family = next(group for group in siblings(prompts, self.plan.root) if longest in group)
        some = [prompts[n] for n in dict.fromkeys([longest, family[0], family[-1]])]
        known = verdicts(self.model)
        # A tree of another depth, prompts beyond another window: these are other questions to the model.
        how = (bool(self.plan.root), len(some) > 1, some[0].one_token, reach(self.model, some[0]))
        question = ("answer tokens", self.dtype, *how)
        if question not in known:
            with quietly():
                known[question] = self._checked(some)
        found = known[question]
        self._blocks = found.blocks
        if some[0].one_token:
            self.options_head = found.options_head
        return found.reason

    def _checked(self, prompts: Sequence[Prompt]) -> Verdict:
        plain = self._answers(prompts)  # an error here, of a user's hook for one, would meet the reference too
        narrow = self.model.dtype in HALVES
        try:
            batch = self._to_check(prompts)
            blocks = clean_branch(batch, plain, trials=not narrow)
            if narrow:  # whose rounding would hide what a block adds
                with self._in_float32():
                    blocks = try_blocks(self._to_check(prompts))
            return Verdict(None, prompts[0].one_token and head_can_be_cut(batch, plain), blocks)
        except Differs as found:
            return Verdict(str(found))
        except DRIVING_ERRORS as error:
            text = (str(error).splitlines() or [""])[0]
            return Verdict(f"it cannot be run on answer tokens ({type(error).__name__}: {text[:120]})")

    @torch.no_grad()
    def _answers(self, prompts: Sequence[Prompt]) -> Tensor:
        """Logits (prompts x nodes, ids) of plain passes, as the reference has them."""
        return plain_trees(self.model, prompts)

    def _to_check(self, prompts: Sequence[Prompt]) -> Batch:
        """A batch whose prefix also serves the first scores, if these are of the same prompts."""
        before, batch = self._ready, self._batch(prompts, lambda logits: logits[..., 0])
        self._ready = before | {self._widened: (list(prompts), batch.prefix)}
        return batch

    def post_normed(self, prompt: Prompt) -> bool:
        return self._blocks_of([prompt]).post_normed

    def _prepare(self, prompts: Sequence[Prompt]) -> None:
        self._blocks_of(prompts)

    def _blocks_of(self, prompts: Sequence[Prompt]) -> Blocks:
        """What the self-check found of the blocks, or would have."""
        if self._blocks is None:
            shortest = min(prompts, key=lambda p: len(p.input_ids))
            with self._in_float32():
                self._blocks = try_blocks(self._batch([shortest], lambda logits: logits[..., 0]))
        return self._blocks

    # ---- the verbs, in batches ----

    @torch.no_grad()
    def activations(self, prompts: Sequence[Prompt], positions: str = "answer", statistic: str = "value") -> Tensor:
        return self._batched(prompts, lambda batch: self._held(batch, positions == "all", statistic))

    def gradients(
        self,
        prompts: Sequence[Prompt],
        objective: AnyObjective,
        *,
        positions: str = "answer",
        weight: str = "activation",
        rules: str | None = None,
    ) -> Tensor:
        explained = get_objective(objective)

        def score(batch: Sequence[Prompt]) -> Tensor:
            with self._hearing(batch, explained) as value:
                return self._gradient(batch, value, 1, positions == "all", weight, rules)[:, 0]

        return self._batched(prompts, score)

    def question_gradients(
        self,
        prompts: Sequence[Prompt],
        sizes: Sequence[int],
        objective: AnyObjective,
        *,
        weight: str = "activation",
        rules: str | None = None,
    ) -> Tensor:
        explained = get_objective(objective)
        trees = question_trees(prompts, sizes)
        if trees is None:
            found = self.gradients(prompts, objective, positions="all", weight=weight, rules=rules)
            return torch.stack([rows.mean(0) for rows in found.split(list(sizes))])

        def score(batch: Sequence[QuestionTree]) -> Tensor:
            together = [prompt for tree in batch for prompt in tree.prompts]
            with self._hearing(together, explained) as value:
                total = self._gradient(batch, value, 1, True, weight, rules)[:, 0]
            return total / torch.tensor([len(tree.prompts) for tree in batch])[:, None]

        return self._batched_questions(trees, score)

    def factor_gradients(
        self,
        prompts: Sequence[Prompt],
        objective: AnyObjective,
        ids: Tensor,
        factors: Tensor,
        *,
        positions: str = "answer",
    ) -> FactorGradients:
        explained, ids = get_objective(objective), self.anatomy.checked(ids)

        def score(batch: Sequence[Prompt]) -> Tensor:
            with self._choices(batch, explained) as choices, self._recomputing(positions == "all"):
                value = partial(choices.value, explained)
                prefix = None if positions == "all" else self._prefill(batch)
                return at_factors(self.model, self.anatomy, batch, prefix, value, ids, factors)

        # A batch is served from kept prefixes, or has to compute its own.
        kept = [positions == "answer" and self._kept is not None and prompt in self._kept for prompt in prompts]
        parts = [[n for n, is_kept in enumerate(kept) if is_kept == which] for which in (True, False)]
        found = torch.cat([self._batched([prompts[n] for n in part], score) for part in parts if part])
        found = found[torch.tensor([n for part in parts for n in part]).argsort()]
        return FactorGradients(found[:, 0], found[:, 1:])

    @torch.no_grad()
    def keep_prefixes(self, prompts: Sequence[Prompt], budget: int) -> KeptPrefixes:
        self._make_plan(prompts)
        start = prompts[0].input_ids[: self.plan.root]
        root = self._root(start) if start else None
        self._kept = KeptPrefixes(self.model, prompts, root, self.plan.prompts, budget)
        return self._kept

    def option_gradients(self, prompts: Sequence[Prompt]) -> Tensor:
        # The K gradients come from one backward pass: the answer token runs in K copies, each answering for one option.
        most = max(len(p.option_ids) for p in prompts)

        def score(batch: Sequence[Prompt]) -> Tensor:
            with self._choices(batch) as choices:
                found = self._gradient(batch, choices.each, choices.count, False, "activation", None)
            return torch.nn.functional.pad(found, (0, 0, 0, most - found.shape[1]))

        return self._batched(prompts, score)

    def integrate(self, prompts: Sequence[Prompt], objective: AnyObjective, alphas: Tensor, weights: Tensor) -> Tensor:
        explained = get_objective(objective)

        def score(batch: Sequence[Prompt]) -> Tensor:
            with self._hearing(batch, explained) as value:
                return integral(self._batch(batch, value), alphas, weights)

        return self._batched(prompts, score, tokens_of(len(alphas), len(self.anatomy.blocks)))

    def integrate_to(self, prompts: Sequence[Prompt], objective: AnyObjective, tolerance: float) -> Tensor:
        def score(batch: Sequence[Prompt]) -> Tensor:
            with self._hearing(batch, get_objective(objective)) as value:
                scores, refined = integral_to(self._batch(batch, value), attainable(tolerance, self.model.dtype))
            self.plan.note(refined)
            return scores

        return self._batched(prompts, score, tokens_of(4, len(self.anatomy.blocks)))

    @torch.no_grad()
    def effects(
        self,
        prompts: Sequence[Prompt],
        objective: AnyObjective,
        *,
        ids: Tensor | None = None,
        factor: float = 0.0,
        positions: str = "answer",
    ) -> Tensor:
        ids, explained = None if ids is None else self.anatomy.checked(ids), get_objective(objective)
        everywhere = positions == "all"

        def score(prompts: Sequence[Prompt]) -> Tensor:
            with self._in_float32(), self._hearing(prompts, explained) as value:
                batch = self._whole(prompts[0], value) if everywhere else self._batch(prompts, value)
                self.plan.noise = max(self.plan.noise, rounding(batch))
                found = effects(batch, ids, factor, self._trial)
                self._passes = batch.passes
                return found

        per_prompt = self.anatomy.n_neurons if ids is None else len(ids)
        return self._batched(prompts, score, ALONE if everywhere else per_prompt)

    @torch.no_grad()
    def direct(self, prompts: Sequence[Prompt], objective: AnyObjective) -> Tensor:
        explained = get_objective(objective)

        def score(prompts: Sequence[Prompt]) -> Tensor:
            with self._choices(prompts, explained) as choices:
                batch = self._batch(prompts, lambda logits: choices.value(explained, logits))
                return direct(batch)

        first = [prompt.by_first_token() for prompt in prompts]
        return self._batched(first, score, max(site.width for site in self.anatomy.sites))

    # ---- one batch ----

    def _held(self, prompts: Sequence[Prompt], everywhere: bool, statistic: str) -> Tensor:
        # Of a single prompt, without anything that others have computed, one pass is less than a prefix and a token.
        # A trial does what batches will do, whose memory it is to foretell.
        alone = len(prompts) == 1 and not self.plan.root and not self._trial
        whole = everywhere or alone or not prompts[0].one_token
        norms = self.norms if statistic == "cett" else None
        with self._choices(prompts):
            prefix = None if whole else self._prefill(prompts)
            return held(self.model, self.anatomy, prompts, prefix, everywhere, statistic, norms)

    def _gradient(
        self,
        prompts: Sequence[Any],
        value: Callable[[Tensor], Tensor],
        copies: int,
        everywhere: bool,
        weight: str,
        rules: str | None,
    ) -> Tensor:
        """(prompts, copies, n_neurons): weight times the gradient of every copy's value, or summed over all tokens."""
        if not everywhere:
            prefix = self._prefill(prompts)
            return gradient(self.model, self.anatomy, prompts, prefix, value, copies, weight, rules)
        with self._recomputing():
            return gradient(self.model, self.anatomy, prompts, None, value, copies, weight, rules)

    def _recomputing(self, wanted: bool = True) -> AbstractContextManager[None]:
        """Blocks run again on the way back, in a pass over all positions and where memory asks for it."""
        self.plan.can_recompute = self.plan.can_recompute or wanted
        return recomputing(self.model, wanted and self.plan.recompute, self.dtype == torch.float64)

    # ---- batches ----

    def _batch(self, prompts: Sequence[Prompt], value: Callable[[Tensor], Tensor]) -> Batch:
        prefix, tokens = self._prefill(prompts), self.plan.answer_tokens
        return Batch(self.model, self.anatomy, prompts, prefix, self._plain, value, tokens)

    def _whole(self, prompt: Prompt, value: Callable[[Tensor], Tensor]) -> Batch:
        return WholePrompt(self.model, self.anatomy, prompt, self._plain, value, self.plan.answer_tokens)

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
        if not shared:
            return prefill(self.model, prompts)
        return prefill(self.model, prompts, self._root(start))

    def _root(self, start: list[int]) -> Level:
        if self._roots.get(self._widened, (None,))[0] != start:
            self._roots[self._widened] = (list(start), prefill_root(self.model, start))
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
