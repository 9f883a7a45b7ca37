"""Agreement with the exact effects: what a method gives a neuron for a prompt beside what silencing it really does.

The truth is measured once for each task and kind of positions, and shared by the methods that score there. Where all
neurons would cost more than the budget, a sample is silenced, of every block its share; the figures are then estimates
with an interval. The neurons that get a card are silenced besides, which the figures leave out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..attribution.job import Job
from ..attribution.request import Request
from ..attribution.verify import each_effect
from ..common.files import read_tensors, write_tensors
from ..common.statistics import spearman
from ..methods import get_method
from ..model.anatomy import Anatomy
from .cards import chosen
from .quiet import quietly
from .scoring import ends_overlap, prompt_scores

if TYPE_CHECKING:
    from .setting import Setting

RESAMPLES = 200


def truth(setting: Setting, task: str, positions: str) -> dict[str, Any]:
    """The exact effects of all neurons, or of a sample, on a few questions of the task; written beside."""
    prompts, total = setting.judged(task), setting.anatomy.n_neurons
    count = setting.budget.neurons(total, len(prompts), positions, setting.answered(task))
    drawn = stratified(setting.anatomy, count, setting.seed)
    shown = [chosen(setting, task, method).ids for method in setting.methods if setting.positions(method) == positions]
    ids = torch.cat([drawn, *shown]).unique()
    request = Request("exact", positions=positions, batch_size=setting.request.batch_size, progress=False)
    job = quietly(Job.of, setting.model, None, prompts, request)
    effects, noise = quietly(each_effect, job, ids)
    found = {"ids": ids, "effects": effects, "drawn": torch.isin(ids, drawn)}
    write_tensors(setting.place("truth", task, f"{positions}.safetensors"), found)
    return {"neurons": len(drawn), "sampled": len(drawn) < total, "questions": len(prompts), "noise": noise}


def stratified(anatomy: Anatomy, count: int, seed: int) -> Tensor:
    """So many neurons, of every block its share and at least one; all of them where that many are asked for."""
    total = anatomy.n_neurons
    if count >= total:
        return torch.arange(total)
    generator, drawn = torch.Generator().manual_seed(seed), []
    for start, size in zip(anatomy.offsets.tolist(), anatomy.sizes, strict=False):
        mine = min(size, max(1, round(count * size / total)))
        drawn.append(start + torch.randperm(size, generator=generator)[:mine].sort().values)
    return torch.cat(drawn)


def agreement(setting: Setting, task: str, method: str) -> dict[str, Any]:
    """Means over the prompts; nothing of a method that has no scores of single prompts."""
    if get_method(method).needs_answers:
        return {"agreement": None}
    positions = setting.positions(method)
    about = setting.result("truth", task, positions)
    found = read_tensors(setting.folder / "truth" / task, f"{positions}.safetensors", "comparison")
    ids, effects = found["ids"][found["drawn"]], found["effects"][:, found["drawn"]]
    scores = prompt_scores(setting, method, setting.judged(task), positions)[:, ids].double()
    ends = [ends_overlap(mine, real) for mine, real in zip(scores, effects, strict=True)]
    strata = setting.anatomy.site_of(ids).numpy()
    interval = resampled(scores.numpy(), effects.numpy(), strata, setting.seed) if about["sampled"] else None
    return {
        "agreement": {
            "spearman": correlation(scores.numpy(), effects.numpy()),
            "interval": interval,
            "top": float(np.mean([top for top, _ in ends])),
            "bottom": float(np.mean([bottom for _, bottom in ends])),
            "neurons": about["neurons"],
            "sampled": about["sampled"],
            "questions": about["questions"],
        }
    }


def no_agreement(method: str, found: Mapping[str, Any] | None) -> str | None:
    """Why a method has no agreement with the exact effects; None where it has one."""
    if get_method(method).needs_answers:
        return "it compares prompts answered right with prompts answered wrong, so it scores no single prompt"
    if found is None or found["spearman"] is None or np.isnan(found["spearman"]):
        return "on some prompt its scores, or the effects, are the same for all neurons, so they have no ranks"
    return None


def correlation(scores: np.ndarray, effects: np.ndarray) -> float:
    """The mean over prompts of the rank correlation over neurons; NaN where a row is constant."""
    return float(np.mean([spearman(mine, real) for mine, real in zip(scores, effects, strict=True)]))


def resampled(scores: np.ndarray, effects: np.ndarray, strata: np.ndarray, seed: int) -> list[float] | None:
    """95 % bootstrap interval of `correlation` over neurons, drawn anew within every block."""
    generator = np.random.default_rng(seed)
    blocks = [np.flatnonzero(strata == block) for block in np.unique(strata)]
    found = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([generator.choice(block, len(block)) for block in blocks])
        found.append(correlation(scores[:, drawn], effects[:, drawn]))
    if np.isnan(found).any():
        return None
    return [float(end) for end in np.percentile(found, [2.5, 97.5])]
