"""What `nl.compare` returns: its numbers, and tables of them for a paper, a spreadsheet and the terminal."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.checks import short
from ..common.errors import InputError
from ..common.files import check_new_file, new_folder, read_json, write_json
from ..common.tables import markdown_table, print_table
from ..data.forms import check_known
from ..results.neurons import NeuronSet
from ..results.pictures import curves_figure, layers_figure, map_figure
from ..results.shown import Shown
from .pcr import pcr_latex, pcr_tables
from .request import COMPARISON
from .rows import (
    ANSWERS,
    ANSWERS_SAY,
    CHANGES,
    CHANGES_SAY,
    COLUMNS,
    EDITS,
    SCORES,
    SCORES_SAY,
    cells,
    edits_latex,
    rows_of,
    score_cells,
    unmeasured,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMINGS = "timings.json"


TABLES = ("edits", "pcr")
PLOTS = {"k": "curves", "map": "maps", "layers": "methods"}  # and where their numbers are


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
        return rows_of(self.data)

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
            return _written(edits_latex(self.rows), path)
        if not (found := pcr_tables(self.data)):
            raise InputError('table="pcr": it needs two tasks, and an edit that changes something')
        return _written(pcr_latex(found), path)

    def to_markdown(self) -> str:
        """A sentence and two tables a task, of its scores and of its edits, and the PCR of every edit."""
        parts = []
        for task in self.data["tasks"]:
            parts += [task["summary"], "", *markdown_table(SCORES, score_cells(self.data, task["name"])), ""]
            parts += [*markdown_table(EDITS, self._cells(task["name"], EDITS)), ""]
        for table in pcr_tables(self.data):
            parts += [table.title, "", *markdown_table(table.columns, table.cells), ""]
        return "\n".join(parts)

    def _shown(self) -> tuple[str, dict[str, Any]]:
        return "comparison", self.data

    def plot(self, kind: str = "k", task: str | None = None, method: str | None = None, title: str = "") -> Figure:
        """A figure of matplotlib.

        kind: "k", accuracy against the number of neurons with the bands of random sets, of all tasks and methods or of
        those named; "map", the scores of a method on a task, layers by neurons; "layers", how many of the neurons that
        it found lie in each layer.

        >>> comparison.plot().savefig("curves.pdf")                                      # doctest: +SKIP
        >>> comparison.plot("map", task="facts", method="gradient").savefig("map.pdf")   # doctest: +SKIP
        """
        if kind not in PLOTS:
            raise InputError(
                f"kind={short(kind)}: what can be plotted is {', '.join(PLOTS)}; a title is given as title="
            )
        for name, value in (("task", task), ("method", method)):
            check_known(name, value, self._names(name))
        if kind == "k":
            return self._curves(task, method, title)
        where = {name: self._only(kind, name, value) for name, value in (("task", task), ("method", method))}
        found = next(one for one in self.data[PLOTS[kind]] if where.items() <= one.items())
        title = title or ", ".join(where.values())
        return (
            map_figure(found["rows"], found["bin"], title) if kind == "map" else layers_figure(found["layers"], title)
        )

    def _curves(self, task: str | None, method: str | None, title: str) -> Figure:
        base = {one["name"]: one["base"]["accuracy"] for one in self.data["tasks"]}
        asked = [one for one in self.data["curves"] if task in (None, one["task"]) and method in (None, one["method"])]
        if not asked:
            raise InputError(
                'kind="k": this comparison has no curves, which are those of the edits enhance and degrade'
            )
        behind = [{**curve, "points": [point for point in curve["points"] if point["k"]]} for curve in asked]
        return curves_figure(behind, base, title)

    def _names(self, what: str) -> list[str]:
        return list(dict.fromkeys(one[what] for one in self.data["methods"]))

    def _only(self, kind: str, what: str, name: str | None) -> str:
        """The task or the method that was named, or the only one that there is."""
        first, *others = self._names(what)
        if name is None and others:
            raise InputError(f'kind="{kind}": it is of one {what}, give {what}= one of {", ".join([first, *others])}')
        return name or first

    def print(self) -> None:
        """The same on the terminal, where the table of edits is too wide for one."""
        for task in self.data["tasks"]:
            name = task["name"]
            print("\n".join([task["summary"], *(one["said"] for one in task.get("shared", ()))]))
            print_table(f"{name}, {SCORES_SAY}", SCORES, score_cells(self.data, name))
            print("".join(f"{line}\n" for line in unmeasured(self.data, name)), end="")
            print_table(f"{name}, edits: {ANSWERS_SAY}", ANSWERS, self._cells(name, ANSWERS))
            print_table(f"{name}, the same edits: {CHANGES_SAY}", CHANGES, self._cells(name, CHANGES))
        for table in pcr_tables(self.data):
            print_table(table.title, table.columns, table.cells)

    def _cells(self, task: str, names: Sequence[str]) -> list[list[str]]:
        return cells([row for row in self.rows if row["task"] == task], names)

    def __repr__(self) -> str:
        tasks, edits = (len(self.data[what]) for what in ("tasks", "edits"))
        methods = len({one["method"] for one in self.data["methods"]})
        return f"Comparison({tasks} tasks, {methods} methods, {edits} edits of {self.data['model']['name']})"


def _written(text: str, path: str | os.PathLike[str] | None) -> str:
    if path is not None:
        check_new_file(path)
        Path(path).write_text(text, encoding="utf-8")
    return text
