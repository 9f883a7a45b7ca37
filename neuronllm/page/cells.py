"""Numbers as the page writes them, each in this one place, and the cells of tables.

A cell keeps the numbers that it was written from, so that a table is sorted by what was measured, not by what is shown.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NOTHING = "n/a"
MINUS = "\N{MINUS SIGN}"
DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # marks that turn text round


@dataclass(frozen=True)
class Cell:
    """What is shown, the numbers behind it, and how: `text`, `number`, or a small picture of the `facts`."""

    text: str
    values: tuple[float, ...] = ()
    kind: str = "text"
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    title: str
    hint: str = ""
    numeric: bool = True
    wide: bool = False  # sentences, which may take several lines


@dataclass(frozen=True)
class Row:
    cells: list[Cell]
    marks: dict[str, str] = field(default_factory=dict)  # what the row can be chosen by, such as its task


@dataclass(frozen=True)
class Table:
    """A table with a caption; `filters` are marks of the rows that one can choose by, `page` is rows at a time."""

    name: str
    caption: str
    columns: list[Column]
    rows: list[Row]
    filters: tuple[str, ...] = ()
    page: int = 0

    def choices(self, mark: str) -> list[str]:
        return list(dict.fromkeys(row.marks[mark] for row in self.rows))


def decimals(value: float | None, places: int = 3, sign: bool = False) -> str:
    """A number with so many decimals, its minus a real one.

    >>> decimals(-0.12345, sign=True), decimals(None), decimals(0.5, 2)
    ('−0.123', 'n/a', '0.50')
    """
    if value is None:
        return NOTHING
    rounded = round(value, places) + 0.0  # no negative zero
    return f"{rounded:{'+' if sign and rounded else ''}.{places}f}".replace("-", MINUS)


def digits(value: float | None) -> str:
    """A number of any size with three digits that count.

    >>> digits(0.000012345), digits(-1234.5), digits(2.0)
    ('1.23e−05', '−1,230', '2')
    """
    if value is None:
        return NOTHING
    plain = value == 0 or 1e-3 <= abs(value) < 1e9
    return (f"{float(f'{value:.3g}'):,.10g}" if plain else f"{value:.2e}").replace("-", MINUS)


def whole(value: float | None) -> str:
    """
    >>> whole(46080), whole(None)
    ('46,080', 'n/a')
    """
    return NOTHING if value is None else f"{value:,.0f}".replace("-", MINUS)


def between(interval: Sequence[float] | None, places: int = 3) -> str:
    """
    >>> between([0.25, 0.5]), between(None)
    ('0.250 to 0.500', 'n/a')
    """
    return NOTHING if interval is None else " to ".join(decimals(end, places) for end in interval)


def plain(text: str) -> str:
    """Text with its control characters shown by their number: they would vanish, or turn round what stands beside them.

    >>> plain("a\\x07b\\n"), plain("\\u202e")
    ('a\\\\x07b\\n', '\\\\u202e')
    """
    return "".join(_shown(char) if char not in "\n\t" else char for char in text)


def _shown(char: str) -> str:
    hidden = unicodedata.category(char) in ("Cc", "Cs") or unicodedata.bidirectional(char) in DIRECTIONS
    return char.encode("unicode_escape").decode() if hidden else char


def text(value: Any) -> Cell:
    return Cell(NOTHING if value is None else plain(str(value)))


def number(value: float | None, places: int = 3, sign: bool = False) -> Cell:
    return Cell(decimals(value, places, sign), () if value is None else (value,), "number")


def count(value: float | None) -> Cell:
    return Cell(whole(value), () if value is None else (value,), "number")


def p_value(value: float | None) -> Cell:
    small = value is not None and 0 < value < 0.001
    return Cell(digits(value), (value or 0.0,), "number") if small else number(value)


def places_for(values: Sequence[float | None]) -> int:
    """How many decimals a column takes for its largest number to have four digits that count.

    >>> places_for([0.0123, -0.5, None]), places_for([1234.5]), places_for([])
    (4, 0, 3)
    """
    largest = max((abs(value) for value in values if value), default=1.0)
    return max(0, 3 - math.floor(math.log10(largest)))


def interval(ends: Sequence[float] | None, places: int = 3) -> Cell:
    return Cell(between(ends, places), () if ends is None else tuple(ends), "number")
