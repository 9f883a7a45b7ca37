"""Numbers as text. Everything here takes plain values, so that any module may use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def show(value: Any) -> str:
    """A cell: short numbers, n/a for nothing.

    >>> show(0.12345), show(None), show({"A": 0.5, "B": 0.5})
    ('0.123', 'n/a', 'A .50  B .50')
    """
    if value is None or value != value:
        return "n/a"
    if isinstance(value, dict):
        return "  ".join(f"{key} {share:.2f}".replace(" 0.", " .") for key, share in value.items())
    if isinstance(value, (tuple, list)):
        return f"{value[0]:+.3f} to {value[1]:+.3f}"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"
    return str(value)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A titled table on the terminal; the first column is left-aligned, numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 else "right", no_wrap=n == 0)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, str) else show(cell) for cell in row))
    print(title)
    Console().print(table)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The same table as lines of Markdown.

    >>> markdown_table(["method", "rho"], [["gradient", 0.95]])
    ['| method | rho |', '| --- | --- |', '| gradient | 0.950 |']
    """
    cells = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell if isinstance(cell, str) else show(cell) for cell in row) + " |" for row in cells]


def report_lines(report: Any) -> list[str]:
    """An evaluation as lines of text: raw values before and after, then what they amount to."""
    base = report.base
    lines = [f"{report.questions} questions" + (f", {_edit(report.edit)}" if base else "")]
    for name, label in (("accuracy", "accuracy"), ("balanced_accuracy", "letter-balanced"), ("p_right", "P(right)")):
        now = show(getattr(report, name))
        lines.append(
            f"{label:<18}" + (f"{show(base[name])} -> {now}" if base else now) + _control(report.controls, name)
        )
    lines.append(f"{'letters':<18}" + (f"{show(base['letters'])} -> " if base else "") + show(report.letters))
    for name, interval in report.ci.items():
        sign = show(interval) if name.endswith("change") else f"{interval[0]:.3f} to {interval[1]:.3f}"
        lines.append(f"{'95 % ' + name.replace('_', ' '):<26}{sign}")
    if base:
        lines.append(f"RAC {show(report.rac)}   RCC {show(report.rcc)}   PCR {show(report.pcr)}")
        flips = report.flips
        lines.append(
            f"flips {flips['right_to_wrong']} right to wrong, {flips['wrong_to_right']} wrong to right, "
            f"McNemar p = {show(report.mcnemar)}"
        )
    if report.collapsed:
        lines.append("letter collapse: the predictions lean on one letter, accuracy says little")
    return lines


def _edit(edit: dict[str, Any]) -> str:
    what = edit.get("mode") or "edited"
    return f"{what}: {edit['neurons']} neurons, good x{edit['good']}, bad x{edit['bad']}, positions {edit['positions']}"


def _control(controls: dict[str, Any] | None, name: str) -> str:
    if not controls:
        return ""
    drawn = controls[name]
    return f"   ({controls['sets']} random sets: {drawn['p2.5']:.3f} to {drawn['p97.5']:.3f})"
