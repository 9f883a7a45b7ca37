"""Suite `learn`: a step of learning factors, beside a step of PEFT's IA3 on the down projections.

The same questions, the same objective and optimiser, and gradients that agree. PEFT runs every option as a sequence of
its own, with the logits of the answers' tokens only, in parts of the best size. Factors of all neurons are learned, as
IA3 has them; ours at the answer keeps the prefixes, whose computing is counted over the steps of a training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import neuronllm as nl

from . import plain_texts as plain
from .fixture import OBJECTIVE, bar_for
from .harness import Bar, Benchmark, CannotRun, Case, Check, Choice, Comparison, Setup, Side, relative
from .shapes import twin
from .texts import SHAPE, TextBench

STEPS, BATCH = 50, 8  # of a training, and questions of each
BUDGET = 2**31
LR = 0.01
TOGETHER = "PEFT IA3, in one pass"


class Ia3:
    """PEFT's IA3, trained by hand as its users do."""

    def __init__(self, model: Any) -> None:
        try:
            from peft import IA3Config, get_peft_model
        except ImportError as error:
            raise CannotRun(f"nothing to compare with: {error}; pip install -c constraints.txt -e '.[test]'") from error
        config = IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"])
        self.model = get_peft_model(model, config)
        self.factors = [p for p in self.model.parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(self.factors, lr=LR)

    def step(self, asked: plain.Asked, part: int) -> Tensor:
        """One step on some questions, so many in a pass; the gradients."""
        self.adam.zero_grad()
        count = len(asked.prompts)
        for start in range(0, count, part):
            some = asked.of(start, start + part)
            rows = some.sequences
            logits = self.model(input_ids=rows.flatten(0, 1), logits_to_keep=some.span, use_cache=False).logits
            (-plain.value(logits.unflatten(0, rows.shape[:2]), some).sum() / count).backward()
        grads = torch.cat([p.grad.flatten() for p in self.factors if p.grad is not None])
        self.adam.step()
        return grads

    def start(self) -> None:
        with torch.no_grad():
            for factor in self.factors:
                factor.fill_(1)


def answer(setup: Setup) -> Case:
    """A step at the answers' tokens, with prefixes kept for fifty of them."""
    return _steps(setup, "answer", Bar("<=", 0.15))


def everywhere(setup: Setup) -> Case:
    """A step at all positions."""
    return _steps(setup, "all", Bar("<=", 0.5))


def _steps(setup: Setup, positions: str, bar: Bar) -> Case:
    bench = TextBench(setup, prompts=2 * BATCH, dense=True)
    peft = Ia3(twin(bench.model))
    ids = torch.arange(bench.anatomy.n_neurons)
    steps = STEPS if positions == "answer" else 1

    def ours(prompts: list[nl.Prompt]) -> Tensor:
        """A training; the first gradients."""
        factors = torch.ones(len(ids), dtype=torch.float64, requires_grad=True)
        adam, first = torch.optim.Adam([factors], lr=LR), None
        if positions == "answer":
            bench.engine.keep_prefixes(prompts, BUDGET)
        for step in range(steps):
            some = [prompts[(step * BATCH + n) % len(prompts)] for n in range(BATCH)]
            found = bench.engine.factor_gradients(some, OBJECTIVE, ids, factors.detach(), positions=positions)
            factors.grad = -found.gradients.double().mean(0)
            first = factors.grad.clone() if first is None else first
            adam.step()
        assert first is not None
        return first

    def peft_side(part: int) -> Side:
        return bench.by_hand(f"{part} questions a pass", lambda asked: peft.step(asked, part), BATCH, every=2)

    def check() -> list[Check]:
        prompts = bench.prompts(1, BATCH)
        if positions == "answer":
            # At the answer PEFT has nothing to compare with: its factors act on all tokens.
            right = -bench.engine.gradients(prompts, OBJECTIVE, positions=positions).mean(0)
        else:
            peft.start()
            right = peft.step(*bench.tensors(1, BATCH), BATCH)
        off = relative(ours([*prompts, *prompts]).float(), right)
        return [Check(f"first gradients at {positions}: relative difference", off, 1e-4)]

    what = f"a step on {BATCH} questions, {positions}"
    bench.case.sides = [
        Choice("PEFT IA3", [peft_side(part) for part in (1, 2, 4, 8)]),
        bench.by_hand(TOGETHER, lambda asked: peft.step(asked, BATCH), BATCH, every=3),
        bench.ours("ours", ours, 2 * BATCH, work=steps * BATCH, every=2),
    ]
    bench.case.check, bench.case.rounds, bench.case.unit = check, 3, "question"
    views: list[Any] = [Comparison(what, "PEFT IA3", "PEFT IA3", "ours", "cost", bar=bar_for(setup, {SHAPE: bar}))]
    if positions == "all":
        less = bar_for(setup, {SHAPE: Bar("<=", 1.0)})
        views.append(Comparison(what, TOGETHER, TOGETHER, "ours", "cost", "peak", less))
        bench.case.peaks = [TOGETHER, "ours"]
    bench.case.views = views
    bench.case.settings = bench.settings(positions=positions, answer_tokens=bench.shape.answer_tokens)
    bench.case.settings |= {"steps": steps, "questions of a step": BATCH, "kept prefixes": BUDGET}
    bench.case.notes = ["PEFT in parts of the best size, gradients added up; optimiser and its step are counted"]
    return bench.case


SHAPES: dict[str, Any] = {"shapes": {"cpu": (SHAPE,)}, "threads": (1, 2), "quick": False}
BENCHMARKS = [
    Benchmark("learn.answer", "a step of learning factors at the answer", answer, **SHAPES),
    Benchmark("learn.everywhere", "a step of learning factors at all positions", everywhere, **SHAPES),
]
