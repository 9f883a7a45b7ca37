"""From JSON to text: the page docs/leaderboard.md, of the result of the suite `quality`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from neuronllm.common.tables import markdown_table, show

from .conditions import busy, conditions, missing
from .units import ratio

SUITE = "quality"
CHANCE = "random"  # the method that knows nothing
Record = dict[str, Any]

HEAD = """# Leaderboard of the methods

This page is generated: `python -m bench report` writes it from the files in `bench/results/`, and a test fails when it
says anything else. What it shows is a comparison by `nl.compare` on the bundled model and its four tasks, every method
at the positions that it takes by itself; [demo.md](demo.md) says what to expect of this model. The same by hand, with a
page that shows more of it:
"""
SCORES = """## Which scores agree with what neurons do

The truth is what the log-probability of the right option among the options loses when a neuron is silenced, really run,
at the positions where the method scores; of a sample of neurons where all cost too much. Spearman compares the ranks of
the neurons on a prompt, and is the mean over prompts; a method that scores by another objective is judged by the same
truth. Best and worst 1 %: the share of the neurons at either end that a method finds, means over tasks. Halves: the
rank correlation of the scores of two halves of the questions, the mean over tasks. Cost: time as a multiple of reading
the same prompts once, the least and the most of the tasks; a model this small exaggerates what comes on top. `contrast`
compares prompts answered right with prompts answered wrong, so it has no score of a single prompt.
"""
EDITED = """## Which edits change held-out questions

Neurons are scored on the search questions of a task and edited on its test questions, which are about other items.
degrade silences the good ones and doubles the bad ones, enhance does the opposite, tuned takes the number of neurons
and the factors that were best on validation questions and may answer "no edit". Beside each edit stand {sets} random
sets, as large and in the same layers. **Shown** is an edit that moves accuracy the wished way, beyond the middle 95 %
of these, with p < .05 by McNemar's exact test after Holm's correction for all edits of this page, and without the
answers collapsing onto one option.
"""
TASKS = """Task by task, an edit's change of the accuracy, the share of random sets that it beats in the direction that
it is for, and p after Holm's correction; what is shown is bold, and what hurts or collapses is named:
"""


def page(results: Sequence[Record]) -> str:
    """docs/leaderboard.md.

    >>> print(page([]).splitlines()[-1])
    No results have been committed yet.
    """
    mine = [result for result in results if result["benchmark"].startswith(f"{SUITE}.")]
    if not mine:
        return f"{HEAD.rpartition(' The same')[0]}\n\nNo results have been committed yet.\n"
    result = min(mine, key=lambda one: (one["device"] != "cpu", one["threads"]))  # the figures are the same in all
    edits, sets = records(result), result["settings"]["sets"]
    lines = [HEAD, "```bash", result["settings"]["command"], "```", "", SCORES, *scores(edits, busy(result))]
    lines += [EDITED.format(sets=sets), *told(edits), "", *in_short(edits), TASKS]
    for task in _names(edits, "task"):
        lines += by_task([edit for edit in edits if edit["task"] == task])
    lines += ["## Conditions", "", *conditions([result])]
    return "\n".join([*lines, *missing(results, lambda suite: suite == SUITE)])


def records(result: Record) -> list[Record]:
    """The rows of a result's facts, by the names of the columns."""
    names = list(result["facts"]["columns"])
    return [dict(zip(names, row, strict=True)) for row in result["facts"]["rows"]]


def _names(edits: Iterable[Record], what: str) -> list[str]:
    return list(dict.fromkeys(edit[what] for edit in edits))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


# ---- scores ----


