"""The best and the worst neurons by their exact effects, without running all: method "exact" with `top`.

The screen (gradient and activity of all neurons) and then every round of exact effects is an attribution of its own, on
disk inside the folder of the whole run. What a round runs follows from the screen and the rounds before it, so a run
that was killed repeats the decisions, takes up the round it was in, and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..common.warning import warn
from ..methods import Method
from ..methods.activation import Activation
from ..methods.exact import Exact, Some
from ..methods.gradient import Gradient
from ..results.answers import leaning_words
from ..results.scores import Scores
from ..runs.checkpoint import ROUNDS, partial_folder
from ..runs.processes import Ranks
from ..runs.stores import Store
from .job import Job
from .leaning import Gathered
from .search import Search

Attributed = Callable[[Job], Scores]


def strongest(job: Job, how: Exact, store: Store[Gathered], ranks: Ranks, attributed: Attributed) -> Scores:
    """The scores of the neurons that were run, NaN for all others; `attributed` scores a job of one round."""
    if (scores := store.result()) is not None:
        return scores
    store.begin({}, rounds=True)
    try:
        search = _screened(job, how, attributed)
        found, ids = _Found(job), search.first()
        while len(ids):
            found.add(ids, attributed(_part(job, str(search.rounds + 1), _some(how, ids))))
            search.add(ids, found.values[ids])
            ids = search.next()
    except BaseException:
        store.discard()
        raise
    _warn(found.provenance, silent=not ranks.first)
    return store.finish(found.scores(job, search), [])


def _warn(provenance: dict[str, Any], silent: bool) -> None:
    """What every part would have said, once."""
    if (leaning := provenance.get("leaning")) and not silent:
        form = provenance.get("answers") or "letters"
        warn(leaning_words(form, leaning["option"], leaning["share"]))


def _screened(job: Job, how: Exact, attributed: Attributed) -> Search:
    """The search, with the gradient's guess of every effect, and with activity weighted by what a neuron writes."""
    slope = attributed(_part(job, "gradient", Gradient())).values
    activity = attributed(_part(job, "activity", Activation("cett"))).values
    assert how.top is not None
    return Search((1 - how.factor) * slope, activity, how.top, how.miss, how.budget, how.seed)


def _some(how: Exact, ids: Tensor) -> Some:
    return Some(factor=how.factor, ids=tuple(ids.tolist()))


def _part(job: Job, name: str, method: Method) -> Job:
    """The same questions with another method; taken up where it was begun."""
    output = job.request.output
    folder = None if output is None else partial_folder(output) / ROUNDS / name
    objective = None if method.objective is None else job.request.objective
    more: dict[str, Any] = {"output": folder, "resume": folder is not None, "overwrite": False}
    return replace(job, request=replace(job.request, method=method, options={}, objective=objective, **more))


class _Found:
    """What the rounds measured."""

    def __init__(self, job: Job) -> None:
        self.values, self.stderr, self.consistency = torch.full((3, job.anatomy.n_neurons), float("nan"))
        self.provenance: dict[str, Any] = {}

    def add(self, ids: Tensor, scores: Scores) -> None:
        mine, theirs = (self.values, self.stderr, self.consistency), (scores.values, scores.stderr)
        for part, more in zip(mine, (*theirs, scores.sign_consistency), strict=True):
            part[ids] = more[ids]
        noise = max(self.provenance.get("noise", 0.0), scores.provenance.get("noise", 0.0))
        self.provenance = scores.provenance | ({"noise": noise} if noise else {})

    def scores(self, job: Job, search: Search) -> Scores:
        provenance = self.provenance | job.config | {"exact": {"top": search.found()}}
        return Scores(self.values, self.stderr, self.consistency, job.anatomy, provenance)
