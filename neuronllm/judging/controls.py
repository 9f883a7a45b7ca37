"""Random controls: neuron sets of the same size in every block, and of every expert, as the set that is judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.statistics import percent_of
from ..engine.asking import Asker, Edit
from ..model.anatomy import Anatomy
from ..results.answers import Answers


def random_like(ids: Tensor, anatomy: Anatomy, generator: torch.Generator) -> Tensor:
    """As many random neurons in each block, and of each expert, as `ids` has there, in the same order of blocks."""
    where, drawn = anatomy.site_of(ids), torch.empty_like(ids)
    widths = torch.tensor([site.width for site in anatomy.sites])[where]
    # The first neuron of the block, or of the expert, that each id lies in.
    first = ids - (ids - anatomy.offsets[where]) % widths
    for start in first.unique().tolist():
        here = first == start
        picked = torch.randperm(int(widths[here][0]), generator=generator)[: int(here.sum())]
        drawn[here] = picked + start
    return drawn


def random_controls(ask: Asker, change: Edit, edited: Answers, count: int, seed: int, progress: bool) -> dict[str, Any]:
    """Where the edit stands among the same edit of random neurons."""
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, list[float]] = {"accuracy": [], "balanced_accuracy": [], "p_right": []}
    for _ in tqdm(range(count), desc="random sets", disable=not progress, unit="set", leave=False):
        # No neurons: every random set is the same edit, none.
        other = change._replace(ids=random_like(change.ids, ask.anatomy, generator))
        answers = ask(other) if len(change.ids) else edited
        for name, value in (("accuracy", answers.accuracy), ("p_right", answers.mean_p_right)):
            values[name].append(value)
        values["balanced_accuracy"].append(answers.balanced_accuracy)
    own = {"accuracy": edited.accuracy, "balanced_accuracy": edited.balanced_accuracy, "p_right": edited.mean_p_right}
    return {"sets": count, **{name: among(drawn, own[name]) for name, drawn in values.items()}}


def among(drawn: Sequence[float], value: float) -> dict[str, float]:
    """Where a value stands among those of random sets."""
    low, middle, high = np.percentile(drawn, [2.5, 50, 97.5])
    return {
        "p2.5": float(low),
        "p50": float(middle),
        "p97.5": float(high),
        "percentile_of_edit": percent_of(drawn, value),
    }
