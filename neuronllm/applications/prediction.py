"""Answers predicted from neurons alone: which option is a subject's neurons' choice? (QRNCA's application)

The neurons of a subject are found on search questions; questions that the search never saw are answered by

- activation: every option is put behind the question, and the neurons are read at its tokens. The option at which they
  hold most, summed over the neurons, is the answer. A neuron counts in the direction that it has at the right answers
  of the search questions, so that one that is active below zero counts too.
- score: the option whose score the neurons push most, to first order, summed over the neurons (`nl.pushes`).

Options that tie share the point of the right one. Beside it stand the model's own answers, chance, and random neurons
of the same blocks, read the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..attribution.contrast import Reading
from ..attribution.job import Job
from ..attribution.pushes import pushes
from ..attribution.request import Request
from ..common.statistics import bootstrap_interval
from ..common.tables import markdown_table
from ..data.forms import TEXT_TEMPLATE
from ..data.prompt_sets import encoded
from ..data.prompts import Prompt
from ..data.questions import Question
from ..data.rendering import render
from ..engine.asking import Asker
from ..engine.objectives import AnyObjective
from ..judging.asking import Asking
from ..judging.controls import among
from ..methods import Method
from ..model.random_sets import random_like
from ..results.neurons import NeuronSet
from ..select.results import checked_count
from .subjects import subject_of, subject_scores, subject_sets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What `nl.predict` returns; `print(found)` shows it.

    `by` has for "activation" and "score": the accuracy with a 95 % interval over questions, where it stands among
    random neurons, and the accuracy by subject. `model` is the accuracy of the model's own answers, with an interval,
    and `chance` that of guessing. `picked`: of each test question the chosen option, the first of those that tie.
    """

    questions: int
    chance: float
    model: dict[str, Any]
    by: dict[str, dict[str, Any]]
    picked: dict[str, list[int]]
    neurons: dict[str, NeuronSet] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file; the neurons are saved by themselves."""
        return asdict(replace(self, neurons={})) | {"neurons": {name: len(one) for name, one in self.neurons.items()}}

    def __str__(self) -> str:
        rows: list[list[Any]] = [["chance", self.chance, "", ""]]
        rows.append(["the model's own answers", self.model["accuracy"], _span(self.model["ci"]), ""])
        for name, found in self.by.items():
            band = found["random"]
            stands = "" if band is None else f"{band['p2.5']:.3f} to {band['p97.5']:.3f}"
            rows.append([f"neurons, by {name}", found["accuracy"], _span(found["ci"]), stands])
        title = f"{self.questions} questions, {len(self.neurons)} sets of neurons"
        table = markdown_table(["answered by", "accuracy", "95 %", "random neurons"], rows)
        return "\n".join([title, *table, "", *(self._verdict(name) for name in self.by)])

    def _verdict(self, name: str) -> str:
        """What the neurons beat: chance by the interval over questions, random neurons by the band of their sets."""
        found = self.by[name]
        beaten = {f"chance ({self.chance:.3f})": found["ci"][0] > self.chance}
        if (band := found["random"]) is not None:
            span = _span((band["p2.5"], band["p97.5"]))
            beaten[f"random neurons ({span})"] = found["accuracy"] > band["p97.5"]
        said = [f"{'better' if better else 'not better'} than {what}" for what, better in beaten.items()]
        return f"by {name}: {found['accuracy']:.3f} (95 % {_span(found['ci'])}) is {' and '.join(said)}"


@torch.inference_mode(False)
def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    search: Sequence[Question],
    test: Sequence[Question],
    *,
    method: str | Method = "qrnca",
    k: int = 20,
    controls: int = 20,
    objective: AnyObjective | None = None,
    positions: str | None = None,
    orders: str = "rotate",
    template: str | list[str] | None = None,
    answers: str | None = None,
    length: str | None = None,
    cloze: str = TEXT_TEMPLATE,
    seed: int = 0,
    batch_size: int | str = "auto",
    backend: str = "fast",
    progress: bool = True,
    **method_options: Any,
) -> Prediction:
    """Answer test questions by a subject's neurons alone; accuracy beside the model's own, chance and random neurons.

    search: questions on which the k neurons of each subject are found; questions without a subject are all of one.
    test: others, of the same subjects. cloze: the wording behind which options are put to read neurons at their tokens.
    orders, template: how test questions are asked of the model and of `nl.pushes`; in every order of the choices, so
    that what neurons do to a letter whatever is asked cancels. controls: random sets of as many neurons in every block.
    The rest is as in `nl.attribute`.

    >>> print(nl.predict(model, tokenizer, search, test))   # doctest: +SKIP
    """
    checked_count("controls", controls)
    words: dict[str, Any] = {"template": template, "answers": answers, "length": length, "batch_size": batch_size}
    more: dict[str, Any] = {"positions": positions, "backend": backend, "progress": progress}
    request = Request(method, objective=objective, **words, **more, options=method_options)
    job, scores = subject_scores(model, tokenizer, search, test, request, k)
    sets = subject_sets(job, search, scores, k)
    asked = Asking.of(test, next(iter(sets.values())).provenance, orders, template, answers, length)
    own = Asker(job.model, asked.prompts(job.model, tokenizer, test), batch_size)(None, "the model", progress)
    columns = _Columns.of(sets, controls, seed)
    known, found = (_read(job, tokenizer, some, cloze, columns.ids) for some in (search, test))
    words |= {"template": asked.template, "answers": asked.form.answers, "orders": orders}
    pushed = pushes(job.model, tokenizer, test, columns.ids, **words, backend=backend, progress=progress)
    direction = _directions(search, known)
    sums = {
        "activation": lambda n, at: found[n][:, at] @ direction[subject_of(test[n])][at],
        "score": lambda n, at: pushed[n, : len(test[n].choices), at].double().sum(-1),
    }
    summed = {
        name: [[of(n, at) for at in columns.of_subject(subject_of(question))] for n, question in enumerate(test)]
        for name, of in sums.items()
    }
    points = {name: np.array([_points(q, s) for q, s in zip(test, each, strict=True)]) for name, each in summed.items()}
    right = own.by_question(own.right)
    return Prediction(
        questions=len(test),
        chance=float(np.mean([1 / len(question.choices) for question in test])),
        model={"accuracy": float(right.mean()), "ci": bootstrap_interval(right, seed)},
        by={name: _summary(test, each, seed) for name, each in points.items()},
        picked={name: [int(sums[0].argmax()) for sums in each] for name, each in summed.items()},
        neurons=sets,
    )


@dataclass(frozen=True)
class _Columns:
    """The neurons that are read, of all subjects and random sets, and where among them those of each set stand."""

    ids: Tensor
    places: dict[str, list[Tensor]]  # of each subject its own neurons first, then the random sets

    @classmethod
    def of(cls, sets: dict[str, NeuronSet], controls: int, seed: int) -> _Columns:
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            name: [one.ids, *(random_like(one.ids, one.anatomy, generator) for _ in range(controls))]
            for name, one in sets.items()
        }
        ids = torch.cat([part for each in drawn.values() for part in each]).unique()
        return cls(ids, {name: [torch.searchsorted(ids, part) for part in each] for name, each in drawn.items()})

    def of_subject(self, name: str) -> list[Tensor]:
        return self.places[name]


def _read(job: Job, tokenizer: Any, questions: Sequence[Question], cloze: str, ids: Tensor) -> list[Tensor]:
    """Of every question what neurons hold at the tokens of each option, (options, neurons)."""
    prompts = [replace(p, offsets=[]) for p in render(tokenizer, questions, "none", cloze, answers="texts")]
    options: list[Prompt] = [replace(prompt, answer=n) for prompt in prompts for n in range(len(prompt.option_ids))]
    request, rows = job.request, []
    reading = Reading.of(
        job.model,
        tokenizer,
        {
            "positions": "answer",
            "activation": "value",
            "chat": False,
            "max_new_tokens": None,
            "batch_size": request.batch_size,
            "backend": request.backend,
            "dtype": None,
            "progress": request.progress,
        },
    )
    reading.rows(encoded(None, options, "options"), "options", lambda row: rows.append(row[ids].double()))
    return list(torch.stack(rows).split([len(question.choices) for question in questions]))


def _directions(search: Sequence[Question], known: Sequence[Tensor]) -> dict[str, Tensor]:
    """The sign of the mean that every neuron holds at the right answers of a subject's search questions."""
    rows: dict[str, list[Tensor]] = {}
    for question, options in zip(search, known, strict=True):
        rows.setdefault(subject_of(question), []).append(options[question.answer])
    return {name: torch.stack(each).mean(0).sign() for name, each in rows.items()}


def _points(question: Question, sums: Sequence[Tensor]) -> list[float]:
    """For each set 1 where the right option has the largest sum, less where others tie with it, else 0."""
    points = []
    for each in sums:
        top = each == each.max()
        points.append(float(top[question.answer]) / int(top.sum()))
    return points


def _summary(test: Sequence[Question], points: np.ndarray, seed: int) -> dict[str, Any]:
    """`points`: (questions, sets), the first set being that of the chosen neurons."""
    own, random = points[:, 0], points[:, 1:].mean(0)
    subject = np.array([subject_of(question) for question in test])
    return {
        "accuracy": float(own.mean()),
        "ci": bootstrap_interval(own, seed),
        "random": among(random.tolist(), float(own.mean())) if len(random) else None,
        "subjects": {name: float(own[subject == name].mean()) for name in dict.fromkeys(subject.tolist())},
    }


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"
