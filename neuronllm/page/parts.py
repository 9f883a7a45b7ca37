"""Parts of the page by themselves: in a notebook, or as a file of their own. They need no script."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.checks import short
from ..common.errors import InputError
from ..common.files import check_new_file, write_text
from . import tables
from .cards import card_facts
from .rendering import checked, rendered

Facts = dict[str, Any]
# The facts of each part, as its template takes them: "card" is one of comparison.json, "cards" is {"title", "cards"},
# "tables" is {"title", "about", "said", "tables"}, with sentences and ready tables.
READY: dict[str, Callable[[Facts], Facts]] = {
    "comparison": lambda facts: {"comparison": facts, "table": tables.edits(facts)},
    "card": lambda facts: {"card": card_facts(facts)},
    "cards": lambda facts: {"title": facts["title"], "cards": [card_facts(card) for card in facts["cards"]]},
    "neurons": lambda facts: {"facts": facts, "table": tables.members(facts), "layers": tables.layers(facts["layers"])},
    "tables": lambda facts: facts,
}


@dataclass(frozen=True, repr=False)
class Part:
    """A part of the page: the last line of a notebook's cell shows it, `save` writes it as a file."""

    html: str

    def __repr__(self) -> str:
        return f"Part({len(self.html)} characters of HTML, which a notebook shows; save(path) writes a file)"

    def _repr_html_(self) -> str:
        return self.html

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write an HTML file that has everything in it, a new one unless an earlier one may be replaced."""
        if not (overwrite and Path(path).is_file()):
            check_new_file(path)
        write_text(Path(path), rendered("part_file", html=self.html))


def part(name: str, facts: Facts) -> str:
    """A part of the page as HTML: "comparison", "card", "cards", "neurons" or "tables", of the facts that it shows.

    >>> rows = [{"layer": 3, "expert": -1, "index": 17, "role": "good", "score": 0.0123, "factor": None}]
    >>> html = part("neurons", {"title": "One neuron", "about": {}, "layers": None, "rows": rows})
    >>> "3 · 17" in html
    True
    """
    if name not in READY:
        raise InputError(f"part {short(name)}: known parts are {', '.join(READY)}")
    return checked(lambda: rendered(f"part_{name}", **READY[name](facts)), f"part {name}")
