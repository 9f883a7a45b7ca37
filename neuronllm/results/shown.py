"""What shows itself, as the last line of a notebook's cell or as a file: parts of the page of a comparison."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..model.anatomy import Anatomy
from .factors import ROLES

if TYPE_CHECKING:
    from ..page.parts import Part

MOST = 20  # rows of each role
SAID = ("model", "method", "objective", "positions", "template")  # of a provenance


class Shown:
    """`show()`, and the same in a notebook without asking."""

    def _shown(self) -> tuple[str, dict[str, Any]]:
        """The part of the page, and the facts that it shows."""
        raise NotImplementedError

    def show(self, path: str | os.PathLike[str] | None = None, overwrite: bool = False) -> Part:
        """What a notebook shows of it; with a path it is also written there, as an HTML file that needs no other.

        >>> neurons.show("neurons.html")   # doctest: +SKIP
        """
        from ..page.parts import Part, part

        made = Part(part(*self._shown()))
        if path is not None:
            made.save(path, overwrite)
        return made

    def _repr_html_(self) -> str:
        return self.show().html


def neurons_shown(
    title: str,
    provenance: dict[str, Any],
    anatomy: Anatomy,
    ids: Tensor,
    role: np.ndarray,
    score: Tensor,
    factor: Tensor | None = None,
) -> tuple[str, dict[str, Any]]:
    """The strongest neurons of each role, row by row, and in which layers all of them lie."""
    places = zip(*(column.tolist() for column in anatomy.locate(ids)), strict=True)
    own = [None] * len(ids) if factor is None else [None if f != f else f for f in factor.tolist()]
    found = sorted(zip(places, role.tolist(), score.tolist(), own, strict=True), key=lambda row: -abs(row[2]))
    depth = max(site.layer for site in anatomy.sites) + 1
    rows, layers = [], {}
    for name in ROLES:
        mine = [row for row in found if row[1] == name]
        counts = Counter(place[0] for place, *_ in mine)
        layers[name] = [counts[layer] for layer in range(depth)]
        rows += [
            {"layer": place[0], "expert": place[1], "index": place[2], "role": name, "score": value, "factor": turned}
            for place, _, value, turned in mine[:MOST]
        ]
    about = {name: provenance[name] for name in SAID if provenance.get(name)}
    return "neurons", {"title": title, "about": about, "rows": rows, "layers": layers}
