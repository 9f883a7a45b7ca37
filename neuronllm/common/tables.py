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
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 else "right", no_wrap=n == 0)
    for row in rows:
        table.add_row(*(escape(cell if isinstance(cell, str) else show(cell)) for cell in row))
    print(title)
    Console().print(table)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The same table as lines of Markdown.

    >>> markdown_table(["method", "rho"], [["gradient", 0.95]])
    ['| method | rho |', '| --- | --- |', '| gradient | 0.950 |']
    """
    cells = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell if isinstance(cell, str) else show(cell) for cell in row) + " |" for row in cells]
