"""The driver: questions -> prompts -> engine -> collector -> Scores, here, on disk, or in several processes.

The questions are cut into windows, whole questions that the engine is handed together; after each window the collector
and what is kept of single prompts have taken in all of it. Both are in a store (runs/stores.py), in memory or on disk;
a run on disk goes on after the last window that it has written down. Several processes (runs/processes.py) each have
windows of their own, and merge what they gathered at the end; one process is a group of one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.checks import floating
from ..common.errors import InputError
from ..common.interrupts import one_interrupt, undisturbed
from ..common.warning import warn
from ..data.prompts import Prompt, Questions
from ..engine import open_engine
from ..engine.asking import Asker
from ..engine.batching import Plan
from ..engine.borrowed import plain_types
from ..engine.objectives import AnyObjective
from ..methods import Collector, Method
from ..methods.exact import Exact
from ..results.answers import Heard, answered_right
from ..results.scores import Scores
from ..runs.processes import Ranks, share_out
from ..runs.stores import Store, open_store
from .job import Job
from .leaning import Caution, Gathered
from .request import Request
from .shares import Share, share_of, windows_of
from .strongest import strongest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..engine.base import Engine

DOUBTFUL = 0.05  # estimated error of an integral, beside the norm of the scores


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
    answers: str | None = Request.answers,
    length: str | None = Request.length,
    items: str = Request.items,
    keep: str = Request.keep,
    k: int = Request.k,
    keep_dtype: torch.dtype | str = Request.keep_dtype,
    batch_size: int | str = Request.batch_size,
    backend: str = Request.backend,
    dtype: torch.dtype | str | None = Request.dtype,
    progress: bool = Request.progress,
    output: str | os.PathLike[str] | None = Request.output,
    resume: bool = Request.resume,
    overwrite: bool = Request.overwrite,
    **method_options: Any,
) -> Scores:
    """Score every FFN neuron of a model by how much it helps (+) or hurts (-) the right answers.

    questions: `nl.load_questions(...)`, or rendered `nl.Prompt`s, which take no tokenizer, orders or template.
    method, objective: by name, see `neuronllm.methods` and `neuronllm.objectives`, or as objects; method "ace" is that
    of the NeuronLLM paper. None for objective, positions, orders and template means the method's own default; for
    positions that is "all" where the method can ("exact", which is dear there: "answer"), else "answer".
    answers: "letters", or "texts" to explain the answers in words; by default the form of given prompts, else texts for
    questions without choices, and letters. length: what a text's log-probability is divided by, "sum" (nothing),
    "tokens", "characters" or "bytes", or "unconditional" for what it gains over it alone. Questions with nothing but
    their right answer are explained by its log-probability, objective "logp_vocab"; `nl.distractors` finds wrong ones.
    items: "wrong" or "right" scores only the questions that the model answers so. dtype: compute on a copy of the model
    in this type (torch.float64, or "float64"), whatever it was loaded in; None computes on the model itself. Further
    keywords are options of the method.

    keep: beside the mean, "topk" keeps each prompt's k highest and k lowest scores (`scores.top`), "all" all of them
    (`scores.per_prompt`), in keep_dtype: "float32" or "bfloat16".

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
        answers=answers,
        length=length,
        items=items,
        keep=keep,
        k=k,
        keep_dtype=floating("keep_dtype", keep_dtype),
        batch_size=batch_size,
        backend=backend,
        dtype=floating("dtype", dtype),
        progress=progress,
        output=output,
        resume=resume,
        overwrite=overwrite,
        options=method_options,
    )
    return attributed(model, tokenizer, questions, request)


@one_interrupt()
@torch.inference_mode(False)  # a caller's inference mode would forbid gradients
def attributed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, questions: Questions, request: Request
) -> Scores:
    """What `attribute` does, with all that was asked in one object."""
    with Ranks.here() as ranks:
        with ranks.together():
            job = Job.of(model, tokenizer, questions, request)
        return _attributed(job, ranks)


