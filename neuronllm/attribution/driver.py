"""The driver: questions -> prompts -> engine -> collector -> Scores, here, on disk, or in several processes.

The questions are cut into windows, whole questions that the engine is handed together; after each window the collector
and the rows to keep have taken in all of it. A run on disk (runs/checkpoint.py) goes on after the last window that it
has written down; several processes (runs/processes.py) each have windows of their own, and merge what they gathered at
the end.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.errors import InputError
from ..data.prompts import Prompt, Questions
from ..engine import open_engine
from ..engine.asking import Asker
from ..engine.batching import Plan
from ..engine.borrowed import plain_types
from ..engine.objectives import NO_OBJECTIVE, AnyObjective, get_objective
from ..methods import Collector, Method, get_method
from ..results.answers import answered_right
from ..results.per_prompt import PLACES, Parts, Top
from ..results.scores import Scores
from ..runs.checkpoint import Interrupted, Progress, Run, check_output, check_same, every_prompts, undisturbed
from ..runs.processes import Ranks, share_out
from .request import Job
from .shares import Share, share_of, windows_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..engine.base import Engine


@torch.inference_mode(False)  # a caller's inference mode would forbid gradients
def attribute(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Questions,
    method: str | Method = "ace",
    *,
    objective: AnyObjective | None = None,
    positions: str = "answer",
    orders: str | None = None,
    template: str | list[str] | None = None,
    items: str = "all",
    keep: str = "mean",
    k: int = 100,
    keep_dtype: torch.dtype = torch.float32,
    batch_size: int | str = "auto",
    backend: str = "fast",
    dtype: torch.dtype | None = None,
    progress: bool = True,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **method_options: Any,
) -> Scores:
    """Score every FFN neuron of a model by how much it helps (+) or hurts (-) the right answers.

    questions: `nl.load_questions(...)`, or rendered `nl.Prompt`s (then tokenizer, orders and template are not used).
    method, objective: by name, see `neuronllm.methods` and `neuronllm.objectives`, or as objects. None for objective,
    orders and template means the method's own default.
    positions: "answer", or "all" for methods that can. items: "wrong" or "right" scores only the questions that the
    model answers so. dtype: judge a copy of the model in this type. Further keywords are options of the method.

    keep: beside the mean, "topk" keeps each prompt's k highest and k lowest scores (`scores.top`), "all" all of them
    (`scores.per_prompt`), in keep_dtype: torch.float32 or torch.bfloat16.

    output: a folder for the scores. What is done is written as it goes, so memory does not grow with the questions, and
    resume=True takes up a run that was stopped or killed; the result is the same to the byte. Where there is nothing to
    take up, it starts. An earlier result there is refused, and with overwrite=True replaced once the new one is whole.

    Inside torch.distributed (torchrun, or a group of your own) every process calls this with the same arguments, takes
    a share of the questions, and gets the same scores.

    >>> scores = nl.attribute(model, tokenizer, questions, method="gradient")   # doctest: +SKIP
    >>> scores.find(good=50, bad=50)                                            # doctest: +SKIP
    """
    asked = (objective, positions, orders, template, items, keep, k, keep_dtype, batch_size, backend, dtype)
    with Ranks.here() as ranks:
        with ranks.together():
            job = Job(model, tokenizer, questions, get_method(method, method_options), *asked)
            check_place(output, resume, overwrite)
            job.check()
        return _attributed(job, ranks, progress, output, resume)


def check_place(output: str | os.PathLike[str] | None, resume: bool, overwrite: bool) -> None:
    if output is not None:
        check_output(output, resume, overwrite)
    elif resume:
        raise InputError("resume=True: there is nothing to go on with without output=, the folder of the run")
    elif overwrite:
        raise InputError("overwrite=True: there is nothing to replace without output=, a folder")


def _attributed(job: Job, ranks: Ranks, show: bool, output: str | os.PathLike[str] | None, resume: bool) -> Scores:
    run = None
    if output is not None or ranks.size > 1:
        settings = job.settings(ranks.size)
        first = ranks.gather(settings)[0]
        with ranks.together():
            check_same(first, settings, "the processes must be given the same: the first one has")
            run = Run(output, settings, resume, ranks) if output is not None else None
    if run is not None and run.complete:
        if ranks.first:
            run.settle()
        ranks.wait()
        return Scores.load(run.target)
    show = show and ranks.first
    chosen = run.manifest["chosen"] if run is not None and run.manifest else _chosen(job, ranks, show)
    groups = job.groups if chosen is None else [job.groups[number] for number in chosen]
    progress, plan, engine = _scored(job, groups, chosen, run, ranks, show)
    plans = ranks.gather(plan.to_dict())

    collector = ranks.merge(progress.collector, lambda: job.how.collector(job.anatomy.n_neurons))
    try:
        with ranks.together():
            values, stderr, consistency = (part.float() for part in collector.summary())
    except InputError:
        if run is not None:
            run.discard(work=True)  # which would end in the same way when it is taken up
        raise
    provenance = job.provenance(groups) | ranks.gather(engine)[0]
    if noise := max(plan["noise"] for plan in plans):
        provenance["noise"] = noise  # effects below it say nothing
    scores = Scores(values, stderr, consistency, job.anatomy, provenance)
    if run is None:
        return _with_rows(scores, job, ranks.rows(progress.rows()))
    with ranks.together(), undisturbed():
        if ranks.first:
            if job.keep == "all":
                scores.per_prompt = Parts(run.folder, run.parts())
            elif job.keep == "topk":
                scores = _with_rows(scores, job, run.read_parts())
            run.finish(scores, [plan["backoffs"] for plan in plans])
    return Scores.load(run.target)


def _scored(
    job: Job, groups: list[list[Prompt]], chosen: list[int] | None, run: Run | None, ranks: Ranks, show: bool
) -> tuple[Progress[Collector], Plan, dict[str, Any]]:
    """Score this process's share of the questions; what was gathered, the plan with what was learnt, and the engine."""
    n_neurons, manifest = job.anatomy.n_neurons, run.manifest if run is not None else None
    every = every_prompts(n_neurons * job.keep_dtype.itemsize)
    progress = Progress(job.how.collector(n_neurons), run, ranks.rank, every)
    plan = Plan.from_dict(manifest["plan"]) if manifest else None
    begun = False
    try:
        with engine_of(job, plan) as engine:
            if plan is None:
                engine.fit(partial(raw_scores, job, engine), job.prompts)
            if ranks.size > 1:
                engine.plan = Plan.from_dict(ranks.gather(engine.plan.to_dict())[0])
            worked = _described(engine)
            _warn_of_post_norms(job, engine)
            window = manifest["window"] if manifest else (1 if job.how.expensive else engine.at_once)
            if run is not None:
                facts = {"engine": engine.name, "window": window, "every": every, "chosen": chosen}
                with ranks.together():
                    run.freeze(engine.plan.to_dict(), **facts)
                    saved = progress.load()
                engine.plan = Plan.from_dict(saved) if saved else engine.plan
            share = share_of(groups, ranks.rank, ranks.size)
            with tqdm(total=len(share), desc=_label(job, ranks), disable=not show, unit="question") as bar:
                _through(job, engine, list(windows_of(share, window)), progress, bar)
            plan = engine.plan
        begun = True
    finally:
        if run is not None and not begun:
            run.discard()
    return progress, plan, worked


