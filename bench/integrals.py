"""How close the rules of integrated gradients come to the integral, and how many points they take.

On random weights every rule is good; on trained ones it is not. So two subjects are trained: the bundled model, and
the small real one that `make real` writes.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.demo import demo_task, demo_tasks
from neuronllm.engine import open_engine
from neuronllm.engine.quadrature import TOLERANCES, quadrature
from neuronllm.model.anatomy import Anatomy

from .fixture import OBJECTIVE
from .harness import Benchmark, CannotRun, Case, Check, Setup
from .shapes import SHAPES, random_model, random_prompts

DEMO, REAL = "demo", "smollm2-trained"
FOLDER = Path(__file__).resolve().parents[1] / ".models" / "SmolLM2-135M-Instruct"
PROMPTS = 20
TRUTH = 2e-4  # a tolerance: what all rules are compared with
EQUAL = [("right", 16), ("midpoint", 16), ("midpoint", 32), ("gauss", 16)]


def accuracy(setup: Setup) -> Case:
    """Every rule beside the integral to 0.02 %; nothing is timed."""
    model, prompts, what = _subject(setup)
    anatomy = Anatomy.of(model)
    case = Case(sides=[], check=list, views=[], timed=False)
    engine = case.stack.enter_context(open_engine(model, anatomy, prompts))
    truth = engine.integrate_to(prompts, OBJECTIVE, TRUTH)

    def check() -> list[Check]:
        coarser = _off(engine.integrate_to(prompts, OBJECTIVE, 4 * TRUTH), truth)
        return [
            Check(f"converged: {TRUTH:g} and {4 * TRUTH:g} as tolerances, the largest difference", max(coarser), 5e-3)
        ]

    def facts(peaks: dict[str, int]) -> dict[str, Any]:
        rows: list[list[Any]] = []
        for rule, steps in EQUAL:
            found = _off(engine.integrate(prompts, OBJECTIVE, *quadrature(rule, steps)), truth)
            rows.append([f"{rule}, {steps} steps", steps, statistics.median(found), max(found)])
        for name, tolerance in TOLERANCES.items():
            engine.plan.integrals, engine.plan.points = 0, 0.0
            found = _off(engine.integrate_to(prompts, OBJECTIVE, tolerance), truth)
            points = engine.plan.points / engine.plan.integrals
            rows.append([f"{name}, to {tolerance:.0%}", round(points, 2), statistics.median(found), max(found)])
        kinds = {"rule": "text", "points a layer": "number", "median error": "number", "largest error": "number"}
        return {"columns": kinds, "rows": rows}

    case.check, case.facts = check, facts
    case.settings = {"model": what, "neurons": anatomy.n_neurons, "prompts": len(prompts)}
    case.notes = ["Error: of a prompt's scores, norm over norm"]
    return case


def _off(found: Tensor, truth: Tensor) -> list[float]:
    distances: list[float] = ((found - truth).norm(dim=1) / truth.norm(dim=1)).tolist()
    return distances


def _subject(setup: Setup) -> tuple[Any, list[nl.Prompt], str]:
    if setup.shape not in (DEMO, REAL):
        shape = SHAPES[setup.shape]
        prompts = random_prompts(shape, PROMPTS, setup.seed)
        return random_model(shape, setup.device, setup.seed), prompts, f"random weights, {shape}"
    if setup.shape == REAL and not FOLDER.is_dir():
        raise CannotRun(f"there is no {FOLDER.name} under .models: make real writes it")
    model, tokenizer = nl.load_model(DEMO if setup.shape == DEMO else FOLDER, dtype=torch.float32)
    each = PROMPTS // len(demo_tasks())
    questions = [question for task in demo_tasks() for question in nl.load_questions(demo_task(task, "search"))[:each]]
    prompts = nl.render(tokenizer, questions, "none", "default")
    return model.requires_grad_(False).to(setup.device), prompts, f"trained, {Anatomy.of(model).describe()}"


BENCHMARKS = [
    Benchmark(
        "engine.integrals",
        "the rules of integrated gradients beside the integral",
        accuracy,
        {"cpu": (DEMO, REAL, "narrow", "small")},
        quick=False,
    )
]
