"""Pieces of work that score neurons: a method on a task, once for all edits, and how stable and how costly that is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..attribution.driver import attributed
from ..attribution.job import Job
from ..attribution.request import Request
from ..common.errors import InputError
from ..common.statistics import spearman
from ..engine.asking import Asker
from ..results.overlap import by_layer
from ..results.pictures import strongest_of_bins
from ..results.scores import PARTIAL, Scores
from ..select import extremes
from .quiet import heard, quietly

if TYPE_CHECKING:
    from .setting import Setting

ENDS = 0.01  # the share of the neurons at either end that are compared
CELLS = 8192  # bins of a map at most, so that a page with many maps stays small


def scored(setting: Setting, task: str, method: str) -> dict[str, Any]:
    """The scores, saved without those of single prompts, and what there is to say of them."""
    whole = setting.folder / "prompts" / task / method
    more = {"keep": "all", "output": whole, "resume": True}
    request = setting.request.attribution(method, **more)
    fresh = not whole.exists() and not whole.with_name(whole.name + PARTIAL).exists()
    questions, start = setting.searched(task, method), perf_counter()
    scores = quietly(attributed, setting.model, setting.tokenizer, questions, request)
    took = perf_counter() - start
    if not setting.ranks.first:
        return {}
    alone = replace(request, output=None, resume=False)
    job = quietly(Job.of, setting.model, setting.tokenizer, questions, alone)
    right = _timed(setting, f"scores {task} {method}", job, took if fresh else None)
    steady = None if method == "random" else stability(job, scores, setting.request.seeds, right)  # it reads none
    slim, place = replace(scores, per_prompt=None), setting.place("scores", task, method)
    shutil.rmtree(place, ignore_errors=True)  # of a process that was killed at this place
    slim.save(place)
    neurons, said = heard(slim.find, setting.k, setting.k)
    if len(questions) < (given := len(setting.tasks[task].splits.search)):
        said.append(f"scored on {len(questions)} of {given} questions, as the method is expensive")
    return {
        "positions": job.request.positions,
        "questions": len(questions),
        "stability": steady,
        "layers": by_layer(neurons),
        "warnings": said,
        "map": neuron_map(slim),
    }


def _timed(setting: Setting, name: str, job: Job, took: float | None) -> Tensor:
    """Which prompts the model answers right; the clock of the scores beside it, where these were not taken up again."""
    ask, start = Asker(job.model, job.prompts, job.request.batch_size), perf_counter()
    right = torch.from_numpy(ask().right)
    if took is not None:
        setting.seconds[name] = {"seconds": took, "inference": perf_counter() - start}
    return right


def stability(job: Job, scores: Scores, seeds: Sequence[int], right: Tensor) -> dict[str, float | None] | None:
    """How alike the scores of two halves of the questions are, the mean over seeds, each of which halves otherwise.

    Rank correlation over all neurons, and the share of the best and worst 1 % that both halves have.
    """
    groups, found = job.groups, []
    if len(groups) < 4:
        return None
    starts = np.cumsum([0, *map(len, groups)])
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(groups))
        halves = []
        for half in (order[: len(order) // 2], order[len(order) // 2 :]):
            places = [range(starts[n], starts[n + 1]) for n in sorted(half.tolist())]
            halves.append(replayed(job, scores, places, right))
        first, second = halves
        if first is None or second is None:
            return None
        found.append((spearman(first.numpy(), second.numpy()), overlap(first, second)))
    means = [float(np.mean(values)) for values in zip(*found, strict=True)]
    return {"spearman": means[0], "overlap": means[1]}


def replayed(job: Job, scores: Scores, places: Sequence[range], right: Tensor) -> Tensor | None:
    """The method's scores of some questions alone, of the kept scores of their prompts; None where there are none."""
    rows = scores.per_prompt
    assert rows is not None  # keep="all"
    collector = job.how.collector(job.anatomy.n_neurons)
    for place in places:
        collector.add(rows[place.start : place.stop].float(), right[place.start : place.stop])
    try:
        return quietly(collector.summary).values.float()
    except InputError:
        return None


def overlap(first: Tensor, second: Tensor, share: float = ENDS) -> float:
    """The share of the best and the worst neurons that two scores have in common.

    >>> overlap(torch.arange(200.0), torch.arange(200.0))
    1.0
    """
    return float(np.mean(ends_overlap(first, second, share)))


def ends_overlap(first: Tensor, second: Tensor, share: float = ENDS) -> tuple[float, float]:
    """The same of the best and of the worst, each by itself."""
    k = max(1, round(share * len(first)))
    both = [extremes(values, largest=k, smallest=k) for values in (first, second)]
    best, worst = ([set(getattr(end, name).indices.tolist()) for end in both] for name in ("largest", "smallest"))
    return len(best[0] & best[1]) / k, len(worst[0] & worst[1]) / k


def neuron_map(scores: Scores) -> dict[str, Any]:
    """The scores of every layer, and of every expert, in bins: of each the score that is largest in size."""
    rows = []
    for site, start in zip(scores.anatomy.sites, scores.anatomy.offsets.tolist(), strict=False):
        for part in range(max(1, site.experts)):
            expert = part if site.experts else site.expert
            rows.append((site.layer, expert, start + part * site.width, site.width))
    wide = 1
    while sum(-(-width // wide) for *_, width in rows) > CELLS and wide < max(width for *_, width in rows):
        wide *= 2
    return {"bin": wide, "rows": [_row(scores.values, wide, *row) for row in rows]}


def _row(values: Tensor, wide: int, layer: int, expert: int, first: int, width: int) -> dict[str, Any]:
    largest = strongest_of_bins(values[first : first + width], wide).tolist()
    kind = {-1: "", -2: ", shared"}.get(expert, f", expert {expert}")
    shown = [float(f"{value:.3g}") for value in largest]
    return {"label": f"layer {layer}{kind}", "layer": layer, "expert": expert, "first": first, "values": shown}


def prompt_scores(setting: Setting, method: str, prompts: Sequence[Any], positions: str) -> Tensor:
    """What a method gives every neuron for each of these prompts, (prompts, neurons)."""
    asked = setting.request.attribution(method)
    request = Request(
        method,
        positions=positions,
        keep="all",
        progress=False,
        batch_size=asked.batch_size,
        options=asked.options,
    )
    kept = quietly(attributed, setting.model, None, list(prompts), request).per_prompt
    return torch.as_tensor(kept[:])