def _described(engine: Engine) -> dict[str, Any]:
    """Which engine does the work, why where it is not the one that was asked for, and what else may turn a rounding."""
    reason = engine.reason
    found: dict[str, Any] = {"engine": engine.name} | ({"engine_reason": reason} if reason else {})
    found["threads"] = torch.get_num_threads()
    if engine.anatomy.routed:
        names = engine.model.get_experts_implementation().values()
        found["experts_implementation"] = ", ".join(sorted({name for name in names if name}))
    return found


def _through(job: Job, engine: Engine, windows: list[list[Share]], progress: Progress[Collector], bar: Any) -> None:
    """Score window after window, from the first that is not done."""
    bar.update(sum(len(window) for window in windows[: progress.windows]))
    try:
        for window in windows[progress.windows :]:
            flat = [prompt for share in window for prompt in share.prompts]
            sizes = [len(share.prompts) for share in window]
            raw = raw_scores(job, engine, flat)
            right: Sequence[Tensor | None] = [None] * len(window)
            if job.how.needs_answers:
                right = torch.from_numpy(Asker(engine.model, flat, job.batch_size)().right).split(sizes)
            places = torch.cat([torch.arange(share.place, share.place + len(share.prompts)) for share in window])
            with undisturbed(), plain_types():
                for scores, are_right in zip(raw.split(sizes), right, strict=True):
                    progress.collector.add(scores, are_right)
                progress.add(job.rows(raw, places), len(flat), engine.plan.to_dict())
            bar.update(len(window))
        progress.flush(engine.plan.to_dict())
    except KeyboardInterrupt:
        if progress.run is None:
            raise
        if not progress.windows:
            raise Interrupted(
                "interrupted before the first questions were done: nothing is kept, start again"
            ) from None
        with undisturbed():
            progress.save(engine.plan.to_dict())
        done = sum(len(window) for window in windows[: progress.windows])
        total = sum(len(window) for window in windows)
        raise Interrupted(
            f"interrupted, {done} of {total} questions are done; go on with resume=True (--resume)"
        ) from None


