"""What the demonstration says about its tasks: on the screen, in Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..common.errors import InputError
from ..common.tables import markdown_table, print_table
from ..judging.report import Report
from ..judging.verdicts import outcome
from ..results.factors import ROLES, show_factor
from ..results.neurons import NeuronSet
from ..results.scores import Scores

JUDGED = ["", "accuracy", "balanced", "P(right)", "letters"]
MODES = ("enhance", "degrade", "tuned", "learned")


class Task(NamedTuple):
    """All that the demonstration found out about a task."""

    name: str
    scores: Scores
    neurons: NeuronSet
    tuned: NeuronSet
    learned: NeuronSet
    reports: dict[str, Report]
    faithfulness: dict[str, float]
    curves: dict[str, list[float]]


def verdict(report: Report) -> str:
    """Whether an edit did what it should, beyond what random neurons and chance do, in words that say so plainly."""
    if report.base is None or report.controls is None or report.mcnemar is None:
        raise InputError("verdict: needs the report of an edit with random controls")
    if report.edit["neurons"] == 0:
        return "no edit was better on the validation questions"
    band, now, before = report.controls["accuracy"], report.accuracy, report.base["accuracy"]
    outside = "below" if now < band["p2.5"] else "above" if now > band["p97.5"] else "inside"
    text = f"{now - before:+.3f}, {outside} the random band {band['p2.5']:.3f} to {band['p97.5']:.3f}"
    text += f", McNemar p {report.mcnemar:.2g}"
    if report.collapsed:
        return f"{text}; the letters collapse, so this shows nothing about the task"
    edge = (band["p2.5"], band["p97.5"])
    found = outcome(now - before, now, edge, report.mcnemar, report.edit["mode"] or "enhance")
    return f"{text}: {'it hurts' if found == 'hurts' else found}"


def _recipe(report: Report) -> str:
    edit = report.edit
    roles = [f"{role} {show_factor(edit[role], edit['own'].get(role))}" for role in ROLES]
    return f"{edit['neurons']} neurons, {', '.join(roles)}, positions {edit['positions']}"


def _judged(task: Task) -> list[list[Any]]:
    return [[mode, r.accuracy, r.balanced_accuracy, r.p_right, r.letters] for mode, r in task.reports.items()]


def _faithful(tasks: Sequence[Task]) -> tuple[list[str], list[list[Any]]]:
    columns = ["method", *(task.name for task in tasks)]
    return columns, [[method, *(task.faithfulness[method] for task in tasks)] for method in tasks[0].faithfulness]


def print_task(task: Task) -> None:
    print_table(f"{task.name}: {task.reports['base'].questions} test questions", JUDGED, _judged(task))
    for mode in MODES:
        print(f"  {mode:<8} {_recipe(task.reports[mode])}: {verdict(task.reports[mode])}")


def print_summary(tasks: Sequence[Task]) -> None:
    print_table("Spearman with the exact effects at the answer position, mean over prompts", *_faithful(tasks))


def markdown(tasks: Sequence[Task]) -> str:
    """The same tables as a document."""
    parts = ["# What the demonstration found", "", "## Faithfulness", ""]
    parts += [
        "Spearman with the exact effects at the answer position, mean over prompts.",
        "",
        *markdown_table(*_faithful(tasks)),
    ]
    for task in tasks:
        parts += ["", f"## {task.name}", "", f"{task.reports['base'].questions} test questions.", ""]
        parts += [*markdown_table(JUDGED, _judged(task)), ""]
        parts += [f"- {mode}: {_recipe(task.reports[mode])}: {verdict(task.reports[mode])}" for mode in MODES]
    return "\n".join(parts) + "\n"


def record(task: Task, ks: Sequence[int]) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "faithfulness": task.faithfulness,
        "reports": {mode: report.to_dict() for mode, report in task.reports.items()},
        "verdicts": {mode: verdict(task.reports[mode]) for mode in MODES},
        "tuned": {key: value for key, value in (task.tuned.tuned or {}).items() if key != "curve"},
        "learned": {key: value for key, value in task.learned.provenance["learned"].items() if key != "curves"},
        "accuracy_by_k": {"k": list(ks), **task.curves},
    }
