"""From JSON to text: the page docs/leaderboard.md, of the results of the suite `quality`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from neuronllm.common.tables import markdown_table, show

from .conditions import busy, conditions, missing, place
from .units import ratio, runs, seconds

SUITE = "quality"
FAITHFULNESS, STEERING = f"{SUITE}.faithfulness", f"{SUITE}.steering"
CHANCE = "random"  # the method that knows nothing
DEMO = "demo"
SURE = 0.05  # McNemar's p of an edit that worked is below

HEAD = """# Leaderboard of the methods

This page is generated: `python -m bench report` writes it from the files in `bench/results/`, and a test fails when it
says anything else. `bench/README.md` says how the figures come about.
"""
FAITHFUL = """## Faithfulness and cost

The truth is what the objective `logp_options`, the log-probability of the right option among the options, really loses
when a neuron is silenced (`exact`, every neuron run). Spearman compares the ranks of all neurons of a prompt; the
overlap is the share of the k most helpful (highest) or most harmful (lowest) neurons that a method finds. All are means
over the prompts of a task at the answer position, every method with its own objective: one that scores by another
objective is judged by the same truth. Random weights show what comes from the arithmetic of a method rather than from
what a model learned. `contrast` compares prompts answered right with prompts answered wrong, so it has no score of a
single prompt. Where a norm follows the FFN (`narrow-olmo2`), scaling a whole layer changes nothing, integrated
gradients are the gradient times a constant, and `ace` ranks as `gradient` does.

Cost is the time of a prompt over that of plain inference at its best batch size; models this small exaggerate what
comes on top. Columns of times say "busy machine" where others were at work as a run began (a load above 1.1 for each
core): take those figures with care. Ranks and overlaps do not depend on it.
"""
STEERED = """## Steering on held-out questions

Neurons are scored on the search questions of a task and edited on its test questions, which are about other items:
degrade silences the good ones and doubles the bad ones, enhance the other way around. Beside each stand 20 random sets
with as many neurons in each layer: their middle 95 %, which of so few is nearly their whole range, and the percentile
of the edit among them. An edit "worked" if it moved accuracy the wished way, beyond that band, McNemar's exact test of
the changed questions says p < .05, and the letters did not collapse onto one; anything else is shown, and is no
steering. Nothing is corrected for the number of tests. Where degrading would count, but enhancing the same neurons
lowers accuracy too, however little, the verdict is "damage": such a set breaks something when it is touched at all.
docs/demo.md looks closer at `gradient` at all positions, on other set sizes, and with tuned factors.
"""


def page(results: Sequence[dict[str, Any]]) -> str:
    """docs/leaderboard.md.

    >>> print(page([]).splitlines()[-1])
    No results have been committed yet.
    """
    faithful = latest(r for r in results if r["benchmark"] == FAITHFULNESS)
    steering = latest(r for r in results if r["benchmark"] == STEERING)
    if not faithful and not steering:
        return f"{HEAD}\nNo results have been committed yet.\n"
    lines = [HEAD]
    if faithful:
        lines += [FAITHFUL, *ranking(faithful)]
        for result in faithful:
            lines += details(result)
    if steering:
        lines += [STEERED, *in_short(steering[0]), *steering_tables(steering[0])]
    lines += ["## Conditions", "", *conditions([*faithful, *steering])]
    return "\n".join([*lines, *missing(results, lambda suite: suite == SUITE)])


def latest(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result a model, the bundled one first: that of the fewest threads on a CPU, as ranks are the same in all."""
    found: dict[str, dict[str, Any]] = {}
    for result in sorted(results, key=lambda r: (r["device"] != "cpu", r["threads"])):
        found.setdefault(result["shape"], result)
    return sorted(found.values(), key=lambda r: (r["shape"] != DEMO, r["shape"]))


