"""What an attribution would do, and what is left of one under way, without doing it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..data.prompts import Questions
from ..engine.batching import Plan
from ..methods import Method
from ..methods.exact import Exact
from ..results.scores import CONFIG
from ..runs.checkpoint import ROUNDS, Run
from ..runs.processes import Ranks
from .driver import engine_of, raw_scores
from .job import Job
from .request import Request
from .shares import Share, share_of, windows_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def dry_run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Questions,
    method: str | Method = Request.method,
    **arguments: Any,
) -> str:
    """What `attribute` would do with the same arguments, in a few lines: how much work, in which batches, how large.

    With output and resume=True it says what is left of a run under way. Inside torch.distributed every process calls
    it, as it does `attribute`, and hears how the questions are shared.

    >>> print(dry_run(model, tokenizer, questions, "gradient", keep="all"))   # doctest: +SKIP
    """
    return planned(model, tokenizer, questions, Request.of(method=method, **arguments))


@torch.inference_mode(False)
def planned(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, questions: Questions, request: Request
) -> str:
    """What `dry_run` says, with all that was asked in one object."""
    output, resume = request.output, request.resume
    with Ranks.here() as ranks, ranks.together():
        job = Job.of(model, tokenizer, questions, request)
        run = Run(output, job.settings(ranks.size), resume, ranks) if output is not None and resume else None
        begun = run.manifest if run is not None else None
        with engine_of(job, Plan.from_dict(begun["plan"]) if begun else None) as engine:
            work = partial(raw_scores, job, engine)
            engine.fit(work, job.prompts, always=True)
            seconds = engine.seconds(work, job.prompts)
            name, plan, reason = engine.name, engine.plan, engine.reason
        lines = [*_sizes(job), *_work(job, name, plan, reason), *_time(seconds, ranks)]
        return "\n".join([*lines, *_shares(job, ranks), *_left(job, ranks, run)])


def _sizes(job: Job) -> list[str]:
    lengths = [len(prompt.input_ids) for prompt in job.prompts]
    some = "" if job.request.items == "all" else f", of which only those that it answers {job.request.items} are scored"
    lines = [
        f"{job.anatomy.describe()}: {job.anatomy.n_neurons} neurons",
        f"{len(job.groups)} questions, {len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens{some}",
    ]
    if job.request.answers == "texts":
        spans = [prompt.span for prompt in job.prompts]
        lines.append(f"answered in texts of {min(spans)} to {max(spans)} tokens, length {job.request.length}")
        trees = sum(prompt.n_tokens for prompt in job.prompts)
        lines.append(f"{trees:,} tokens with the answers as trees, {_sequences(job):,} with a sequence for each")
    return lines + job.remarks()


def _sequences(job: Job) -> int:
    """Tokens of all prompts, run once for every sequence that an answer may be."""
    return sum(
        len(prompt.input_ids) + len(ids) - 1 for prompt in job.prompts for option in prompt.option_ids for ids in option
    )


def _time(seconds: float | None, ranks: Ranks) -> list[str]:
    if seconds is None:
        return []
    seconds /= ranks.size
    shown = f"about {seconds:,.0f} s" if seconds >= 1 else "less than a second"
    return [f"  time: {shown} if this machine stays as busy as it is, loading not counted"]


def _work(job: Job, name: str, plan: Plan, reason: str | None) -> list[str]:
    because = f" ({reason})" if reason else ""
    lines = [f"method {job.how.name}, engine {name}{because}: {plan if plan.estimate else 'one prompt at a time'}"]
    lines += [f"  {what}: {size / 2**20:,.1f} MiB" for what, size in plan.estimate.items()]
    if not plan.estimate:
        size = (
            f"near {plan.answer_tokens:,} tokens together"
            if job.request.batch_size == "auto"
            else f"at most {job.request.batch_size}"
        )
        lines.append(f"  memory: not tried out, which would take long; a pass holds copies of one prompt, {size}")
    if isinstance(job.how, Exact) and job.how.top is not None:
        budget = "" if job.how.budget is None else f", {job.how.budget} at most"
        some = f"as many of the {job.anatomy.n_neurons} neurons are run as it takes{budget}"
        lines.append(f"  top: {some}; figures are of all of them")
    if job.request.keep != "mean":
        total = job.bytes_a_prompt * len(job.prompts) / 2**20
        lines.append(f'keep="{job.request.keep}": {total:,.1f} MiB, {job.bytes_a_prompt:,} bytes a prompt')
    return lines


def _shares(job: Job, ranks: Ranks) -> list[str]:
    """How several processes share the questions."""
    if ranks.size == 1:
        return []
    which = "" if job.request.items == "all" else ", if all of them were scored"
    lines = [f"{ranks.size} processes share the questions by the tokens of their prompts{which}:"]
    for number in range(ranks.size):
        share = share_of(job.groups, number, ranks.size)
        prompts = [prompt for one in share for prompt in one.prompts]
        tokens = sum(len(prompt.input_ids) for prompt in prompts)
        lines.append(f"  process {number}: {len(share)} questions, {len(prompts)} prompts, {tokens:,} tokens")
    return lines


def _left(job: Job, ranks: Ranks, run: Run | None) -> list[str]:
    """What of a run under way is still to be done."""
    if run is None or run.manifest is None:
        return []
    if run.complete:
        return [f"{run.target}: the run is finished, nothing is left to do"]
    if run.manifest.get("rounds"):
        done = len(list(run.folder.glob(f"{ROUNDS}/*/{CONFIG}")))
        return [f"{run.folder}: {done} parts are done, of the two screens and the rounds that follow"]
    chosen, window = run.manifest["chosen"], run.manifest["window"]
    groups = job.groups if chosen is None else [job.groups[number] for number in chosen]
    left: list[Share] = []
    for number in range(ranks.size):
        windows = list(windows_of(share_of(groups, number, ranks.size), window))
        left += [share for some in windows[run.windows_done(number) :] for share in some]
    prompts = sum(len(share.prompts) for share in left)
    done = len(groups) - len(left)
    return [f"{run.folder}: {done} of {len(groups)} questions are done, {len(left)} are left with {prompts} prompts"]
