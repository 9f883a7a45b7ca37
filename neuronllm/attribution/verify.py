"""Verified neurons: those that do, really run, what their score says.

A first-order score is a slope, and fails where it hurts: on neurons with huge activations. So here

1. the strongest neurons are silenced on questions, each by itself, and their effects are measured;
2. a neuron is kept if its effect has the sign of its role and is more than `margin` standard errors over questions away
   from 0, the strongest effects first;
3. jointly, one neuron after the other joins those before it, where silencing them together does more with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.errors import InputError
from ..data.forms import form_of, found_template, is_worded
from ..data.prompts import Prompt, Questions
from ..data.seen import packed
from ..engine.asking import Asker, Edit
from ..engine.objectives import NEVER, AnyObjective, Readout
from ..judging.gains import Gain, check_margin
from ..results.factors import ROLES
from ..results.neurons import NeuronSet, check_counts
from ..results.scores import Scores
from .driver import engine_of
from .job import Job
from .request import Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WANTED, TRIED = 100, 4  # neurons of a role that are wanted of scores, and how many are tried for each of them


@torch.inference_mode(False)
def verify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    neurons: Scores | NeuronSet,
    questions: Questions,
    good: int | None = None,
    bad: int | None = None,
    *,
    joint: bool = False,
    margin: float = 2.0,
    limit: int | None = None,
    factor: float = 0.0,
    positions: str | None = None,
    objective: AnyObjective | None = None,
    orders: str | None = None,
    template: str | Sequence[str] | None = None,
    answers: str | None = None,
    length: str | None = None,
    batch_size: int | str = "auto",
    backend: str = "fast",
    progress: bool = True,
) -> NeuronSet:
    """The neurons that do what their score says: each is silenced on questions, really, and its effect measured.

    neurons: scores, of whose best and worst four times as many are tried as are wanted; or a set, which is tried whole.
    good, bad: how many to keep at most, the strongest effects first; by default 100 of scores, and all of a set.
    margin: standard errors over questions that an effect must be away from 0, in the direction of the neuron's role.
    limit: how many of each role are tried instead, the strongest scores first. factor: what is tried; 0 silences.
    joint: one neuron after the other, the strongest first, joins those before it, where the objective with all of them
    edited together moves on by more than `margin` standard errors; good and bad ones each among themselves.

    positions, objective, orders, template, answers, length: as the neurons were found unless told otherwise, and at all
    positions where nothing says so. The set is judged and lived with at these positions. Its scores are the measured
    effects, + helps; `provenance["verified"]` has the counts, and for each neuron the score it was tried for.

    >>> neurons = nl.verify(model, tokenizer, scores, questions, good=64, bad=64)   # doctest: +SKIP
    """
    default = WANTED if isinstance(neurons, Scores) else None
    wanted = {role: default if k is None else k for role, k in (("good", good), ("bad", bad))}
    check_margin(margin)
    check_counts(**{name: k for name, k in {**wanted, "limit": limit}.items() if k is not None})
    if factor == 1:
        raise InputError("factor=1: it leaves every neuron as it is; give another one (0 silences)")
    tried = _tried(neurons, wanted, limit)
    request = Request(
        "exact",
        objective=objective,
        positions=positions,
        orders=orders,
        template=template,
        answers=answers,
        length=length,
        batch_size=batch_size,
        backend=backend,
        progress=progress,
        options={"factor": factor},
    )
    job = Job.of(model, tokenizer, questions, _as_found(request, tried, questions))
    _check(job, tried, joint)
    measured = _measured(job, tried.ids)
    together = _Together(job) if joint else None
    kept: list[Tensor] = []
    found: dict[str, Any] = {}
    for role in ROLES:
        sure, found[role] = measured.sure(torch.from_numpy(tried.role == role), role, margin)
        if together is not None:
            joined, found[role]["objective"] = together.joined(tried.ids[sure], role, margin, wanted[role])
            sure = sure[joined]
        kept.append(sure[: wanted[role]])
        found[role]["kept"] = len(kept[-1])
    found |= {"questions": len(job.groups), "positions": job.request.positions, "factor": factor, "margin": margin}
    found |= {"objective": job.request.explained.name, "joint": joint, "noise": measured.noise}
    found["seen"] = packed(questions)
    return measured.of(tried, torch.cat(kept), found)


def _tried(neurons: Scores | NeuronSet, wanted: dict[str, int | None], limit: int | None) -> NeuronSet:
    """The neurons to try, of each role the strongest first."""
    if isinstance(neurons, Scores):
        signed = {"good": neurons.values > 0, "bad": neurons.values < 0}
        most = {role: (k or 0) * TRIED if limit is None else limit * (k != 0) for role, k in wanted.items()}
        tried = neurons.find(**{role: min(most[role], int(signed[role].sum())) for role in ROLES})
    elif isinstance(neurons, NeuronSet):
        tried = neurons.top(**{role: 0 if wanted[role] == 0 else limit for role in ROLES})
    else:
        raise InputError(f"neurons: give scores or a neuron set, not {type(neurons).__name__}")
    if not len(tried):
        raise InputError("neurons: there is none to try, in the roles and numbers that were asked for")
    return tried


def _as_found(request: Request, tried: NeuronSet, questions: Questions) -> Request:
    """What was asked for, else what the neurons were found with."""
    found = tried.provenance
    positions = request.positions or tried.positions or "all"
    request = replace(request, positions=positions, objective=request.objective or found.get("objective") or None)
    if isinstance(questions, Sequence) and any(isinstance(one, Prompt) for one in questions):
        return request
    form = form_of(questions, request.answers, request.length, found)
    if any(map(is_worded, questions)):
        return replace(request, answers=form.answers, length=form.length)
    template = request.template or found_template(found, form.answers)
    orders = request.orders or (found.get("orders") if found.get("answers") == form.answers else None)
    return replace(request, answers=form.answers, length=form.length, template=template, orders=orders)


def _check(job: Job, tried: NeuronSet, joint: bool) -> None:
    if not job.anatomy.same_layout(tried.anatomy):
        raise InputError(f"the neurons are of a {tried.anatomy.describe()}, the model is a {job.anatomy.describe()}")
    if len(job.groups) < 2:
        raise InputError("questions: give two or more, so that it shows how sure an effect is")
    explained = job.request.explained
    more = explained.vocabulary and any(prompt.one_token for prompt in job.prompts)
    if joint and (more or explained.forms is not None):
        raise InputError(
            f"joint=True: objective {explained.name!r} reads more than the scores of the options, by which sets of "
            'neurons are compared; give another one, such as objective="logp_options"'
        )


def _direction(job: Job) -> int:
    """Less of a neuron shows its effect as it is, more of it the other way round."""
    return 1 if job.request.options["factor"] < 1 else -1


class _Measured(NamedTuple):
    """Effects of the tried neurons over questions, + helps."""

    mean: Tensor
    stderr: Tensor
    noise: float  # what a rounding does to the objective: effects below it say nothing

    def sure(self, mine: Tensor, role: str, margin: float) -> tuple[Tensor, dict[str, Any]]:
        """Where effects are what the role of these neurons says, the strongest first; and how many are not."""
        toward = self.mean if role == "good" else -self.mean
        sure = (mine & (toward > margin * self.stderr)).nonzero()[:, 0]
        tried, wrong = int(mine.sum()), int((mine & (toward < 0)).sum())
        counts = {"tried": tried, "wrong_sign": wrong, "too_small": tried - wrong - len(sure)}
        return sure[toward[sure].argsort(descending=True, stable=True)], counts

    def of(self, tried: NeuronSet, places: Tensor, found: dict[str, Any]) -> NeuronSet:
        """The neurons at these places with their effects as scores; what they were tried for is kept beside them."""
        kept, numbers = tried.take(places), [str(number) for number in tried.ids[places].tolist()]
        found["first_order"] = dict(zip(numbers, kept.score.tolist(), strict=True))
        found["stderr"] = dict(zip(numbers, self.stderr[places].tolist(), strict=True))
        return replace(kept, score=self.mean[places].float(), provenance={**tried.provenance, "verified": found})


def _measured(job: Job, ids: Tensor) -> _Measured:
    """Every neuron edited by itself, on every question."""
    effects, noise = each_effect(job, ids)
    by_question = _direction(job) * effects
    return _Measured(by_question.mean(0), by_question.std(0) / len(by_question) ** 0.5, noise)


def each_effect(job: Job, ids: Tensor) -> tuple[Tensor, float]:
    """(questions, ids): the exact effects that a job of method "exact" asks for, in float64, and their noise."""
    request, waiting = job.request, job.groups
    factor, positions = request.options.get("factor", 0.0), request.positions or ""
    found: list[Tensor] = []
    with (
        engine_of(job) as engine,
        tqdm(total=len(waiting), desc="verifying", disable=not request.progress, unit="question") as bar,
    ):

        def effects(prompts: Sequence[Prompt]) -> Tensor:
            return engine.effects(prompts, request.explained, ids=ids, factor=factor, positions=positions)

        engine.fit(effects, job.prompts)
        while waiting:
            size = engine.at_once if positions == "answer" else 1  # whole prompts are run one at a time
            now, waiting = waiting[:size], waiting[size:]
            rows = effects([prompt for group in now for prompt in group])
            found += [part.double().mean(0) for part in rows.split([len(group) for group in now])]
            bar.update(len(now))
        noise = engine.plan.noise
    return torch.stack(found), noise


class _Together:
    """The objective while several neurons are edited, question by question."""

    def __init__(self, job: Job) -> None:
        self.job, self.ask = job, Asker(job.model, job.prompts, job.request.batch_size)
        self.unedited = self._values([])

    def joined(self, ids: Tensor, role: str, margin: float, most: int | None) -> tuple[list[int], list[float]]:
        """Places of the neurons that join those before them; the mean objective without any, and with all of them."""
        sign = _direction(self.job) * (-1 if role == "good" else 1)  # without good neurons, the objective falls
        places: list[int] = []
        now = self.unedited
        for place in tqdm(range(len(ids)), desc=f"joining {role}", disable=not self.job.request.progress, leave=False):
            if len(places) == most:
                break
            after = self._values(ids[[*places, place]].tolist())
            if Gain.of(sign * after, sign * now).worth(margin):
                places.append(place)
                now = after
        return places, [float(self.unedited.mean()), float(now.mean())]

    def _values(self, ids: list[int]) -> np.ndarray:
        request = self.job.request
        factors = torch.full((len(ids),), float(request.options["factor"]), dtype=torch.float64)
        change = Edit(torch.tensor(ids), factors, request.positions or "") if ids else None
        scores = self.ask.scores(change).clamp(min=NEVER)
        right = torch.tensor([prompt.answer for prompt in self.job.prompts])
        values = request.explained.value(Readout(scores, right[:, None], torch.zeros(len(scores)))).double()
        return torch.stack([part.mean() for part in values.split([len(group) for group in self.job.groups])]).numpy()
