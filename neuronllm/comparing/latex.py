"""Rows of a table in LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

ESCAPED = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}


def escaped(text: str) -> str:
    r"""
    >>> print(escaped("50 % of a_b"))
    50 \% of a\_b
    """
    return "".join(ESCAPED.get(c, c) for c in text)


def latex_row(cells: Sequence[str]) -> str:
    r"""
    >>> print(latex_row(["a_b", "0.5"]))
    a\_b & 0.5 \\
    """
    return " & ".join(map(escaped, cells)) + r" \\"
