#!/usr/bin/env python3
"""docs/case_study.md and its pictures, of the files in results/: all of them, whether something works or not.

.venv/bin/python examples/real_model/page.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pictures import PICTURES, drawn, shown
from pooled import AMONG, KINDS, SURE, Pooled, Results, read
from rows import RECIPE, ROWS, SETS
from setting import ELSEWHERE, FOLDS, PUBLISHED

import neuronllm as nl
from neuronllm.common.statistics import bootstrap_interval
from neuronllm.common.tables import markdown_table, show

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
SINGLE = [name for name in ROWS if name.rpartition("-")[0] not in KINDS]

HEAD = """# Case study: learned control of a small real model

This page is generated: `examples/real_model/page.py` writes it from the files in `examples/real_model/results/`, and a
test fails when it says anything else. `make real-study` does the rows that are missing.

SmolLM2-135M-Instruct (46,080 FFN neurons, float32) answers five tasks in words (`examples/real_model/README.md`). Each
is divided into three folds that share no item; every row is made with two of them and judged on the third, and the
folds are pooled.
"""
HOW = f"""## How to read it

A row worked ("yes") if McNemar's exact test of the questions that changed, against the model as it is, says p < {SURE}
by Holm's correction for the five tasks, in the direction that the row is for, and not by always giving the same answer;
"harm" is as sure in the wrong direction, everything else is "no". A row that random sets were made for, {SETS} of each
kind at most, also has to stand above {AMONG} % of them, or below as many. Intervals are 95 %, by bootstrap over
questions. A row that is there in part is tested on it, and a missing one counts as p = 1.