def _attributed(job: Job, ranks: Ranks, silent: bool = False) -> Scores:
    store = _store_of(job, ranks)
    if isinstance(how := job.how, Exact) and how.top is not None:
        return strongest(job, how, store, ranks, partial(_attributed, ranks=ranks, silent=True))
    if (scores := store.result()) is not None:
        return scores
    show = job.request.progress and ranks.first
    begun = store.manifest
    chosen, asked = (begun["chosen"], begun["asked"]) if begun else _chosen(job, ranks, show)
    groups = job.groups if chosen is None else [job.groups[number] for number in chosen]
    caution = Caution(job.request.answers or "letters", asked, silent=silent or not ranks.first)
    try:
        plan, engine = _scored(job, groups, {"chosen": chosen, "asked": asked}, store, ranks, caution, show)
    except BaseException:
        store.discard()
        raise
    plans = ranks.gather(plan.to_dict())
    provenance = job.provenance(groups) | ranks.gather(engine)[0]
    if noise := max(plan["noise"] for plan in plans):
        provenance["noise"] = noise  # effects below it say nothing
    if integrals := sum(plan["integrals"] for plan in plans):
        points = sum(plan["points"] for plan in plans) / integrals
        provenance["integral"] = {"error": max(plan["error"] for plan in plans), "points": points}
        _warn_of_error(job, provenance["integral"]["error"], silent=not ranks.first)
    return store.finish(_summary(job, ranks, store, caution, provenance), [plan["backoffs"] for plan in plans])


def _store_of(job: Job, ranks: Ranks) -> Store[Gathered]:
    """Where a job keeps what it gathers, after refusing processes that were given different ones."""
    n_neurons = job.anatomy.n_neurons
    settings = cache(partial(job.settings, ranks.size))
    ranks.agree(settings)
    bytes_a_prompt = n_neurons * job.request.keep_dtype.itemsize
    return open_store(
        job.request.output, job.request.resume, ranks, settings, partial(Gathered.of, job), bytes_a_prompt
    )


def _summary(job: Job, ranks: Ranks, store: Store[Gathered], caution: Caution, provenance: dict[str, Any]) -> Scores:
    gathered = store.merged()
    provenance |= caution.found(gathered.heard)
    try:
        with ranks.together():
            values, stderr, consistency = (part.float() for part in gathered.collector.summary())
    except InputError:
        store.discard(work=True)  # which would end in the same way when it is taken up
        raise
    return Scores(values, stderr, consistency, job.anatomy, provenance)


def _scored(
    job: Job,
    groups: list[list[Prompt]],
    facts: dict[str, Any],
    store: Store[Gathered],
    ranks: Ranks,
    caution: Caution,
    show: bool,
) -> tuple[Plan, dict[str, Any]]:
    """Score this process's share of the questions; the plan with what was learnt, and which engine did it."""
    frozen = store.manifest
    plan = Plan.from_dict(frozen["plan"]) if frozen else None
    with engine_of(job, plan) as engine:
        if plan is None:
            engine.fit(partial(raw_scores, job, engine), job.prompts)
            engine.heard.taken()  # what was tried out does not count
        first = ranks.gather(engine.plan.to_dict())[0]
        worked = _described(engine)
        _warn_of_post_norms(job, engine)
        alone = job.how.one_by_one(job.request.positions or "")
        window = frozen["window"] if frozen else (1 if alone else engine.at_once)
        engine.plan = Plan.from_dict(store.begin(first, engine=engine.name, window=window, **facts))
        share = share_of(groups, ranks.rank, ranks.size)
        with tqdm(total=len(share), desc=_label(job, ranks), disable=not show, unit="question") as bar:
            _score_windows(job, engine, list(windows_of(share, window)), store, caution, bar)
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


def _score_windows(
    job: Job, engine: Engine, windows: list[list[Share]], store: Store[Gathered], caution: Caution, bar: Any
) -> None:
    """Score window after window, from the first that is not done."""
    bar.update(sum(len(window) for window in windows[: store.windows]))
    try:
        for window in windows[store.windows :]:
            flat = [prompt for share in window for prompt in share.prompts]
            sizes = [len(share.prompts) for share in window]
            means = question_scores(job, engine, flat, sizes)
            raw = raw_scores(job, engine, flat) if means is None else means
            sizes = sizes if means is None else [1] * len(means)
            heard, answered = _heard(job, engine, flat)
            right = [None] * len(window) if answered is None else answered.split(sizes)
            numbers = torch.cat([torch.arange(share.first, share.first + len(share.prompts)) for share in window])
            with undisturbed(), plain_types():
                for scores, are_right in zip(raw.split(sizes), right, strict=True):
                    store.collector.collector.add(scores, are_right)
                store.collector.heard.merge(heard)
                store.add(job.per_prompt(raw, numbers), len(flat), engine.plan.to_dict())
            bar.update(len(window))
            caution(store.collector.heard)
        caution(store.collector.heard, last=True)
        store.end(engine.plan.to_dict())
    except KeyboardInterrupt as stop:
        done, total = (sum(len(window) for window in some) for some in (windows[: store.windows], windows))
        said = f"{done} of {total} questions are done"
        raise store.stopped(stop, engine.plan.to_dict(), said) from None


