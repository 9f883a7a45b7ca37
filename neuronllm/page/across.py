"""Tasks, and methods, side by side: what their neurons share, and what an edit for one task does to the others."""

from __future__ import annotations

from itertools import product
from typing import Any

from .cells import Cell, Column, Row, Table, decimals, number, text
from .tables import EDIT, METHOD, TASK, address, left, opens, row_of

Facts = dict[str, Any]
JACCARD = "Jaccard index, beside it that of random sets"


def pcr(comparison: Facts) -> Table | None:
    """QRNCA's table, domains by methods: how much an edit changes P(right) on its own domain beside all others."""
    if len(comparison["tasks"]) < 2:
        return None
    found = {(edit["edit"], edit["task"], edit["method"]): edit for edit in comparison["edits"]}
    edits, tasks, methods = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    hint = "PCR (relative change of P(right), a mean over prompts, on the edit's own task, and on all other tasks)"
    columns = [EDIT, TASK, *(Column(method, hint) for method in methods)]
    rows = []
    for edit, task in product(edits, tasks):
        cells = [_ratio(found[edit, task, method]) for method in methods]
        rows.append(Row([text(edit), text(task), *cells], {"edit": edit, "task": task}))
    caption = "PCR, and in brackets the relative change of P(right), mean over prompts, on its task and on the others"
    return Table("pcr", caption, columns, rows, ("edit", "task"), page=40)


def _ratio(edit: Facts) -> Cell:
    if edit["pcr"] is None:
        return number(None)
    values = edit["pcr"], edit["p_change"], edit["p_change_elsewhere"]
    ratio, *changes = values
    said = ", ".join(decimals(change, sign=True) for change in changes)
    return Cell(f"{decimals(ratio, 2)} ({said})", values, "number")


def elsewhere(comparison: Facts) -> Table:
    """Accuracy under every edit on the tasks that it is not for."""
    columns = [left("Edit for"), METHOD, EDIT, left("On task"), Column("Before"), Column("After")]
    rows = []
    for edit in comparison["edits"]:
        for other, seen in edit["elsewhere"].items():
            cells = [text(other), number(seen["before"]), number(seen["after"])]
            rows.append(row_of(edit["task"], edit["method"], edit["edit"], cells))
    caption = "Accuracy of every edit on the other tasks"
    return Table("elsewhere", caption, columns, rows, ("task", "method", "edit"), page=25)


def two_faced(comparison: Facts) -> Table:
    """Neurons that a method calls good for one task and bad for another."""
    columns = [METHOD, left("Neuron", "layer · neuron"), left("Good for"), left("Bad for")]
    cards = {card["id"]: n for n, card in reversed(list(enumerate(comparison["cards"])))}
    rows = []
    for found in comparison["across_tasks"]:
        for neuron in found["two_faced"]:
            number = cards.get(neuron["id"])
            who = text(address(neuron)) if number is None else opens(neuron, number)
            tasks = [text(", ".join(neuron[role])) for role in ("good", "bad")]
            rows.append(Row([text(found["method"]), who, *tasks], {"method": found["method"]}))
    return Table("faces", "Good for one task, bad for another", columns, rows, ("method",), page=20)


def by_method(comparison: Facts) -> list[Facts]:
    """For every method its matrices: what an edit for a task does to another, and what the tasks' neurons share."""
    shared = (
        ("good", "Good neurons of both tasks", JACCARD),
        ("bad", "Bad neurons of both tasks", JACCARD),
        ("good_bad", "Good for the row's task, bad for the column's", JACCARD),
    )
    changed = "Change of accuracy on the column's task under the edit for the row's"
    groups = []
    for found in comparison["across_tasks"]:
        names, moved = found["names"], found["transfer"]
        matrices = [_matrix(f"Transfer: {one['edit']}", changed, names, one["change"], _changed) for one in moved]
        matrices += [_matrix(title, about, names, found[name], _shared) for name, title, about in shared]
        groups.append({"name": found["method"], "matrices": matrices})
    return groups


def by_task(comparison: Facts) -> list[Facts]:
    """For every task its matrices: what the neurons of the methods share."""
    shared = (("good", "Good neurons of both methods"), ("bad", "Bad neurons of both methods"))
    return [
        {
            "name": found["task"],
            "matrices": [_matrix(title, JACCARD, found["names"], found[name], _shared) for name, title in shared],
        }
        for found in comparison["across_methods"]
    ]


def _matrix(title: str, about: str, names: list[str], values: list[list[Any]], cell: Any) -> Facts:
    return {"title": title, "about": about, "names": names, "rows": [[cell(value) for value in row] for row in values]}


def _shared(cell: Facts) -> Facts:
    """A cell of overlap, tinted by how far it is above chance."""
    above = max(0.0, cell["jaccard"] - cell["chance"])
    return {"cell": number(cell["jaccard"], 2), "beside": number(cell["chance"], 2), "tint": _tint(above), "sign": "up"}


def _changed(value: float | None) -> Facts:
    sign = "down" if value is not None and value < 0 else "up"
    return {"cell": number(value, sign=True), "beside": None, "tint": _tint(2 * abs(value or 0)), "sign": sign}


def _tint(share: float) -> int:
    return min(5, round(5 * share))
