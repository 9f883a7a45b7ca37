"""The driver: questions -> prompts -> engine -> collector -> Scores, here, on disk, or in several processes.

The questions are cut into windows, whole questions that the engine is handed together; after each window the collector
and what is kept of single prompts have taken in all of it. Both are in a store (runs/stores.py), in memory or on disk;
a run on disk goes on after the last window that it has written down. Several processes (runs/processes.py) each have
windows of their own, and merge what they gathered at the end; one process is a group of one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.errors import InputError
from ..data.prompts import Prompt, Questions
from ..engine import open_engine
from ..engine.answers import option_logprobs
from ..engine.batching import Plan
from ..engine.borrowed import plain_types
from ..engine.objectives import AnyObjective
from ..methods import Collector, Method
from ..results.answers import answered_right
from ..results.scores import Scores
from ..runs.checkpoint import undisturbed
from ..runs.processes import Ranks, share_out
from ..runs.stores import Store, open_store
from .job import Job
from .request import Request
from .shares import Share, share_of, windows_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..engine.base import Engine


def attribute(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Questions,
    method: str | Method = Request.method,
    *,
    objective: AnyObjective | None = Request.objective,
    positions: str | None = Request.positions,
    orders: str | None = Request.orders,
    template: str | Sequence[str] | None = Request.template,
    items: str = Request.items,
    keep: str = Request.keep,
    k: int = Request.k,
    keep_dtype: torch.dtype = Request.keep_dtype,
    batch_size: int | str = Request.batch_size,
    backend: str = Request.backend,
    dtype: torch.dtype | None = Request.dtype,
    progress: bool = Request.progress,
    output: str | os.PathLike[str] | None = Request.output,
    resume: bool = Request.resume,
    overwrite: bool = Request.overwrite,
    **method_options: Any,
) -> Scores:
    """Score every FFN neuron of a model by how much it helps (+) or hurts (-) the right answers.

    questions: `nl.load_questions(...)`, or rendered `nl.Prompt`s (then tokenizer, orders and template are not used).
    method, objective: by name, see `neuronllm.methods` and `neuronllm.objectives`, or as objects; method "ace" is that
    of the NeuronLLM paper. None for objective, positions, orders and template means the method's own default; for
    positions that is "all" where the method can, else "answer".
    items: "wrong" or "right" scores only the questions that the model answers so. dtype: judge a copy of the model in
    this type. Further keywords are options of the method.

    keep: beside the mean, "topk" keeps each prompt's k highest and k lowest scores (`scores.top`), "all" all of them
    (`scores.per_prompt`), in keep_dtype: torch.float32 or torch.bfloat16.

    output: a folder for the scores. What is done is written as it goes, so memory does not grow with the questions, and
    resume=True takes up a run that was stopped or killed; the result is the same to the byte. Where there is nothing to
    take up, it starts. An earlier result there is refused, and with overwrite=True replaced once the new one is whole.

    Inside torch.distributed (torchrun, or a group of your own) every process calls this with the same arguments, takes
    a share of the questions, and gets the same scores.

    >>> scores = nl.attribute(model, tokenizer, questions)   # doctest: +SKIP
    >>> scores.find(good=50, bad=50)                                            # doctest: +SKIP
    """
    request = Request(
        method,
        objective=objective,
        positions=positions,
        orders=orders,
        template=template,
        items=items,
        keep=keep,
        k=k,
        keep_dtype=keep_dtype,
        batch_size=batch_size,
        backend=backend,
        dtype=dtype,
        progress=progress,
        output=output,
        resume=resume,
        overwrite=overwrite,
        options=method_options,
    )
    return attributed(model, tokenizer, questions, request)


@torch.inference_mode(False)  # a caller's inference mode would forbid gradients
def attributed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, questions: Questions, request: Request
) -> Scores:
    """What `attribute` does, with all that was asked in one object."""
    with Ranks.here() as ranks:
        with ranks.together():
            job = Job.of(model, tokenizer, questions, request)
        return _attributed(job, ranks)


def _attributed(job: Job, ranks: Ranks) -> Scores:
    store = _store_of(job, ranks)
    if (scores := store.result()) is not None:
        return scores
    show = job.request.progress and ranks.first
    chosen = store.manifest["chosen"] if store.manifest else _chosen(job, ranks, show)
    groups = job.groups if chosen is None else [job.groups[number] for number in chosen]
    try:
        plan, engine = _scored(job, groups, chosen, store, ranks, show)
    except BaseException:
        store.discard()
        raise
    plans = ranks.gather(plan.to_dict())
    provenance = job.provenance(groups) | ranks.gather(engine)[0]
    if noise := max(plan["noise"] for plan in plans):
        provenance["noise"] = noise  # effects below it say nothing
    return store.finish(_summary(job, ranks, store, provenance), [plan["backoffs"] for plan in plans])


def _store_of(job: Job, ranks: Ranks) -> Store[Collector]:
    """Where a job keeps what it gathers, after refusing processes that were given different ones."""
    n_neurons = job.anatomy.n_neurons
    settings = cache(partial(job.settings, ranks.size))
    ranks.agree(settings)
    new, bytes_a_prompt = partial(job.how.collector, n_neurons), n_neurons * job.request.keep_dtype.itemsize
    return open_store(job.request.output, job.request.resume, ranks, settings, new, bytes_a_prompt)


def _summary(job: Job, ranks: Ranks, store: Store[Collector], provenance: dict[str, Any]) -> Scores:
    collector = store.merged()
    try:
        with ranks.together():
            values, stderr, consistency = (part.float() for part in collector.summary())
    except InputError:
        store.discard(work=True)  # which would end in the same way when it is taken up
        raise
    return Scores(values, stderr, consistency, job.anatomy, provenance)


def _scored(
    job: Job, groups: list[list[Prompt]], chosen: list[int] | None, store: Store[Collector], ranks: Ranks, show: bool
) -> tuple[Plan, dict[str, Any]]:
    """Score this process's share of the questions; the plan with what was learnt, and which engine did it."""
    frozen = store.manifest
    plan = Plan.from_dict(frozen["plan"]) if frozen else None
    with engine_of(job, plan) as engine:
        if plan is None:
            engine.fit(partial(raw_scores, job, engine), job.prompts)
        first = ranks.gather(engine.plan.to_dict())[0]
        worked = _described(engine)
        _warn_of_post_norms(job, engine)
        window = frozen["window"] if frozen else (1 if job.how.expensive else engine.at_once)
        engine.plan = Plan.from_dict(store.begin(first, engine=engine.name, window=window, chosen=chosen))
        share = share_of(groups, ranks.rank, ranks.size)
        with tqdm(total=len(share), desc=_label(job, ranks), disable=not show, unit="question") as bar:
            _through(job, engine, list(windows_of(share, window)), store, bar)
        return engine.plan, worked


