"""The fast engine: what the reference computes, on answer tokens against a cached prefix, batches at a time.

Edits and gradients of multiple-choice attribution happen at the answer position, and attention is causal, so nothing
before it ever changes. `unusable` checks on first use that a model lets itself be driven so; where it does not,
the reference does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.question_trees import QuestionTree, question_trees
from .adaptive import attainable
from .base import FactorGradients
from .checked import CheckedEngine
from .direct import direct
from .effects import effects, rounding
from .first_order import at_factors, gradient, held
from .full import recomputing
from .integrals import integral, integral_to, tokens_of
from .kept_prefixes import KeptPrefixes
from .objectives import AnyObjective, get_objective
from .reference import ReferenceEngine

if TYPE_CHECKING:
    from ..data.prompts import Prompt

ALONE = 2**31  # answer tokens of a prompt that shares no pass with another one


class FastEngine(CheckedEngine):
    """The reference's answers, without running what comes before the answer again for every edit."""

    name = "fast"

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
        trees = question_trees(prompts, sizes) if self._mixers is None else None
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
                return at_factors(self.model, self.anatomy, batch, prefix, value, ids, factors, self._mixers)

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
        with self._driving():
            root = self._root(start) if start and self._shares else None
            self._kept = KeptPrefixes(self.model, prompts, root, self.plan.prompts, budget, self._mixers)
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
        if everywhere and self._mixers is not None and not all(p.one_token for p in prompts):
            return self._judged_effects(prompts, objective, ids, factor)

        def score(prompts: Sequence[Prompt]) -> Tensor:
            with self._in_float32(), self._hearing(prompts, explained) as value:
                batch = self._whole(prompts[0], value) if everywhere else self._batch(prompts, value)
                self.plan.noise = max(self.plan.noise, rounding(batch))
                found = effects(batch, ids, factor, self._trial)
                self._passes = batch.passes
                return found

        per_prompt = self.anatomy.n_neurons if ids is None else len(ids)
        return self._batched(prompts, score, ALONE if everywhere else per_prompt)

    def _judged_effects(
        self, prompts: Sequence[Prompt], objective: AnyObjective, ids: Tensor | None, factor: float
    ) -> Tensor:
        """At all positions of answers in words, whose tree a mixer would take for a text: as the judge has them."""
        judge = ReferenceEngine(self.model, self.anatomy, batch_size=self.batch_size)
        judge.heard, judge.plan = self.heard, self.plan
        return judge.effects(prompts, objective, ids=ids, factor=factor, positions="all")

    @torch.no_grad()
    def direct(self, prompts: Sequence[Prompt], objective: AnyObjective) -> Tensor:
        explained = get_objective(objective)

        def score(prompts: Sequence[Prompt]) -> Tensor:
            with self._choices(prompts, explained) as choices:
                batch = self._batch(prompts, lambda logits: choices.value(explained, logits))
                return direct(batch)

        first = [prompt.by_first_token() for prompt in prompts]
        return self._batched(first, score, max(site.width for site in self.anatomy.sites))

    def post_normed(self, prompt: Prompt) -> bool:
        return self._blocks_of([prompt]).post_normed

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
            return gradient(self.model, self.anatomy, prompts, None, value, copies, weight, rules, self._mixers)

    def _recomputing(self, wanted: bool = True) -> AbstractContextManager[None]:
        """Blocks run again on the way back, in a pass over all positions and where memory asks for it."""
        self.plan.can_recompute = self.plan.can_recompute or wanted
        return recomputing(self.model, wanted and self.plan.recompute, self.dtype == torch.float64)