def records(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result's facts, by the names of the columns."""
    names = list(result["facts"]["columns"])
    return [dict(zip(names, row, strict=True)) for row in result["facts"]["rows"]]


def called(result: dict[str, Any], task: str) -> str:
    return task if result["shape"] == DEMO else result["shape"]


def costs(result: dict[str, Any]) -> dict[str, float]:
    """Time of each method over that of inference."""
    return {view["what"]: view["ratio"] for view in result["views"]}


# ---- faithfulness ----


def ranking(results: Sequence[dict[str, Any]]) -> list[str]:
    """One row a method, the most faithful first, on the bundled model if it is there: Spearman, mean overlaps, cost."""
    by_method: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        for record in records(result):
            by_method.setdefault(record["method"], {})[called(result, record["task"])] = record
    places = list(dict.fromkeys(place for found in by_method.values() for place in found))
    overlaps = [name for name in results[0]["facts"]["columns"] if name not in ("task", "method", "Spearman")]
    random = {result["shape"] for result in results if result["shape"] != DEMO}
    groups = {"bundled": [p for p in places if p not in random], "random": [p for p in places if p in random]}
    groups = {name: some for name, some in groups.items() if some}

    def mean(method: str, places: Sequence[str], key: str) -> float | None:
        return _mean(by_method[method][place][key] for place in places if place in by_method[method])

    first, leading = next(iter(groups.items()))

    def order(method: str) -> float:
        return -(mean(method, leading, "Spearman") or -1.0)

    rows = []
    for name in sorted(by_method, key=order):
        figures = [mean(name, some, "Spearman") for some in groups.values()]
        figures += [mean(name, leading, key) for key in overlaps]
        figures += [by_method[name].get(place, {}).get("Spearman") for place in places]
        rows.append([f"`{name}`", *map(_figure, figures), _cost(results, name)])
    cost = "cost, busy machine" if any(map(busy, results)) else "cost"
    means = [f"Spearman, {group}" for group in groups] + [f"{key}, {first}" for key in overlaps]
    columns = ["method", *means, *places, cost]
    return [
        "First means over the tasks of the bundled model, by which the methods are sorted, and over the random models; "
        "then Spearman of each task and of each random model:",
        "",
        *markdown_table(columns, rows),
        "",
    ]


def _figure(value: float | None) -> str:
    """Three decimals, also of what is nearly nothing."""
    return "n/a" if value is None else f"{round(value, 3) + 0.0:.3f}"  # + 0.0: no -0.000


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _cost(results: Sequence[dict[str, Any]], method: str) -> str:
    """The smallest and the largest cost of the models."""
    found = sorted(some[method] for some in map(costs, results) if method in some)
    return f"{ratio(found[0])} to {ratio(found[-1])}" if found else "n/a"


def details(result: dict[str, Any]) -> list[str]:
    """All figures of one model."""
    cost, sides = costs(result), result["sides"]
    columns = [name for name in result["facts"]["columns"] if name != "task"]
    several = len({record["task"] for record in records(result)}) > 1
    rows = []
    for record in records(result):
        figures = [_figure(record[name]) for name in columns[1:]]
        task = [record["task"]] if several else []
        rows.append(
            [
                *task,
                f"`{record['method']}`",
                *figures,
                seconds(sides[record["method"]]["median"]),
                ratio(cost[record["method"]]),
            ]
        )
    marked = ", busy machine" if busy(result) else ""
    heads = [*(["task"] if several else []), *columns, f"time a prompt{marked}", f"cost{marked}"]
    model, chance = result["settings"]["model"], [f"{k / result['settings']['neurons']:.3f} at {k}" for k in (10, 100)]
    truth = f"`exact` takes {seconds(sides['exact']['median'])} a prompt, {ratio(cost['exact'])} inference"
    times = sorted({runs(side) for side in sides.values() if "times" in side})
    return [
        f"### {result['shape']}",
        "",
        f"{model}. Overlap by chance: {', '.join(chance)}. {truth}. Times are of {place(result)}, "
        f"medians of {' or '.join(times)}.",
        "",
        *markdown_table(heads, rows),
        "",
    ]


# ---- steering ----


def verdict(record: dict[str, Any], other: dict[str, Any]) -> str:
    """ "yes" if an edit did what it should: beyond random sets and chance, and not by answering one letter.

    "damage" if the other mode's edit of the same neurons lowers accuracy as degrading does; "no" otherwise.
    """
    if record["letters"] == "collapsed" or record["p"] >= SURE:
        return "no"
    accuracy = record["accuracy"]
    if record["mode"] == "enhance":
        return "yes" if accuracy > max(record["random high"], record["base"]) else "no"
    if accuracy >= min(record["random low"], record["base"]):
        return "no"
    return "damage" if other["accuracy"] < other["base"] else "yes"


def judged(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The edits of a result, each with its verdict."""
    found = {(r["task"], r["method"], r["mode"]): r for r in records(result)}
    other = {"degrade": "enhance", "enhance": "degrade"}
    return [
        record | {"worked": verdict(record, found[task, method, other[mode]])}
        for (task, method, mode), record in found.items()
    ]


def in_short(result: dict[str, Any]) -> list[str]:
    """On how many tasks each method did something, and what all of it amounts to."""
    edits = judged(result)
    rows, tasks = [], sorted({edit["task"] for edit in edits})
    methods = list(dict.fromkeys(edit["method"] for edit in edits))
    found = {(edit["method"], edit["mode"], edit["task"]): edit for edit in edits}
    for name in methods:
        cells = []
        for mode in ("degrade", "enhance"):
            some = [found[name, mode, task] for task in tasks]
            did = [r["task"] for r in some if r["worked"] == "yes"]
            cells += [
                _points(_mean(r["accuracy"] - r["base"] for r in some)),
                f"{len(did)} of {len(tasks)}" + (f": {', '.join(did)}" if did else ""),
            ]
        rows.append([f"`{name}`", *cells])
    heads = ["method", "degrade: mean change", "worked", "enhance: mean change", "worked"]
    return [*(_told(edits, mode) for mode in ("degrade", "enhance")), "", *markdown_table(heads, rows), ""]


def _told(found: Sequence[dict[str, Any]], mode: str) -> str:
    mine = [record for record in found if record["mode"] == mode and record["method"] != CHANCE]
    did, harm = (sum(r["worked"] == what for r in mine) for what in ("yes", "damage"))
    collapsed = sum(r["letters"] == "collapsed" for r in mine)
    wrong_way = sum(r["accuracy"] > r["base"] if mode == "degrade" else r["accuracy"] < r["base"] for r in mine)
    letters = f"; the letters collapsed in {collapsed}" if collapsed else "; the letters collapsed in none"
    verb = "raised" if mode == "degrade" else "lowered"
    return (
        f"- **{mode}** worked in {did} of {len(mine)} pairs of a method and a task (`{CHANCE}` not "
        f"counted), {f'did damage in {harm}, ' if harm else ''}and {verb} accuracy in {wrong_way}{letters}."
    )


def steering_tables(result: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    edits = judged(result)
    for task in sorted({edit["task"] for edit in edits}):
        mine = [edit for edit in edits if edit["task"] == task]
        lines += [
            f"### {task}",
            "",
            f"{mine[0]['questions']} test questions, accuracy {show(mine[0]['base'])} unedited.",
            "",
        ]
        heads = [
            "method",
            "mode",
            "neurons",
            "accuracy",
            "change",
            "random sets",
            "percentile",
            "McNemar p",
            "letters",
            "worked",
        ]
        lines += [*markdown_table(heads, [_steered(record) for record in mine]), ""]
    return lines


def _steered(record: dict[str, Any]) -> list[str]:
    band = f"{show(record['random low'])} to {show(record['random high'])}"
    change = _points(record["accuracy"] - record["base"])
    shown = [
        show(record["accuracy"]),
        change,
        band,
        f"{record['percentile']:.0f}",
        show(record["p"]),
        record["letters"],
    ]
    return [
        f"`{record['method']}`",
        record["mode"],
        str(record["neurons"]),
        *shown,
        record["worked"],
    ]


def _points(change: float | None) -> str:
    return "n/a" if change is None else f"{100 * change:+.1f} points"
