"""Neurons by subject: QRNCA's view of domains and languages. Found on search questions, judged on other ones.

A subject's neurons are the strongest by the mean of its questions' own scores (`queries.py`): ours, where the paper
looks at the neurons of single questions. The subject of a question is its domain, or its language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..attribution.job import Job
from ..attribution.request import Request
from ..common.errors import InputError
from ..common.tables import markdown_table
from ..data.questions import Question
from ..engine.objectives import AnyObjective
from ..methods import Method
from ..model.anatomy import Anatomy
from ..results.neurons import NeuronSet
from ..results.overlap import by_layer
from ..select.results import checked_count
from .across import CrossTask, cross_task
from .fact_request import check_questions
from .queries import QueryScores, check_single, query_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EVERYTHING = "all"  # the subject of questions that have none


@dataclass(frozen=True, eq=False, repr=False)
class BySubject:
    """What `nl.by_subject` returns; `print(found)` shows it.

    `neurons` are the sets, all good, by subject. `common` are neurons that more clusters of questions hold than the
    method allows (qrnca: 30 %), its scores the shares of the clusters. `boost` and `suppress` say what an edit for one
    subject does to the others (see CrossTask), with PCR and overlap.
    """

    neurons: dict[str, NeuronSet]
    common: NeuronSet
    boost: CrossTask
    suppress: CrossTask

    @property
    def layers(self) -> dict[str, list[int]]:
        """Of every subject, how many of its neurons each layer holds."""
        return {name: by_layer(one)["good"] for name, one in self.neurons.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file; the neurons are saved by themselves."""
        layer, expert, index = (part.tolist() for part in self.common.anatomy.locate(self.common.ids))
        address = zip(layer, expert, index, self.common.score.tolist(), strict=True)
        common = [dict(zip(("layer", "expert", "index", "share"), row, strict=True)) for row in address]
        parts = {name: getattr(self, name).to_dict() for name in ("boost", "suppress")}
        return {"layers": self.layers, "common": common, **parts}

    def __str__(self) -> str:
        rows = []
        for n, (name, one) in enumerate(self.neurons.items()):
            layers = one.layer.double()
            middle = f"{layers.mean():.1f}" if len(one) else "n/a"
            ratios = [value for each in (self.boost, self.suppress) for value in (each.pcr[n], *_middle(each, n))]
            rows.append([name, self.boost.questions[n], len(one), middle, *ratios])
        random = ["random"] if self.boost.random else []
        columns = ["subject", "questions", "neurons", "mean layer", "PCR boost", *random, "PCR suppress", *random]
        lines = [*markdown_table(columns, rows), "", f"{len(self.common)} neurons are common to many questions"]
        for name, each in (("boosted", self.boost), ("suppressed", self.suppress)):
            lines += ["", name, "", str(each)]
        return "\n".join(lines)


def _middle(each: CrossTask, row: int) -> list[float | None]:
    if each.random is None:
        return []
    band = each.random["pcr"][row]
    return [None if band is None else band["p50"]]


@torch.inference_mode(False)
def by_subject(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    search: Sequence[Question],
    test: Sequence[Question],
    *,
    method: str | Method = "qrnca",
    k: int = 20,
    factors: tuple[float, float] = (2.0, 0.0),
    controls: int = 0,
    objective: AnyObjective | None = None,
    positions: str | None = None,
    orders: str = "none",
    template: str | list[str] | None = None,
    answers: str | None = None,
    length: str | None = None,
    seed: int = 0,
    batch_size: int | str = "auto",
    backend: str = "fast",
    progress: bool = True,
    **method_options: Any,
) -> BySubject:
    """Neurons of every subject, their layers, what subjects share, and how an edit for one moves the others.

    search: questions with subjects, on which k neurons of each are found; test: others, on which the edits are judged.
    factors: to boost and to suppress by. controls, seed: as in `nl.cross_task`. orders, template: how the test
    questions are asked; the search asks as its method does. The rest is as in `nl.attribute`.

    >>> found = nl.by_subject(model, tokenizer, search, test, controls=20)   # doctest: +SKIP
    >>> found.boost.pcr, found.layers                                        # doctest: +SKIP
    """
    words: dict[str, Any] = {"template": template, "answers": answers, "length": length, "batch_size": batch_size}
    more: dict[str, Any] = {"positions": positions, "backend": backend, "progress": progress}
    request = Request(method, objective=objective, **words, **more, options=method_options)
    check_questions("search", search)
    names = subjects_of(search)
    if len(names) < 2:
        raise InputError(f"search: all questions are of one subject, {names[0]!r}: there must be two to compare")
    job, scores = subject_scores(model, tokenizer, search, test, request, k)
    sets = subject_sets(job, search, scores, k)
    tasks = {name: [question for question in test if subject_of(question) == name] for name in names}
    asked: dict[str, Any] = {"positions": positions, "controls": controls, "orders": orders, **words}
    asked |= {"seed": seed, "progress": progress}
    boost, suppress = (cross_task(job.model, tokenizer, tasks, sets, good=factor, **asked) for factor in factors)
    order = scores.shares.argsort(descending=True, stable=True)
    common = order[scores.common[order]]
    shares = scores.shares[common].float()
    return BySubject(sets, _good(common, shares, job.anatomy, job.provenance(job.groups)), boost, suppress)


def subject_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    search: Sequence[Question],
    test: Sequence[Question],
    request: Request,
    k: int,
) -> tuple[Job, QueryScores]:
    """The search questions scored one by one, after refusing test questions of subjects that have none."""
    check_questions("search", search)
    check_questions("test", test)
    if checked_count("k", k) < 1:
        raise InputError("k=0: give a positive whole number of neurons")
    check_single(request.how)
    for one, other, what in ((test, search, "search"), (search, test, "test")):
        if missing := [name for name in subjects_of(one) if name not in subjects_of(other)]:
            raise InputError(f"{what}: no question is of subject {missing[0]!r}")
    job = Job.of(model, tokenizer, search, request)
    return job, query_scores(job, k)


def subject_sets(job: Job, search: Sequence[Question], scores: QueryScores, k: int) -> dict[str, NeuronSet]:
    """The k strongest neurons of every subject, by the mean over its questions."""
    subject = np.array([subject_of(question) for question in search])
    sets = {}
    for name in subjects_of(search):
        ids, values = scores.neurons(torch.from_numpy(subject == name), k)
        own = {"questions": int((subject == name).sum()), "subject": name}
        sets[name] = _good(ids, values, job.anatomy, job.provenance(job.groups) | own)
    return sets


def subjects_of(questions: Sequence[Question]) -> list[str]:
    return list(dict.fromkeys(subject_of(question) for question in questions))


def subject_of(question: Question) -> str:
    return question.subject or EVERYTHING


def _good(ids: Tensor, values: Tensor, anatomy: Anatomy, provenance: dict[str, Any]) -> NeuronSet:
    return NeuronSet(ids, np.full(len(ids), "good"), values.float(), anatomy, provenance)
