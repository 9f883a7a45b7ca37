"""A question's own neurons, and those of a subject: the scores of single questions, whatever the method.

1. Every question is scored by itself, as the method scores a task of this one question.
2. A question's cluster is what its method calls so (qrnca: neurons above 0.2 of its largest score), else its k
   strongest neurons. A neuron in more than `common` of the clusters is common.
3. qrnca weighs a question's scores by ica, as over a task. That takes the clusters of other questions: where a neuron
   of a single cluster would be common already, the scores are left as they are and none is common.
4. A question's neurons are the k of the highest positive score, of which qrnca drops the common ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..attribution.driver import engine_of, raw_scores
from ..attribution.job import Job
from ..common.errors import InputError
from ..common.warning import warn
from ..methods.base import Method
from ..methods.qrnca import QRNCA, RELEASED
from ..select import extremes

COMMON = 0.3  # of the clusters, as in QRNCA's paper, for methods that do not say


@dataclass(frozen=True, eq=False)
class QueryScores:
    """Scores of single questions, (questions, n_neurons), and which neurons too many of them share."""

    values: Tensor
    common: Tensor  # bool, (n_neurons,)
    shares: Tensor  # of the questions whose clusters hold the neuron, (n_neurons,)
    drops: bool  # whether the method leaves common neurons out

    def neurons(self, questions: Any, k: int) -> tuple[Tensor, Tensor]:
        """Flat ids and scores of the k strongest neurons of a question, or by the mean of several, strongest first."""
        values = self.values[questions]
        values = values if values.ndim == 1 else values.mean(0)
        top = extremes(values, largest=k).largest
        kept = top.values > 0
        if self.drops:
            kept &= ~self.common[top.indices]
        return top.indices[kept], top.values[kept]


class Background(NamedTuple):
    """Other questions, of which only the clusters count."""

    members: Tensor  # in how many clusters each neuron is
    questions: int

    @classmethod
    def of(cls, job: Job, k: int) -> Background:
        return cls(_scored(job, k, None, "background"), len(job.groups))


def query_scores(job: Job, k: int, background: Background | None = None) -> QueryScores:
    """Score the questions of a job one by one; of qrnca the clusters of `background` count too."""
    check_single(job.how)
    how = job.how
    rows: list[Tensor] = []
    members = _scored(job, k, rows, f"{how.name} of single questions")
    values, count = torch.stack(rows), len(rows)
    if background is not None:
        members, count = members + background.members, count + background.questions
    share = how.common if isinstance(how, QRNCA) else COMMON
    told = share * count >= 1  # else a neuron of a single cluster would be common
    common = members > share * count if told else torch.zeros_like(members, dtype=torch.bool)
    if isinstance(how, QRNCA) and told:
        values = (values * torch.log(count / (members + 1))).float()
    elif isinstance(how, QRNCA):
        warn(
            f"qrnca of {count} question{'s' * (count > 1)} cannot tell which neurons all questions share, so these "
            f"count too: {math.ceil(1 / share)} or more tell"
        )
    drops = isinstance(how, QRNCA) and how.compat != RELEASED
    return QueryScores(values, common, members / count, drops)


def check_single(how: Method) -> None:
    if how.needs_answers:
        raise InputError(f"method={how.name!r}: it compares questions, so a single one has no scores; take another")


def _scored(job: Job, k: int, rows: list[Tensor] | None, label: str) -> Tensor:
    """Every question's scores are put into `rows`, if given; in how many clusters each neuron is, (n_neurons,)."""
    waiting = job.groups
    members = torch.zeros(job.anatomy.n_neurons, dtype=torch.float64)
    with (
        engine_of(job) as engine,
        tqdm(total=len(waiting), desc=label, disable=not job.request.progress, unit="question") as bar,
    ):
        engine.fit(partial(raw_scores, job, engine), job.prompts)
        while waiting:
            size = 1 if job.how.expensive else engine.at_once
            now, waiting = waiting[:size], waiting[size:]
            raw = raw_scores(job, engine, [prompt for group in now for prompt in group])
            for part in raw.split([len(group) for group in now]):
                own, cluster = _of_question(job, part, k)
                if rows is not None:
                    rows.append(own)
                members += cluster
            bar.update(len(now))
    return members


def _of_question(job: Job, raw: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The scores of one question as its method sums them up, and its cluster."""
    collector: Any = job.how.collector(job.anatomy.n_neurons)
    collector.add(raw)
    if isinstance(job.how, QRNCA):
        return collector.na.float(), collector.members > 0
    values = collector.values().float()
    top = extremes(values, largest=k).largest
    cluster = torch.zeros(len(values), dtype=torch.bool)
    cluster[top.indices[top.values > 0]] = True
    return values, cluster
