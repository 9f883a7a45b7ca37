"""Suite `engine`, all methods: what each costs beside inference, and beside the same in plain hooks.

Every method that scores single prompts is asked for the scores of all neurons at the answer position, of the fast
engine and of the reference engine, which is the plain way: hooks on the model, one whole forward (and backward) pass
for each thing to know, prompt by prompt. Both see the same method, so whatever is registered takes part, but for what
the shape names as too dear for the plain way: what cannot be checked is not timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from neuronllm.data.prompts import Prompt
from neuronllm.methods import METHODS, get_method

from .fixture import Bench
from .harness import Benchmark, Case, Check, Comparison, Setup, relative
from .shapes import SHAPES

TRUTH = "exact"
FREE = "random"  # asks nothing of the model
COUNT = 16  # prompts of a run


def judged() -> list[str]:
    """The methods that score a single prompt, and are not the truth themselves."""
    return [name for name, method in METHODS.items() if not method.needs_answers and name != TRUTH]


def score(method: str, engine: Any, prompts: Sequence[Prompt]) -> Tensor:
    """Scores of all neurons at the answer position, by the method's own objective."""
    how = get_method(method)
    return how.score(engine, prompts, how.objective or "", "answer")


def agreement(fast: Any, reference: Any, prompts: Sequence[Prompt], names: Sequence[str]) -> list[Check]:
    """Every method on both engines."""
    checks = []
    for name in names:
        ours, right = (score(name, engine, prompts) for engine in (fast, reference))
        checks.append(Check(f"{name}: relative difference from the reference", relative(ours, right), 1e-4))
    return checks


def methods(setup: Setup) -> Case:
    """Every method beside inference and beside the reference engine."""
    bench = Bench(setup, prompts=min(COUNT, SHAPES[setup.shape].prompts), hooks=False)
    reference = bench.open(bench.plain, "reference")
    timed = [name for name in judged() if name not in (FREE, *bench.shape.dear)]

    def by_fast(prompts: list[Prompt], method: str) -> Tensor:
        return score(method, bench.engine, prompts)

    def by_hooks(prompts: list[Prompt], method: str) -> Tensor:
        return score(method, reference, prompts)

    def check() -> list[Check]:
        return agreement(bench.engine, reference, bench.prompts(1, 1 if bench.shape.dear else 2), timed)

    bench.case.sides, bench.case.check = [bench.best_inference()], check
    for name in timed:
        ours = bench.ours(name, partial(by_fast, method=name), bench.count, times=2)
        plain = bench.ours(f"{name}, plain", partial(by_hooks, method=name), 1, every=2)
        bench.case.sides += [plain, ours]
        bench.case.views.append(Comparison(name, "inference", "inference", name, "cost"))
        bench.case.views.append(Comparison(name, "the reference engine", plain.name, name))
    bench.case.rounds, bench.case.settings = 3, bench.settings()
    bench.case.notes = [
        "The reference engine: hooks, one whole pass for each thing to know, one prompt",
        f"{TRUTH}: see engine.exact; what compares answers of several prompts takes the time of the method it averages",
    ]
    if bench.shape.dear:
        left = f"Left out, as the plain way takes minutes or more a prompt: {', '.join(bench.shape.dear)}"
        bench.case.notes.append(left)
    return bench.case


BENCHMARKS = [
    Benchmark(
        "engine.methods",
        "every method",
        methods,
        {"cpu": ("narrow", "small"), "cuda": ("small",)},
        quick=False,
        threads=(1, 2),
    )
]
