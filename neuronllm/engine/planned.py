"""An engine that plans: its batches are cut by what a little of the work was seen to take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .base import Engine
from .batching import ANSWER_TOKENS, Plan, Sized, alike, batch_size, fit, make_plan, roomy, run_batches
from .borrowed import check_prompts, input_device
from .memory import available, peak_memory

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..data.question_trees import QuestionTree

Score = Callable[[Sequence["Prompt"]], Tensor]


class PlannedEngine(Engine):
    """Work on many prompts, batch by batch; how large the batches are, `fit` finds out."""

    def _begin(self) -> None:
        super()._begin()
        self._trial = False  # as little work as shows what memory it takes
        self._sizing = False  # no work at all, only its size
        self._passes = 1  # of the last batch
        self._tokens_a_prompt = 1
        self._prefix_bytes = 0  # of a prompt, in the last batch

    def fit(self, work: Score, prompts: Sequence[Prompt], *, always: bool = False) -> None:
        """Find out what `work` (prompts -> scores) takes and cut the batches by it.

        Done where memory is an issue, and for batch_size="auto" only; `always` gives an estimate anyway.
        """
        # One prompt is a batch as it is. Where memory ends with an error, and not with the process, it is just tried.
        single = len(prompts) == 1 and self.model.device.type == "cuda"
        chosen = self.batch_size != "auto" or single or self._roomy(work, prompts)
        if chosen and not always:
            return
        device = input_device(self.model)
        plan = self.plan

        def trial(smaller: Plan, some: Sequence[Prompt]) -> int:
            self.plan = smaller
            return peak_memory(lambda: work(some), device)

        self._trial, self._prefix_bytes = True, 0
        try:
            budget = 2**62 if chosen else available(device) // 2
            fitted = fit(plan, trial, prompts, budget)
        finally:
            self._trial, self.plan = False, plan
        first, further = fitted.estimate.values()
        fitted.batch = batch_size(fitted, self._tokens_a_prompt, len(prompts))
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        peak, prefixes = first + (fitted.batch - 1) * further, fitted.batch * self._prefix_bytes
        fitted.estimate = {
            "weights": weights,
            "prefix cache": prefixes,
            "branches and graph": peak - prefixes,
            "peak above the weights": peak,
        }
        self.plan = fitted

    def seconds(self, work: Score, prompts: Sequence[Prompt]) -> float | None:
        some = sorted(prompts, key=lambda p: p.n_tokens)
        middle = max(0, (len(some) - (self.plan.batch or 1)) // 2)
        some = some[middle : middle + (self.plan.batch or 1)]
        self._trial, self._passes = True, 1
        try:
            work(some[:1])  # what is only done once is not counted
            start = time.perf_counter()
            work(some)
            return (time.perf_counter() - start) * self._passes * len(prompts) / len(some)
        finally:
            self._trial = False

    def _roomy(self, work: Score, prompts: Sequence[Prompt]) -> bool:
        if self.model.device.type == "cuda":
            return False
        self._sizing, answer_tokens = True, ANSWER_TOKENS
        try:
            work(prompts[:1])
        except Sized as found:
            answer_tokens = found.answer_tokens
        finally:
            self._sizing = False
        return roomy(self.model, self.anatomy, prompts, answer_tokens)

    def _batched(self, prompts: Sequence[Prompt], score: Score, per_prompt: int = 1) -> Tensor:
        """Scores of all prompts, (prompts, ...), batch by batch; a pass has some `per_prompt` answer tokens of each."""
        check_prompts(self.model, prompts)
        self._make_plan(prompts)
        self._prepare(prompts)
        parts = alike(prompts)
        tokens = [max(per_prompt * len(prompts[n].tree.tokens) for n in places) for places in parts]
        tokens = [min(count, self.plan.answer_tokens) for count in tokens]
        self._tokens_a_prompt = max(tokens)
        if self._sizing:
            raise Sized(self._tokens_a_prompt)
        with self._driving():
            found = [
                run_batches([prompts[n] for n in places], score, self.plan, count)
                for places, count in zip(parts, tokens, strict=True)
            ]
        order = torch.tensor([n for places in parts for n in places]).argsort()
        return torch.cat(found)[order] if len(parts) > 1 else found[0]

    def _batched_questions(self, trees: Sequence[QuestionTree], score: Callable[[Any], Tensor]) -> Tensor:
        """Scores of all questions, (questions, ...); those of a batch have as many variants."""
        prompts = [prompt for tree in trees for prompt in tree.prompts]
        check_prompts(self.model, prompts)
        self._make_plan(prompts)
        self._prepare(prompts)
        if self._sizing:
            raise Sized(max(len(prompt.tree.tokens) for prompt in prompts))
        found: dict[int, Tensor] = {}
        for variants in sorted({len(tree.prompts) for tree in trees}):
            places = [n for n, tree in enumerate(trees) if len(tree.prompts) == variants]
            room = max(1, self.plan.prompts // variants)
            with self._driving():
                part = run_batches([trees[n] for n in places], score, self.plan, self.plan.answer_tokens // room)
            found.update(zip(places, part, strict=True))
        return torch.stack([found[n] for n in range(len(trees))])

    def _prepare(self, prompts: Sequence[Prompt]) -> None:
        """What has to be known before the first batch."""

    def _driving(self) -> AbstractContextManager[None]:
        """Around the passes of batches."""
        return nullcontext()

    def _make_plan(self, prompts: Sequence[Prompt]) -> None:
        if not self._planned:
            self.plan = make_plan(self.model, prompts, batch_size=self.batch_size)
            self._planned = True
