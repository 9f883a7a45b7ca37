"""How the sets of several tasks lie to each other: the neurons they share, and what an edit for one does to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..model.anatomy import Anatomy
from .quiet import quietly

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .setting import Setting


def overlaps(setting: Setting, edits: Mapping[tuple[str, str, str], dict[str, Any]]) -> dict[str, Any]:
    """Of the first method and the first edit: Jaccard beside chance, and changes of accuracy, task by task."""
    method, edit, names = setting.methods[0], setting.edits[0], list(setting.tasks)
    sets: dict[str, list[Tensor]] = {"good": [], "bad": []}
    for task in names:
        found = quietly(setting.scores(task, method).find, setting.k, setting.k)
        for role, ids in sets.items():
            ids.append(found.ids[torch.from_numpy(found.role == role)])
    pairs = {"good": ("good", "good"), "bad": ("bad", "bad"), "good_bad": ("good", "bad")}
    tables = {
        name: [[shared(setting.anatomy, one, other) for other in sets[second]] for one in sets[first]]
        for name, (first, second) in pairs.items()
    }
    return {
        "names": names,
        "method": method,
        "edit": edit,
        **tables,
        "transfer": [transfer(edits[task, method, edit], task, names) for task in names],
    }


def shared(anatomy: Anatomy, first: Tensor, second: Tensor) -> dict[str, float | None]:
    """The Jaccard index of two sets of neurons, and that of random ones with as many in every block, about.

    About, as it is the ratio of what is expected: so many in both, over so many in either.
    """
    most = len(first) + len(second)
    if not most:
        return {"jaccard": None, "chance": None}
    both = int(torch.isin(first, second).sum())
    sizes = torch.tensor(anatomy.sizes, dtype=torch.float64)
    count = [torch.bincount(anatomy.site_of(ids), minlength=len(sizes)).double() for ids in (first, second)]
    expected = float((count[0] * count[1] / sizes).sum())
    return {"jaccard": both / (most - both), "chance": expected / (most - expected)}


def transfer(edit: dict[str, Any], task: str, names: Sequence[str]) -> list[float]:
    """What an edit for a task does to the accuracy of every task."""
    there = edit["elsewhere"]
    return [edit["gain"] if name == task else there[name]["after"] - there[name]["before"] for name in names]
