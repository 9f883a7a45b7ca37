"""What the cases of the engine suites share: a random model, its twin for the plain side, prompts, an engine, judges."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.anatomy import Anatomy
from neuronllm.engine import open_engine

from . import plain
from .harness import Bar, Case, Check, Choice, Setup, Side, relative
from .shapes import SHAPES, random_model, random_prompts, shared_prompts, twin

OBJECTIVE = "logp_options"
GPU = ("llama-2-7b", "llama-3.1-8b", "qwen3-30b-a3b")
DENSE_GPU = GPU[:2]


class Bench:
    """The model, its twin for the plain side, and an engine that stays open until the case is closed."""

    def __init__(self, setup: Setup, prompts: int | None = None, shared: bool = False, **options: Any) -> None:
        self.setup, self.shape, self.shared = setup, SHAPES[setup.shape], shared
        self.count = prompts or self.shape.prompts
        self.model = random_model(self.shape, setup.device, setup.seed)
        self.plain = twin(self.model)
        self.anatomy = Anatomy.of(self.model)
        self.case = Case(sides=[], check=list, views=[])
        self.prompts: Callable[[int, int], list[nl.Prompt]] = cache(self._prompts)
        self.tensors: Callable[[int, int], tuple[Tensor, Tensor, Tensor]] = cache(self._tensors)
        self.engine = self.open(self.model, **options)
        if self.engine.name != "fast":
            raise RuntimeError("the fast engine refused this model, its log says why: there is nothing to compare")

    def open(self, model: Any, backend: str = "fast", **options: Any) -> Any:
        engine = open_engine(model, self.anatomy, self.prompts(0, self.count), backend, **options)
        return self.case.stack.enter_context(engine)

    def _prompts(self, turn: int, count: int) -> list[nl.Prompt]:
        seed = self.setup.seed + 1 + turn
        if self.shared:
            return shared_prompts(self.shape, max(1, count // 4), 4, seed)
        return random_prompts(self.shape, count, seed)

    def _tensors(self, turn: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        return plain.tensors(self.prompts(turn, count), self.setup.device)

    def inference(self, batch: int, count: int | None = None, use_cache: bool = False) -> Side:
        """Plain batched inference of `count` prompts."""
        n = count or self.count

        def run(turn: int) -> Tensor:
            return plain.inference(self.plain, self.tensors(turn, n)[0], batch, use_cache)

        return Side(f"batch {batch}", run, work=n)

    def best_inference(self) -> Choice:
        sizes = sorted({min(size, self.count) for size in self.shape.batches})
        return Choice("inference", [self.inference(size) for size in sizes])

    def settings(self, **more: Any) -> dict[str, Any]:
        shape = {"model": str(self.shape), "neurons": self.anatomy.n_neurons, "tokens": self.shape.tokens}
        return shape | {"prompts": self.count, "objective": OBJECTIVE, "plan": str(self.engine.plan)} | more

    def agreement(
        self, what: str, ours: Tensor, by_hand: Callable[[], Tensor], judged: Callable[[Any], Tensor]
    ) -> list[Check]:
        """In float32 ours is held to the plain result. In less both are held to float32: rounding is not ours alone.

        `judged(engine)` is the same result by another engine. A mixture of experts has no plain way here, and one that
        fills the device no room for a wider copy: the reference engine judges it in its own type.
        """
        if self.shape.moe:
            with open_engine(self.model, self.anatomy, self.prompts(0, self.count), "reference") as engine:
                return [Check(f"{what}: relative difference from the reference", relative(ours, judged(engine)), 0.1)]
        right = by_hand()
        if self.shape.dtype == torch.float32:
            return [Check(f"{what}: relative difference from the plain way", relative(ours, right), 1e-4)]
        with open_engine(self.single(), self.anatomy, self.prompts(0, self.count), "reference") as engine:
            truth = judged(engine)
        limit = max(0.01, 1.5 * relative(right, truth))
        return [Check(f"{what}: relative difference from float32", relative(ours, truth), limit)]

    def single(self) -> Any:
        """The model in float32, a copy if it is in something else."""
        return self.model if self.shape.dtype == torch.float32 else copy.deepcopy(self.model).float()


def bar_for(setup: Setup, bars: dict[str, Bar]) -> Bar | None:
    """The bar set for a shape, or for a shape at a number of threads ("small 2"); None where none was set."""
    return bars.get(f"{setup.shape} {setup.threads}") or bars.get(setup.shape)


def spearman(a: Tensor, b: Tensor) -> float:
    """Correlation of ranks.

    >>> spearman(torch.tensor([1.0, 5.0, 9.0]), torch.tensor([0.1, 0.2, 7.0]))
    1.0
    """
    ranks = torch.stack([x.double().cpu().argsort().argsort().double() for x in (a, b)])
    return round(float(torch.corrcoef(ranks)[0, 1]), 12)