def _heard(job: Job, engine: Engine, prompts: Sequence[Prompt]) -> tuple[Heard, Tensor | None]:
    """Which options the model picked, and with methods that need to know it, which prompts it answered right."""
    if not job.how.needs_answers:
        return engine.heard.taken(), None
    answers = Asker(engine.model, prompts, job.request.batch_size)()
    return answers.heard, torch.from_numpy(answers.right)


def raw_scores(job: Job, engine: Engine, prompts: Sequence[Prompt]) -> Tensor:
    return job.how.score(engine, prompts, job.request.explained, job.request.positions or "")


def question_scores(job: Job, engine: Engine, prompts: Sequence[Prompt], sizes: Sequence[int]) -> Tensor | None:
    """The mean over each question's prompts, (questions, n_neurons), where nothing else is wanted and that is cheaper.

    Variants in letters are scored one by one, so that their numbers stay what they are with keep="all".
    """
    request = job.request
    plain = type(job.how.collector(0)) is Collector
    if request.keep != "mean" or request.positions != "all" or request.answers != "texts" or not plain:
        return None
    return job.how.question_scores(engine, prompts, sizes, request.explained)


def engine_of(job: Job, plan: Plan | None = None) -> AbstractContextManager[Engine]:
    request = job.request
    more: dict[str, Any] = {"dtype": request.dtype, "batch_size": request.batch_size, "plan": plan}
    return open_engine(job.model, job.anatomy, job.prompts, request.backend, **more)


def _label(job: Job, ranks: Ranks) -> str:
    return job.how.name if ranks.size == 1 else f"{job.how.name} (first of {ranks.size} processes)"


def _warn_of_post_norms(job: Job, engine: Engine) -> None:
    if job.how.integrates and engine.post_normed(job.prompts[0]):
        warn(
            f"{type(job.model).__name__} normalises what its FFNs put out, which undoes the scaling of a whole layer "
            f'that integrated gradients ({job.how.name}) rest on; use method="gradient" or "exact"'
        )


def _warn_of_error(job: Job, error: float, silent: bool) -> None:
    if error > DOUBTFUL and not silent:
        warn(
            f"the integral of a prompt is off by an estimated {error:.0%} of its scores ({job.how.name}), whatever the "
            'number of points; use method="gradient" or "exact"'
        )


def _chosen(job: Job, ranks: Ranks, progress: bool) -> tuple[list[int] | None, list[list[int]] | None]:
    """The numbers of the questions that the model answers as `items` says, and how it answered them all (Heard.counts).

    None: all questions, and nobody asked.
    """
    items = job.request.items
    if items == "all":
        return None, None
    share = share_out([sum(len(p.input_ids) for p in group) for group in job.groups], ranks.size)[ranks.rank]
    flat = [prompt for number in share for prompt in job.groups[number]]
    mine: list[int] = []
    heard = Heard()
    if flat:
        logprobs = Asker(job.model, flat, job.request.batch_size).logprobs(progress=progress)
        heard.add(logprobs.argmax(-1), torch.tensor([prompt.answer for prompt in flat]))
        right = answered_right(logprobs, [job.groups[number] for number in share]).tolist()
        mine = [number for number, is_right in zip(share, right, strict=True) if is_right == (items == "right")]
    chosen = sorted(number for numbers in ranks.gather(mine) for number in numbers)
    with ranks.together():
        if not chosen:
            raise InputError(f'items="{items}": the model answers none of the {len(job.groups)} questions {items}')
    asked = Heard()
    for counts in ranks.gather(heard.counts):
        asked.merge(Heard.of(counts))
    return chosen, asked.counts
