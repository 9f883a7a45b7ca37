"""QRNCA's table, domains by methods: how much an edit changes P(right) on its own task, beside all other tasks.

PCR is the size of the first change over that of the second; both are means over prompts of the relative change of the
probability of the right answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..common.tables import show
from .latex import escaped, latex_row


class Ratio(NamedTuple):
    """Of the edit for a task: the relative change of P(right) there and on all other tasks, and their ratio."""

    own: float | None
    others: float | None
    pcr: float | None

    def __str__(self) -> str:
        """
        >>> print(Ratio(0.25, -0.0125, 20.0))
        20.000 (+0.250, -0.013)
        """
        return "n/a" if self.pcr is None else f"{show(self.pcr)} ({signed(self.own)}, {signed(self.others)})"


class PcrTable(NamedTuple):
    """Of one edit: a row a task, and in it a ratio a method."""

    edit: str
    methods: list[str]
    rows: dict[str, list[Ratio]]

    @property
    def title(self) -> str:
        return f"PCR of {self.edit} (relative change of P(right), mean over prompts, on its task, on the others)"

    @property
    def columns(self) -> list[str]:
        return ["task", *self.methods]

    @property
    def cells(self) -> list[list[str]]:
        return [[task, *map(str, row)] for task, row in self.rows.items()]


def pcr_tables(data: dict[str, Any]) -> list[PcrTable]:
    """A table for every edit that changes anything, of comparison.json; none where there is one task only."""
    names = {what: list(dict.fromkeys(one[what] for one in data["edits"])) for what in ("task", "method", "edit")}
    found = {
        (one["edit"], one["task"], one["method"]): Ratio(one["p_change"], one["p_change_elsewhere"], one["pcr"])
        for one in data["edits"]
    }
    tables = []
    for edit in names["edit"]:
        rows = {task: [found[edit, task, method] for method in names["method"]] for task in names["task"]}
        tables.append(PcrTable(edit, names["method"], rows))
    return [table for table in tables if any(one.pcr is not None for row in table.rows.values() for one in row)]


def pcr_latex(tables: list[PcrTable]) -> str:
    """All edits in one LaTeX table (package booktabs): under every method the two changes, and the PCR."""
    methods = tables[0].methods
    spans = [rf"\multicolumn{{3}}{{c}}{{{escaped(method)}}}" for method in methods]
    rules = [rf"\cmidrule(lr){{{3 * n + 3}-{3 * n + 5}}}" for n in range(len(methods))]
    lines = [rf"\begin{{tabular}}{{ll{'rrr' * len(methods)}}}", r"\toprule", " & ".join(["", "", *spans]) + r" \\"]
    lines += ["".join(rules), latex_row(["edit", "task", *["own", "others", "PCR"] * len(methods)])]
    for table in tables:
        lines.append(r"\midrule")
        for task, row in table.rows.items():
            numbers = [cell for one in row for cell in (signed(one.own), signed(one.others), show(one.pcr))]
            lines.append(latex_row([table.edit, task, *numbers]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def signed(value: float | None) -> str:
    return show(value) if value is None else f"{value:+.3f}"
