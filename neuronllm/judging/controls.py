"""Random controls: neuron sets of the same size in every block, and of every expert, as the set that is judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..common.statistics import percent_of
from ..common.warning import warn
from ..engine.asking import Asker, Edit
from ..model.random_sets import random_like
from ..results.answers import Answers

ENOUGH = 20


def warn_if_few(controls: int) -> None:
    if 0 < controls < ENOUGH:
        said = f"controls={controls}: with fewer than {ENOUGH} random sets their band says little"
        warn(said)


def random_controls(ask: Asker, change: Edit, edited: Answers, count: int, seed: int, progress: bool) -> dict[str, Any]:
    """Where the edit stands among the same edit of random neurons."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in tqdm(range(count), desc="random sets", disable=not progress, unit="set", leave=False):
        # No neurons: every random set is the same edit, none.
        other = change._replace(ids=random_like(change.ids, ask.anatomy, generator))
        drawn.append(measures(ask(other) if len(change.ids) else edited))
    return all_among(drawn, measures(edited))


def measures(answers: Answers) -> dict[str, float]:
    """What edits are compared by."""
    return {
        "accuracy": answers.accuracy,
        "balanced_accuracy": answers.balanced_accuracy,
        "p_right": answers.mean_p_right,
    }


def all_among(drawn: Sequence[dict[str, float]], own: dict[str, float]) -> dict[str, Any]:
    """Where every measure of an edit stands among those of other sets, and how many these are."""
    return {"sets": len(drawn), **{name: among([each[name] for each in drawn], own[name]) for name in own}}


def among(drawn: Sequence[float], value: float) -> dict[str, float]:
    """Where a value stands among those of random sets."""
    low, middle, high = np.percentile(drawn, [2.5, 50, 97.5])
    return {
        "p2.5": float(low),
        "p50": float(middle),
        "p97.5": float(high),
        "mean": float(np.mean(drawn)),
        "percentile_of_edit": percent_of(drawn, value),
    }
