"""Suite `quality`: what the scores and the edits of all methods are worth on the bundled model, by `nl.compare`.

Nothing is computed here: the comparison is the one that `neuronllm compare` makes, and docs/leaderboard.md shows it.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

import neuronllm as nl
from neuronllm.cli.demo import bundled
from neuronllm.methods import METHODS

from .harness import Benchmark, Case, Setup

DEMO = "demo"
EDITS = ("degrade", "enhance", "tuned")
# All questions; the points of curves, which the page does not show, without random sets.
BUDGET = "thorough,expensive=32,elsewhere=100,controls=20,curve_controls=0"
TEXT, NUMBER = "text", "number"
COLUMNS = {
    **dict.fromkeys(("task", "method", "edit", "positions", "questions", "neurons"), TEXT),
    **dict.fromkeys(("base", "accuracy", "low", "high", "gain", "P(right)", "PCR"), NUMBER),
    **dict.fromkeys(("random low", "random high", "beats", "p", "p, Holm"), NUMBER),
    **dict.fromkeys(("agreement", "best 1 %", "worst 1 %", "halves", "cost"), NUMBER),
    "verdict": TEXT,
}


def methods(setup: Setup) -> Case:
    """Every method and every edit on the bundled tasks; nothing is timed but what the comparison times itself."""
    model, tokenizer = nl.load_model(DEMO, dtype=torch.float32)
    case = Case(sides=[], check=list, views=[], timed=False)
    case.settings = {"model": f"the bundled model, {nl.Anatomy.of(model).describe()}"}

    def facts(peaks: dict[str, int]) -> dict[str, Any]:
        comparison = nl.compare(
            model.to(setup.device),
            tokenizer,
            {task: bundled(task) for task in nl.demo_tasks()},
            list(METHODS),
            edits=EDITS,
            template="plain",
            budget=BUDGET,
            seeds=(setup.seed,),
            progress=sys.stderr.isatty(),
        )
        made = comparison.data["made"]
        case.settings |= {"command": made["command"], "sets": made["settings"]["sizes"]["controls"]}
        return table(comparison)

    case.facts = facts
    return case


def table(comparison: nl.Comparison) -> dict[str, Any]:
    """A row for each edit of each method on each task."""
    tasks = {task["name"]: task for task in comparison.data["tasks"]}
    found = {(one["task"], one["method"]): one for one in comparison.data["methods"]}
    rows = []
    for edit in comparison.data["edits"]:
        task, method = tasks[edit["task"]], found[edit["task"], edit["method"]]
        low, high = edit["controls"]["band"] if edit["controls"] else (None, None)
        agreement, stability = method["agreement"] or {}, method["stability"] or {}
        cost = comparison.timings["methods"][edit["method"]].get(edit["task"], {})
        rows.append(
            [
                *(edit["task"], edit["method"], edit["edit"], method["positions"], task["questions"]["test"]),
                *(edit["neurons"], task["base"]["accuracy"], edit["accuracy"], *edit["interval"], edit["gain"]),
                *(edit["p_right"], edit["pcr"], low, high, edit["controls"] and edit["controls"]["place"]),
                *(edit["p"], edit["p_holm"], agreement.get("spearman"), agreement.get("top")),
                *(agreement.get("bottom"), stability.get("spearman"), cost.get("ratio")),
                edit["verdict"].partition(":")[0],
            ]
        )
    return {"columns": COLUMNS, "rows": rows}


BENCHMARKS = [
    Benchmark("quality.methods", "methods and edits on the bundled model", methods, {"cpu": (DEMO,)}, quick=False)
]