def raw_scores(job: Job, engine: Engine, prompts: Sequence[Prompt]) -> Tensor:
    return job.how.score(engine, prompts, get_objective(job.objective or NO_OBJECTIVE), job.positions)


def engine_of(job: Job, plan: Plan | None = None) -> AbstractContextManager[Engine]:
    more: dict[str, Any] = {"dtype": job.dtype, "batch_size": job.batch_size, "plan": plan}
    return open_engine(job.model, job.anatomy, job.prompts, job.backend, **more)


def _with_rows(scores: Scores, job: Job, rows: dict[str, Tensor]) -> Scores:
    """The scores with what was kept of the prompts, in the order of the prompts."""
    if rows:
        order = rows[PLACES].argsort()
        ordered = {name: tensor[order] for name, tensor in rows.items()}
        scores.per_prompt = ordered.get("scores")
        scores.top = Top.of_tensors(ordered) if job.keep == "topk" else None
    return scores


def _label(job: Job, ranks: Ranks) -> str:
    return job.how.name if ranks.size == 1 else f"{job.how.name} (first of {ranks.size} processes)"


def _warn_of_post_norms(job: Job, engine: Engine) -> None:
    if job.how.integrates and engine.post_normed(job.prompts[0]):
        warnings.warn(
            f"{type(job.model).__name__} normalises what its FFNs put out, which undoes the scaling of a whole layer "
            f'that integrated gradients ({job.how.name}) rest on; use method="gradient" or "exact"',
            stacklevel=6,  # past the functions of this file and the decorator
        )


def _chosen(job: Job, ranks: Ranks, progress: bool) -> list[int] | None:
    """The numbers of the questions that the model answers as `items` says; None: all of them."""
    if job.items == "all":
        return None
    share = share_out([sum(len(p.input_ids) for p in group) for group in job.groups], ranks.size)[ranks.rank]
    flat = [prompt for number in share for prompt in job.groups[number]]
    mine: list[int] = []
    if flat:
        logprobs = Asker(job.model, flat, job.batch_size).logprobs(progress=progress)
        right = answered_right(logprobs, [job.groups[number] for number in share]).tolist()
        mine = [number for number, is_right in zip(share, right, strict=True) if is_right == (job.items == "right")]
    chosen = sorted(number for numbers in ranks.gather(mine) for number in numbers)
    with ranks.together():
        if not chosen:
            raise InputError(
                f'items="{job.items}": the model answers none of the {len(job.groups)} questions {job.items}'
            )
    return chosen