def _described(engine: Engine) -> dict[str, Any]:
    """Which engine does the work, why where it is not the one that was asked for, and what else may turn a rounding."""
    reason = engine.reason
    found: dict[str, Any] = {"engine": engine.name} | ({"engine_reason": reason} if reason else {})
    found["threads"] = torch.get_num_threads()
    if engine.anatomy.routed:
        names = engine.model.get_experts_implementation().values()
        found["experts_implementation"] = ", ".join(sorted({name for name in names if name}))
    return found


def _through(job: Job, engine: Engine, windows: list[list[Share]], store: Store[Collector], bar: Any) -> None:
    """Score window after window, from the first that is not done."""
    bar.update(sum(len(window) for window in windows[: store.windows]))
    try:
        for window in windows[store.windows :]:
            flat = [prompt for share in window for prompt in share.prompts]
            sizes = [len(share.prompts) for share in window]
            raw = raw_scores(job, engine, flat)
            right: Sequence[Tensor | None] = [None] * len(window)
            if job.how.needs_answers:
                right = _answered(engine.option_scores(flat), flat).split(sizes)
            places = torch.cat([torch.arange(share.place, share.place + len(share.prompts)) for share in window])
            with undisturbed(), plain_types():
                for scores, are_right in zip(raw.split(sizes), right, strict=True):
                    store.collector.add(scores, are_right)
                store.add(job.rows(raw, places), len(flat), engine.plan.to_dict())
            bar.update(len(window))
        store.end(engine.plan.to_dict())
    except KeyboardInterrupt as stop:
        done, total = (sum(len(window) for window in some) for some in (windows[: store.windows], windows))
        said = f"{done} of {total} questions are done"
        raise store.stopped(stop, engine.plan.to_dict(), said) from None


def raw_scores(job: Job, engine: Engine, prompts: Sequence[Prompt]) -> Tensor:
    return job.how.score(engine, prompts, job.request.explained, job.request.positions or "")


def engine_of(job: Job, plan: Plan | None = None) -> AbstractContextManager[Engine]:
    asked = job.request
    more: dict[str, Any] = {"dtype": asked.dtype, "batch_size": asked.batch_size, "plan": plan}
    return open_engine(job.model, job.anatomy, job.prompts, asked.backend, **more)


def _label(job: Job, ranks: Ranks) -> str:
    return job.how.name if ranks.size == 1 else f"{job.how.name} (first of {ranks.size} processes)"


def _warn_of_post_norms(job: Job, engine: Engine) -> None:
    if job.how.integrates and engine.post_normed(job.prompts[0]):
        warnings.warn(
            f"{type(job.model).__name__} normalises what its FFNs put out, which undoes the scaling of a whole layer "
            f'that integrated gradients ({job.how.name}) rest on; use method="gradient" or "exact"',
            stacklevel=7,  # past the functions of this file and the decorator
        )


def _answered(scores: list[Tensor], prompts: Sequence[Prompt]) -> Tensor:
    """Which prompts the model answers right."""
    return torch.tensor([int(s.argmax()) == p.answer for s, p in zip(scores, prompts, strict=True)])


def _chosen(job: Job, ranks: Ranks, progress: bool) -> list[int] | None:
    """The numbers of the questions that the model answers as `items` says; None: all of them."""
    items = job.request.items
    if items == "all":
        return None
    share = share_out([sum(len(p.input_ids) for p in group) for group in job.groups], ranks.size)[ranks.rank]
    flat = [prompt for number in share for prompt in job.groups[number]]
    mine: list[int] = []
    if flat:
        logprobs = option_logprobs(job.model, flat, batch_size=job.request.batch_size, progress=progress)
        right = answered_right(logprobs, [job.groups[number] for number in share]).tolist()
        mine = [number for number, is_right in zip(share, right, strict=True) if is_right == (items == "right")]
    chosen = sorted(number for numbers in ranks.gather(mine) for number in numbers)
    with ranks.together():
        if not chosen:
            raise InputError(f'items="{items}": the model answers none of the {len(job.groups)} questions {items}')
    return chosen
