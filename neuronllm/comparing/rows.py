"""The numbers of a comparison as rows and as text: for the terminal, for Markdown, and for a paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..common.tables import show
from .latex import latex_row

Facts = dict[str, Any]


class Column(NamedTuple):
    name: str
    value: Callable[[Facts, Facts], Any]  # of an edit, and of its method on its task


def _of(what: str, name: str) -> Callable[[Facts, Facts], Any]:
    """A number of the method's agreement or stability, where it has one."""
    return lambda edit, method: method[what] and method[what][name]


def _end(number: int) -> Callable[[Facts, Facts], Any]:
    return lambda edit, method: ((method["agreement"] or {}).get("interval") or (None, None))[number]


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
    Column("to right", lambda edit, method: edit["flips"]["to_right"]),
    Column("to wrong", lambda edit, method: edit["flips"]["to_wrong"]),
    Column("other", lambda edit, method: edit["flips"]["other"]),
    Column("beats", lambda edit, method: edit["controls"] and edit["controls"]["place"]),
    Column("p", lambda edit, method: edit["p"]),
    Column("p, Holm", lambda edit, method: edit["p_holm"]),
    Column("agreement", _of("agreement", "spearman")),
    Column("agreement low", _end(0)),
    Column("agreement high", _end(1)),
    Column("agreement neurons", _of("agreement", "neurons")),
    Column("agreement questions", _of("agreement", "questions")),
    Column("stability", _of("stability", "spearman")),
    Column("verdict", lambda edit, method: edit["verdict"]),
)
INTERVAL, FLIPS = "95 % interval", "flips"  # made of several columns
ANSWERS = ("method", "edit", "accuracy", INTERVAL, FLIPS, "beats", "p, Holm")  # two tables have room in a terminal
CHANGES = ("method", "edit", "neurons", "P(right)", "RAC", "RCC", "PCR")
EDITS = (*ANSWERS[:2], "neurons", *ANSWERS[2:5], "gain", "P(right)", "RAC", "RCC", "PCR", *ANSWERS[5:])
SCORES = ("method", "agreement", INTERVAL, "neurons", "questions", "halves")
SCORES_SAY = "scores: rank correlation with exact effects of these neurons on these questions; between halves"
ANSWERS_SAY = "flips to right and to wrong; the share of random sets that it beats; p of the flips"
CHANGES_SAY = "relative change of accuracy (RAC) and of P(right) (RCC; PCR beside other tasks)"


def rows_of(data: Facts) -> list[Facts]:
    """One row for every edit of every method on every task, with all columns."""
    methods = {(one["task"], one["method"]): one for one in data["methods"]}
    return [
        {name: value(edit, methods[edit["task"], edit["method"]]) for name, value in COLUMNS} for edit in data["edits"]
    ]


def cells(rows: Sequence[Facts], names: Sequence[str]) -> list[list[str]]:
    return [[_cell(row, name) for name in names] for row in rows]


def _cell(row: Facts, name: str) -> str:
    """
    >>> _cell({"low": 0.25, "high": 0.5}, INTERVAL), _cell({"to right": 3, "to wrong": 1}, FLIPS)
    ('0.25 to 0.50', '+3 -1')
    >>> _cell({"PCR": 2.5}, "PCR"), _cell({"PCR": 66688.7}, "PCR")
    ('2.500', '6.7e+04')
    """
    if name == INTERVAL:
        return between(row["low"], row["high"])
    if name == FLIPS:
        return f"+{row['to right']} -{row['to wrong']}"
    value = row[name]
    if name in ("gain", "RAC", "RCC") and value is not None:
        return f"{value:+.3f}"
    if name == "PCR" and value is not None and value >= 1000:  # next to nothing changed elsewhere
        return f"{value:.1e}"
    return f"{value:.0%}" if name == "beats" and value is not None else show(value)


def between(low: float | None, high: float | None) -> str:
    return show(None) if low is None or high is None else f"{low:.2f} to {high:.2f}"


def score_cells(data: Facts, task: str) -> list[list[str]]:
    """How far the scores of every method can be trusted: a row a method."""
    found = []
    for one in data["methods"]:
        if one["task"] == task:
            agreement, stability = one["agreement"] or {}, one["stability"] or {}
            interval = between(*(agreement.get("interval") or (None, None)))
            neurons = f"{agreement['neurons']} {'sampled' if agreement['sampled'] else 'all'}" if agreement else None
            figures = [agreement.get("spearman"), interval, neurons, agreement.get("questions")]
            found.append([one["method"], *map(show, [*figures, stability.get("spearman")])])
    return found


def unmeasured(data: Facts, task: str) -> list[str]:
    """Why methods have no agreement, a line each."""
    return [
        f"{one['method']} has no agreement: {one['no_agreement']}"
        for one in data["methods"]
        if one["task"] == task and one.get("no_agreement")
    ]


def edits_latex(rows: Sequence[Facts]) -> str:
    """A line for every edit, tasks apart (package booktabs)."""
    names, task = ("task", *EDITS, "agreement"), None
    lines = [rf"\begin{{tabular}}{{lll{'r' * (len(names) - 3)}}}", r"\toprule", latex_row(names), r"\midrule"]
    for row, line in zip(rows, cells(rows, names), strict=True):
        if task not in (None, row["task"]):
            lines.append(r"\midrule")
        task = row["task"]
        lines.append(latex_row(line))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