Random sets have as many neurons in every layer as what they are compared with. `random` ones are learned as
`learned-256` is, `matched` ones too and are about as strong (mean activation times the norm of the output vector),
`forgetting` ones as `degraded-256` is; for time with one seed, so that it is `learned-256-one` and `degraded-256-one`
that stand among them. Every learned edit is kept whatever it gained in learning. `edited` ones get the factors of
`learned-256` and decide nothing. `silenced` ones are silenced as `verified` is. Percentiles are on the same folds.
Methods as published score {PUBLISHED} of the search questions, at the answer. Beyond bias: accuracy less that of one
learned number for each place or label of an option. Side effects: accuracy on up to {ELSEWHERE} test questions of every
other task, and the log-probability of plain sentences, nats a token, each with the edit less without. Time is CPU time,
of making a row in one fold; scores that rows share, and judging, count in the hours at the end only.
"""


def main() -> int:
    try:
        results = Results(read(HERE / "results"))
        (DOCS / "images").mkdir(exist_ok=True)
        for name in PICTURES:
            path = DOCS / "images" / name
            if (picture := drawn(name, results)) is not None:
                path.write_text(picture, encoding="utf-8")
            else:
                path.unlink(missing_ok=True)
        (DOCS / "case_study.md").write_text(page(results), encoding="utf-8")
    except nl.InputError as error:
        print(f"page: error: {error}", file=sys.stderr)
        return 2
    print(f"{DOCS / 'case_study.md'}: {len(results.rows)} rows")
    return 0


def page(results: Results) -> str:
    """docs/case_study.md."""
    if not results.rows:
        return f"{HEAD}\nNo results have been committed yet.\n"
    lines = [HEAD, "## In short", "", *in_short(results), "", HOW]
    for name, title in PICTURES.items():
        if shown(name, results):
            lines += [f"![{title}](images/{name})", ""]
    for task in results.tasks:
        lines += of_task(results, task)
    return "\n".join([*lines, *roles(results), *still_missing(results), *conditions(results)])


# ---- in short ----


def in_short(results: Results) -> list[str]:
    """How often anything worked, and every row beside every task."""
    return [
        *(told(results, aim) for aim in ("enhance", "degrade")),
        "",
        *markdown_table(["row", "what it is", *results.tasks], [_brief(results, row) for row in there(results)]),
    ]


def there(results: Results, *tasks: str) -> list[str]:
    """Rows that have a result for one of these tasks (default: any); the others are named at the end of the page."""
    return [row for row in SINGLE if any(results.of(task, row) for task in tasks or results.tasks)]


def told(results: Results, aim: str) -> str:
    verdicts = [results.verdict(task, row) for row in SINGLE if ROWS[row].aim == aim for task in results.tasks]
    known = [verdict for verdict in verdicts if verdict is not None]
    yes, no, harm = (known.count(verdict) for verdict in ("yes", "no", "harm"))
    did = f"{yes} worked, {no} did not, and {harm} did the opposite"
    missing = len(verdicts) - len(known)
    return f"- **{aim}**: of {len(known)} pairs of a row and a task, {did}; {missing} pairs are missing."


def _brief(results: Results, row: str) -> list[str]:
    cells = []
    for task in results.tasks:
        own, verdict = results.of(task, row), results.verdict(task, row)
        if own is None:
            cells.append("missing")
        elif row == "base":
            cells.append(show(own.accuracy))
        else:
            cells.append(f"{points(own.gain)} {verdict or ''}".strip() + _partly(own))
    return [f"`{row}`", ROWS[row].what, *cells]


def _partly(own: Pooled) -> str:
    return "" if len(own.folds) == FOLDS else f" ({len(own.folds)} of {FOLDS} folds)"


def points(change: float) -> str:
    """Of accuracy, in percent.

    >>> points(-0.0312)
    '-3.1'
    """
    return f"{round(100 * change, 1) + 0.0:+.1f}"


# ---- a task ----

DID = ("row", "folds", "accuracy", "change", "flips", "McNemar p", "Holm p", *KINDS, "beyond bias", "worked")
COST = ("row", "neurons", "other tasks, points", "plain text, nats a token", "seconds")


def of_task(results: Results, task: str) -> list[str]:
    base = results.of(task, "base")
    if base is None:
        return [f"## {task}", "", "All of it is missing.", ""]
    rows = there(results, task)
    return [
        f"## {task}",
        "",
        f"{len(base.base)} questions, {len(base.folds)} of {FOLDS} folds. Among {', '.join(KINDS)} sets: percentiles.",
        "",
        *markdown_table(DID, [did(results, task, row) for row in rows]),
        "",
        *markdown_table(("sets", "there", "accuracy: lowest", "median", "highest"), _bands(results, task, base)),
        "",
        *markdown_table(COST, [cost(results, task, row) for row in rows if row != "base"]),
        "",
    ]


def did(results: Results, task: str, row: str) -> list[str]:
    """What a row did, as cells."""
    own = results.of(task, row)
    assert own is not None, "only rows that are there have cells"
    low, high = own.interval
    first = [f"`{row}`", str(len(own.folds)), f"{own.accuracy:.3f} ({low:.3f} to {high:.3f})"]
    if row == "base":
        return [*first, *["n/a"] * (len(DID) - 3)]
    tests = [points(own.gain), f"+{own.won} -{own.lost}", show(own.p), show(results.holm(row)[task])]
    places = [results.among(task, row, kind) for kind in KINDS]
    beyond = beyond_bias(results, task, own) if row != "bias" else None
    verdict = results.verdict(task, row)
    return [
        *first,
        *tests,
        *("n/a" if place is None else f"{place:.0f}" for place in places),
        "n/a" if beyond is None else points(beyond),
        (verdict or "n/a") + (", one answer" if own.collapsed else ""),
    ]


def beyond_bias(results: Results, task: str, own: Pooled) -> float | None:
    """Accuracy less that of the bias alone, on the folds that have both."""
    alone = results.of(task, "bias")
    if alone is None or not set(own.folds) <= set(alone.folds):
        return None
    kept = [row for row in alone.rows if row["fold"] in own.folds]
    return own.accuracy - Pooled(kept, own.bases).accuracy


def cost(results: Results, task: str, row: str) -> list[str]:
    """What it takes, and what it does elsewhere."""
    own = results.of(task, row)
    assert own is not None, "only rows that are there have cells"
    effects = [own.changes(name) for name in ("elsewhere", "texts")]
    other, texts = (None if effect is None else (effect.mean(), *bootstrap_interval(effect)) for effect in effects)
    return [
        f"`{row}`",
        how_many(own),
        "n/a" if other is None else f"{points(other[0])} ({points(other[1])} to {points(other[2])})",
        "n/a" if texts is None else f"{texts[0]:+.3f} ({texts[1]:+.3f} to {texts[2]:+.3f})",
        f"{own.mean('making'):.0f}",
    ]


def how_many(own: Pooled) -> str:
    """Neurons that are edited, or parameters that were trained instead."""
    given = [row["parameters"] for row in own.rows if row["parameters"] is not None]
    counts, what = ([row["neurons"] for row in own.rows], "") if not given else (given, " parameters")
    least, most = min(counts), max(counts)
    return (f"{least:,}" if least == most else f"{least:,} to {most:,}") + what


def _bands(results: Results, task: str, base: Pooled) -> list[list[str]]:
    rows = []
    for kind in KINDS:
        found = sorted(own.accuracy for own in results.sets(task, kind, base.folds))
        middle = (found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2 if found else None
        ends = [None, None, None] if not found else [found[0], middle, found[-1]]
        rows.append([f"`{kind}`", f"{len(found)} of {SETS}", *map(show, ends)])
    return rows


# ---- the rest ----


def roles(results: Results) -> list[str]:
    """How many factors went the way of their role."""
    learned = [row for row in there(results) if row.startswith(("learned-", "degraded-", "shuffled-"))]
    table = [[f"`{row}`", *(_with_role(results.of(task, row)) for task in results.tasks)] for row in learned]
    return [
        "## Which way factors went",
        "",
        "Good neurons up and bad ones down is with their role: the share of factors that moved so, and how many moved.",
        "",
        *markdown_table(["row", *results.tasks], table),
        "",
    ]


def _with_role(own: Pooled | None) -> str:
    counts = own.turned() if own else {}
    moved = sum(counts.values())
    return f"{(counts['good_up'] + counts['bad_down']) / moved:.0%} of {moved:,}" if moved else "n/a"


def still_missing(results: Results) -> list[str]:
    left = results.missing(FOLDS)
    if not left:
        return []
    listed = ", ".join(f"`{row}` {count}" for row, count in left.items())
    return ["## Missing", "", f"Files of rows that are not there yet: {listed}.", ""]


def conditions(results: Results) -> list[str]:
    rows = results.rows
    versions = {f"{name} {version}" for row in rows for name, version in row["versions"].items() if version}
    commits = {row["commit"][:10] + "+" * row["commit"].endswith("+") for row in rows if row["commit"]}
    machines = {f"{row['machine']['threads']} of {row['machine']['cores']} cores" for row in rows}
    recipe = ", ".join(f"{name} {value}" for name, value in RECIPE.items())
    return [
        "## Conditions",
        "",
        f"{len(rows)} files, {results.seconds / 3600:.1f} hours on {' or '.join(sorted(machines))}.",
        f"The recipe of learned rows is now: {recipe}; each file has its own.",
        f"{_list(sorted(versions))}. Commits: {_list(sorted(commits))}.",
        "",
    ]


def _list(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items)) or "unknown"


if __name__ == "__main__":
    sys.exit(main())
