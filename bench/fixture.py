"""What the cases of the suites share: a random model, its twin for the plain side, prompts, an engine, judges."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.engine import open_engine
from neuronllm.model.anatomy import Anatomy

from . import plain
from .harness import Bar, CannotRun, Case, Check, Choice, Setup, Side, relative
from .record import memory_gib
from .shapes import SHAPES, Shape, random_model, random_prompts, shared_prompts, twin

OBJECTIVE = "logp_options"
GPU = ("llama-2-7b", "llama-3.1-8b", "qwen3-30b-a3b")
DENSE_GPU = GPU[:2]
UNHOOKED = ("gpt_neox",)  # families that plain.py does not know


class Bench:
    """The model, its twin for the plain side, and an engine that stays open until the case is closed."""

    def __init__(
        self,
        setup: Setup,
        prompts: int | None = None,
        shared: bool = False,
        *,
        shape: Shape | None = None,
        beside: Bench | None = None,
        hooks: bool = True,
        dense: bool = False,
        **options: Any,
    ) -> None:
        """Of the setup's shape, or of a variant of it; `beside` another one: in its case, on its models.

        With `hooks` the plain side hooks the FFNs of dense models, with `dense` there is nothing beside it for others.
        """
        self.setup, self.shape, self.shared = setup, shape or SHAPES[setup.shape], shared
        self.count = prompts or self.shape.prompts
        if (hooks and self.shape.family in UNHOOKED) or (dense and self.shape.moe):
            raise CannotRun(f"the plain way of this benchmark does not know the FFNs of {self.shape.name}")
        if setup.device == "cpu" and memory_gib() < self.shape.memory:
            raise CannotRun(f"{self.shape.name} takes {self.shape.memory} GiB, this machine has {memory_gib()}")
        self.model = beside.model if beside else random_model(self.shape, setup.device, setup.seed)
        self.plain = beside.plain if beside else twin(self.model)
        self.anatomy = Anatomy.of(self.model)
        self.case = beside.case if beside else Case(sides=[], check=list, views=[])
        self.engine = self.open(self.model, **options)
        if self.engine.name != "fast":
            raise RuntimeError("the fast engine refused this model, its log says why: there is nothing to compare")

    def open(self, model: Any, backend: str = "fast", **options: Any) -> Any:
        engine = open_engine(model, self.anatomy, self.prompts(0, self.count), backend, **options)
        return self.case.stack.enter_context(engine)

    def prompts(self, turn: int, count: int, tokens: int | None = None) -> list[nl.Prompt]:
        """The prompts of a turn, as long as the shape's unless told otherwise."""
        shape, seed = replace(self.shape, tokens=tokens or self.shape.tokens), self.setup.seed + 1 + turn
        if self.shared:
            return shared_prompts(shape, max(1, count // 4), 4, seed)
        return random_prompts(shape, count, seed)

    def tensors(self, turn: int, count: int, tokens: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The same as the plain side takes them: token ids, option ids, right options."""
        return plain.tensors(self.prompts(turn, count, tokens), self.setup.device)

    def ours(self, name: str, run: Callable[..., Any], count: int, **more: Any) -> Side:
        """A side that takes `count` prompts."""
        return Side(name, lambda turn: (self.prompts(turn, count),), run, **({"work": count} | more))

    def by_hand(self, name: str, run: Callable[..., Any], count: int, **more: Any) -> Side:
        """A side that takes the tensors of `count` prompts."""
        return Side(name, lambda turn: self.tensors(turn, count), run, **({"work": count} | more))

    def inference(self, name: str, batch: int, count: int, use_cache: bool = False) -> Side:
        """Plain batched inference of `count` prompts."""

        def run(ids: Tensor, options: Tensor, answers: Tensor) -> Tensor:
            return plain.inference(self.plain, ids, batch, use_cache)

        return self.by_hand(name, run, count)

    def best_inference(self, count: int | None = None) -> Choice:
        """Inference of the prompts at the best batch size, found on at least sixteen of them."""
        count = count or self.count
        sizes = {f"batch {n}": n for n in sorted({min(n, count) for n in self.shape.batches})}
        pilots = [self.inference(name, n, min(count, max(n, 16))) for name, n in sizes.items()]
        return Choice("inference", pilots, lambda best: self.inference(best.name, sizes[best.name], count))

    def settings(self, **more: Any) -> dict[str, Any]:
        shape = {"model": str(self.shape), "neurons": self.anatomy.n_neurons, "tokens": self.shape.tokens}
        shape |= {"std": self.shape.std}
        return shape | {"prompts": self.count, "objective": OBJECTIVE, "plan": str(self.engine.plan)} | more

    def agreement(
        self, what: str, by_engine: Callable[..., Tensor], by_hand: Callable[..., Tensor], count: int
    ) -> list[Check]:
        """In float32 ours is held to the plain result. In less both are held to float32: rounding is not ours alone.

        A mixture of experts has no plain way here, and one that fills the device leaves no room for a wider copy: the
        reference engine judges it in its own type. Beside a wider copy, only graphs of shorter prompts have room.
        """
        tokens = self.shape.tokens if self.shape.dtype == torch.float32 else self.shape.tokens // 2
        prompts = self.prompts(1, count, tokens)  # not those that the engine was opened with
        ours = by_engine(prompts)
        if self.shape.moe:
            with open_engine(self.model, self.anatomy, prompts, "reference") as engine:
                difference = relative(ours, by_engine(prompts, engine))
            limit = 1e-4 if self.shape.dtype == torch.float32 else 0.1
            return [Check(f"{what}: relative difference from the reference", difference, limit)]
        right = by_hand(*self.tensors(1, count, tokens))
        if self.shape.dtype == torch.float32:
            return [Check(f"{what}: relative difference from the plain way", relative(ours, right), 1e-4)]
        with open_engine(self.single(), self.anatomy, prompts, "reference") as engine:
            truth = by_engine(prompts, engine)
        limit = max(0.01, 1.5 * relative(right, truth))
        return [Check(f"{what}: relative difference from float32", relative(ours, truth), limit)]

    def single(self) -> Any:
        """The model in float32, a copy if it is in something else."""
        return self.model if self.shape.dtype == torch.float32 else copy.deepcopy(self.model).float()


def bar_for(setup: Setup, bars: dict[str, Bar]) -> Bar | None:
    """The bar set for a shape, or for a shape at a number of threads ("small 2"); None where none was set."""
    return bars.get(f"{setup.shape} {setup.threads}") or bars.get(setup.shape)
