"""What `nl.compare` returns: its numbers, and tables of them for a paper, a spreadsheet and the terminal."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.errors import InputError
from ..common.files import check_new_file, new_folder, read_json, write_json
from ..common.tables import markdown_table, print_table, show
from ..data.forms import check_known
from ..results.neurons import NeuronSet
from ..results.pictures import curves_figure
from ..results.shown import Shown
from .latex import latex_row
from .pcr import pcr_latex, pcr_tables
from .request import COMPARISON

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMINGS = "timings.json"


class Column(NamedTuple):
    name: str
    value: Callable[[dict[str, Any], dict[str, Any]], Any]  # of an edit, and of its method on its task


COLUMNS = (
    Column("task", lambda edit, method: edit["task"]),
    Column("method", lambda edit, method: edit["method"]),
    Column("edit", lambda edit, method: edit["edit"]),
    Column("neurons", lambda edit, method: edit["neurons"]),
    Column("accuracy", lambda edit, method: edit["accuracy"]),
    Column("low", lambda edit, method: edit["interval"][0]),
    Column("high", lambda edit, method: edit["interval"][1]),
    Column("gain", lambda edit, method: edit["gain"]),
    Column("P(right)", lambda edit, method: edit["p_right"]),
    Column("RAC", lambda edit, method: edit["rac"]),
    Column("RCC", lambda edit, method: edit["rcc"]),
    Column("PCR", lambda edit, method: edit["pcr"]),
    Column("beats", lambda edit, method: edit["controls"] and edit["controls"]["place"]),
    Column("p", lambda edit, method: edit["p"]),
    Column("p, Holm", lambda edit, method: edit["p_holm"]),
    Column("agreement", lambda edit, method: method["agreement"] and method["agreement"]["spearman"]),
    Column("stability", lambda edit, method: method["stability"] and method["stability"]["spearman"]),
    Column("verdict", lambda edit, method: edit["verdict"]),
)
SHORT = ("method", "edit", "neurons", "accuracy", "gain", "PCR", "beats", "p, Holm")  # what a terminal has room for
PRINTED = (
    "task",
    "method",
    "edit",
    "neurons",
    "accuracy",
    "gain",
    "RAC",
    "RCC",
    "PCR",
    "beats",
    "p, Holm",
    "agreement",
)
TABLES = ("edits", "pcr")


@dataclass(frozen=True)
class Comparison(Shown):
    """The numbers of a comparison: `data` as comparison.json has them, `timings` as measured by the clock.

    >>> comparison = nl.compare(model, tokenizer, tasks)      # doctest: +SKIP
    >>> comparison.to_latex("table.tex")                      # doctest: +SKIP
    """

    data: dict[str, Any]
    timings: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Comparison:
        """Read what a comparison left in a folder."""
        data = read_json(folder, COMPARISON, "comparison")
        if not isinstance(data, dict) or data.get("format") != "neuronllm-comparison" or data.get("version") != 1:
            raise InputError(f"{Path(folder) / COMPARISON}: not a comparison as written here; compare again")
        timings = read_json(folder, TIMINGS, "comparison") if (Path(folder) / TIMINGS).is_file() else {}
        return cls(data, timings, Path(folder))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the numbers into a new folder, without the neuron sets."""
        with new_folder(folder, COMPARISON) as temporary:
            write_json(temporary / TIMINGS, self.timings)
            write_json(temporary / COMPARISON, self.data, indent=None)

    def neurons(self, task: str, method: str, edit: str) -> NeuronSet:
        """The neurons of an edit."""
        if self.folder is None:
            raise InputError("neurons: this comparison was made without output=, so its neuron sets are gone")
        made = [(row["task"], row["method"], row["edit"]) for row in self.data["edits"]]
        if (task, method, edit) not in made:
            tasks, methods, edits = (", ".join(dict.fromkeys(names)) for names in zip(*made, strict=True))
            raise InputError(
                f"neurons: no {task}/{method}/{edit} in this comparison: its tasks are {tasks}, "
                f"its methods {methods}, its edits {edits}"
            )
        return NeuronSet.from_pretrained(self.folder / "sets" / task / method / edit)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table: one row for every edit of every method on every task."""
        methods = {(one["task"], one["method"]): one for one in self.data["methods"]}
        return [
            {name: value(edit, methods[edit["task"], edit["method"]]) for name, value in COLUMNS}
            for edit in self.data["edits"]
        ]

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The table with all columns as CSV text; with `path`, written to a new file too."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [column.name for column in COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return _written(text.getvalue(), path)

    def to_latex(self, path: str | os.PathLike[str] | None = None, table: str = "edits") -> str:
        """A table as LaTeX (package booktabs); with `path`, written to a new file too.

        table: "edits", a row for every edit of every method on every task; "pcr", QRNCA's table of two or more tasks,
        how much an edit changes P(right) on its own task (rows) by every method (columns), beside all other tasks.
        """
        check_known("table", table, TABLES)
        if table == "edits":
            return _written(self._edits_latex(), path)
        if not (found := pcr_tables(self.data)):
            raise InputError('table="pcr": it needs two tasks, and an edit that changes something')
        return _written(pcr_latex(found), path)

    def _edits_latex(self) -> str:
        names, task = PRINTED, None
        lines = [rf"\begin{{tabular}}{{lll{'r' * (len(names) - 3)}}}", r"\toprule", latex_row(names), r"\midrule"]
        for row in self.rows:
            if task not in (None, row["task"]):
                lines.append(r"\midrule")
            task = row["task"]
            lines.append(latex_row([_cell(row, name) for name in names]))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def to_markdown(self) -> str:
        """A sentence and a table a task, and the PCR of every edit."""
        parts = []
        for task in self.data["tasks"]:
            parts += [task["summary"], "", *markdown_table(SHORT, self._cells(task["name"])), ""]
        for table in pcr_tables(self.data):
            parts += [table.title, "", *markdown_table(table.columns, table.cells), ""]
        return "\n".join(parts)

    def _shown(self) -> tuple[str, dict[str, Any]]:
        return "comparison", self.data

    def plot(self, title: str = "") -> Figure:
        """Accuracy against the number of neurons, with the bands of random sets, as a figure of matplotlib.

        >>> comparison.plot().savefig("curves.pdf")   # doctest: +SKIP
        """
        base = {task["name"]: task["base"]["accuracy"] for task in self.data["tasks"]}
        behind = [{**curve, "points": [p for p in curve["points"] if p["k"]]} for curve in self.data["curves"]]
        return curves_figure(behind, base, title)

    def print(self) -> None:
        """The same on the terminal."""
        for task in self.data["tasks"]:
            print_table(task["summary"], SHORT, self._cells(task["name"]))
        for table in pcr_tables(self.data):
            print_table(table.title, table.columns, table.cells)
        print_table("Rank correlation with the exact effects, and between halves of the questions", *self._methods())

    def _methods(self) -> tuple[list[str], list[list[Any]]]:
        """How far the scores of every method can be trusted, task by task."""
        names = [task["name"] for task in self.data["tasks"]]
        found = {(one["method"], one["task"]): one for one in self.data["methods"]}
        rows = []
        for method in dict.fromkeys(one["method"] for one in self.data["methods"]):
            cells = [found[method, name] for name in names]
            agreement = [cell["agreement"] and cell["agreement"]["spearman"] for cell in cells]
            rows.append([method, *agreement, *(cell["stability"] and cell["stability"]["spearman"] for cell in cells)])
        return ["method", *names, *(f"{name}, halves" for name in names)], rows

    def _cells(self, task: str) -> list[list[str]]:
        return [[_cell(row, name) for name in SHORT] for row in self.rows if row["task"] == task]

    def __repr__(self) -> str:
        tasks, edits = (len(self.data[what]) for what in ("tasks", "edits"))
        methods = len({one["method"] for one in self.data["methods"]})
        return f"Comparison({tasks} tasks, {methods} methods, {edits} edits of {self.data['model']['name']})"


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if name in ("gain", "RAC", "RCC") and value is not None:
        return f"{value:+.3f}"
    return f"{value:.0%}" if name == "beats" and value is not None else show(value)


def _written(text: str, path: str | os.PathLike[str] | None) -> str:
    if path is not None:
        check_new_file(path)
        Path(path).write_text(text, encoding="utf-8")
    return text
