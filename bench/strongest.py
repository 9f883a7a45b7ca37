"""The strongest neurons by exact effects, found without running all, beside the full run.

On the bundled model and its tasks, and on random models of two wide layers, where a thousand of each end are wanted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import neuronllm as nl
from neuronllm.demo import demo_task, demo_tasks

from .harness import Bar, Benchmark, Case, Check, Comparison, Setup, Side
from .shapes import SHAPES, random_model, random_prompts

DEMO = "demo"
QUESTIONS, FEW, MANY = 24, 50, 1000  # of a task; neurons of each end, of the bundled model and of wide ones
EVERY, OURS = "every neuron", "top"


class Subject(NamedTuple):
    """Prompts of one task, or of a random model."""

    name: str
    prompts: list[nl.Prompt]


def exact_top(setup: Setup) -> Case:
    """Exact effects of the k best and worst neurons, beside those of all."""
    model, subjects, k = _subjects(setup)

    def run(**options: int) -> list[nl.Scores]:
        return [nl.attribute(model, None, some.prompts, "exact", progress=False, **options) for some in subjects]

    full, ours = run(), run(top=k)
    found = [_found(all_, some, k) for all_, some in zip(full, ours, strict=True)]

    def check() -> list[Check]:
        least = min(min(ends) for ends in found)
        return [Check("the least share of the full run's best or worst", least, 0.99, at_least=True)]

    def facts(peaks: dict[str, int]) -> dict[str, Any]:
        rows: list[list[Any]] = []
        for some, scores, (best, worst) in zip(subjects, ours, found, strict=True):
            top = scores.provenance["exact"]["top"]
            more = [top["estimated_missed"], top["bound"], top["rounds"]]
            rows.append([some.name, len(scores.values), k, top["ran"], top["share"], best, worst, *more])
        names = [
            "neurons",
            "k",
            "run",
            "share run",
            "of the best",
            "of the worst",
            "missed, estimated",
            "missed, bound",
        ]
        return {"columns": {"subject": "text", **dict.fromkeys([*names, "rounds"], "number")}, "rows": rows}

    work = sum(len(some.prompts) for some in subjects)
    sides: list[Any] = [
        Side(EVERY, lambda turn: (), run, work=work),
        Side(OURS, lambda turn: (), lambda: run(top=k), work=work),
    ]
    views: list[Any] = [Comparison(f"the {k} best and worst", EVERY, EVERY, OURS, bar=Bar(">=", 3))]
    case = Case(sides, check, views, facts=facts)
    case.settings = {"model": str(SHAPES.get(setup.shape, setup.shape)), "k": k, "prompts": work}
    case.notes = ["Both are all of nl.attribute; ours with its screens, its rounds and its sample"]
    return case


def _found(every: nl.Scores, ours: nl.Scores, k: int) -> tuple[float, float]:
    """The share of the full run's k best and k worst that are ours too."""
    shares = []
    for sign in (1, -1):
        wanted, mine = ((sign * scores.values).nan_to_num(-torch.inf).topk(k).indices for scores in (every, ours))
        shares.append(float(torch.isin(wanted, mine).double().mean()))
    return shares[0], shares[1]


def _subjects(setup: Setup) -> tuple[Any, list[Subject], int]:
    if setup.shape != DEMO:
        shape = SHAPES[setup.shape]
        model = random_model(shape, setup.device, setup.seed)
        width = sum(site.size for site in nl.Anatomy.of(model).sites)
        prompts = random_prompts(shape, shape.prompts, setup.seed)
        return model, [Subject(f"random weights, {shape}", prompts)], min(MANY, width // 16)
    model, tokenizer = nl.load_model(DEMO, dtype=torch.float32)
    subjects = []
    for task in demo_tasks():
        questions = nl.load_questions(demo_task(task, "search"))[:QUESTIONS]
        subjects.append(Subject(task, nl.render(tokenizer, questions, "rotate", "plain")))
    return model.requires_grad_(False).to(setup.device), subjects, FEW


BENCHMARKS = [
    Benchmark(
        "engine.exact_top",
        "the strongest neurons by exact effects, without running all",
        exact_top,
        {"cpu": (DEMO, "wide", "wide-neox")},
        quick=False,
    )
]