def scores(edits: Sequence[Record], busy: bool) -> list[str]:
    """One row a method, the most faithful first."""
    tasks, rows = _names(edits, "task"), {}
    for method in _names(edits, "method"):
        mine = {edit["task"]: edit for edit in edits if edit["method"] == method}  # alike in all edits of a task
        means = [_mean(one[key] for one in mine.values()) for key in ("agreement", "best 1 %", "worst 1 %", "halves")]
        costs = sorted(one["cost"] for one in mine.values() if one["cost"] is not None)
        cost = f"{ratio(costs[0])} to {ratio(costs[-1])}" if costs else "n/a"
        places = [mine[task]["agreement"] for task in tasks]
        first, *others = map(_figure, means)
        positions = next(iter(mine.values()))["positions"]
        rows[method] = (means[0], [f"`{method}`", positions, first, *map(_figure, places), *others, cost])
    order = sorted(rows, key=lambda name: (rows[name][0] is None, -(rows[name][0] or 0)))
    cost = "cost, busy machine" if busy else "cost"
    columns = ["method", "positions", "Spearman", *tasks, "best 1 %", "worst 1 %", "halves", cost]
    return [*markdown_table(columns, [rows[name][1] for name in order]), ""]


def _figure(value: float | None) -> str:
    """Three decimals, also of what is nearly nothing."""
    return "n/a" if value is None else f"{round(value, 3) + 0.0:.3f}"  # + 0.0: no -0.000


# ---- edits ----


def told(edits: Sequence[Record]) -> list[str]:
    """A sentence for each kind of edit."""
    lines = []
    for kind in _names(edits, "edit"):
        mine = [edit for edit in edits if edit["edit"] == kind and edit["method"] != CHANCE]
        made = [edit for edit in mine if edit["neurons"]]
        some = [sum(edit["verdict"] == verdict for edit in made) for verdict in ("shown", "it hurts", "collapse")]
        none = f" (no edit in {len(mine) - len(made)})" if len(made) < len(mine) else ""
        lines.append(
            f"- **{kind}**, {len(mine)} pairs of a method and a task, `{CHANCE}` not counted{none}: shown in {some[0]}"
            f", hurts in {some[1]}, the answers collapse in {some[2]}."
        )
    return lines


def in_short(edits: Sequence[Record]) -> list[str]:
    """Over the tasks, what each method's edits change on average, and where that is shown."""
    kinds, tasks = _names(edits, "edit"), _names(edits, "task")
    found = {(edit["method"], edit["edit"], edit["task"]): edit for edit in edits}
    rows = []
    for method in _names(edits, "method"):
        row = [f"`{method}`"]
        for kind in kinds:
            mine = [found[method, kind, task] for task in tasks]
            shown = [edit["task"] for edit in mine if edit["verdict"] == "shown"]
            row += [f"{fmean(edit['gain'] for edit in mine):+.3f}", ", ".join(shown) or "nowhere"]
        rows.append(row)
    columns = ["method", *(text for kind in kinds for text in (f"{kind}: mean change", "shown on"))]
    return [*markdown_table(columns, rows), ""]


def by_task(edits: Sequence[Record]) -> list[str]:
    """A row a method, a column an edit."""
    kinds, first = _names(edits, "edit"), edits[0]
    found = {(edit["method"], edit["edit"]): edit for edit in edits}
    rows = [[f"`{method}`", *(cell(found[method, kind]) for kind in kinds)] for method in _names(edits, "method")]
    return [
        f"### {first['task']}",
        "",
        f"{first['questions']} test questions, accuracy {show(first['base'])} unedited.",
        "",
        *markdown_table(["method", *kinds], rows),
        "",
    ]


def cell(edit: Record) -> str:
    """
    >>> cell({"neurons": 32, "gain": 0.0425, "beats": 1.0, "p, Holm": 0.012, "verdict": "shown"})
    '**+0.043**, 100%, p 0.012'
    """
    if not edit["neurons"]:
        return "no edit"
    gain = f"{edit['gain']:+.3f}"
    beats = "" if edit["beats"] is None else f", {edit['beats']:.0%}"
    named = {"it hurts": ", hurts", "collapse": ", collapse"}.get(edit["verdict"], "")
    return f"{f'**{gain}**' if edit['verdict'] == 'shown' else gain}{beats}, p {edit['p, Holm']:.2g}{named}"
