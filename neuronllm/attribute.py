"""The driver: questions -> prompts -> engine -> collector -> Scores."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from .anatomy import Anatomy
from .engine import open_engine
from .engine.answers import answered_right, check_batch_size, option_logprobs
from .engine.borrowed import check_prompts
from .engine.objective import check_objective
from .env import package_version
from .errors import InputError
from .files import check_new_folder
from .loading import public_name
from .methods import Collector, Method, get_method
from .prompts import Prompt, group_by_question, render, template_hash
from .questions import Question, fingerprint
from .scores import CONFIG, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .engine.reference import ReferenceEngine

Questions = Sequence[Question | Prompt]
ITEMS = ("all", "wrong", "right")
KEEPS = ("mean", "all")
_log = logging.getLogger("neuronllm")


@torch.inference_mode(False)  # a caller's inference mode would forbid gradients
def attribute(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Questions,
    method: str = "ace",
    *,
    objective: str | None = None,
    positions: str = "answer",
    orders: str | None = None,
    template: str | list[str] | None = None,
    items: str = "all",
    keep: str = "mean",
    batch_size: int | str = "auto",
    backend: str = "fast",
    dtype: torch.dtype | None = None,
    progress: bool = True,
    output: str | os.PathLike[str] | None = None,
    **method_options: Any,
) -> Scores:
    """Score every FFN neuron of a model by how much it helps (+) or hurts (-) the right answers.

    questions: `nl.load_questions(...)`, or rendered `nl.Prompt`s (then tokenizer, orders and template are not used).
    method: see `neuronllm.methods`; None for objective, orders and template means the method's own default.
    positions: "answer", or "all" for methods that can. items: "wrong" or "right" scores only the questions that the
    model answers so. keep: "all" keeps each prompt's raw scores beside the mean. dtype: judge a copy of the model in
    this type. output: a folder to save the scores in. Further keywords are options of the method.

    >>> scores = nl.attribute(model, tokenizer, questions, method="gradient")   # doctest: +SKIP
    >>> scores.find(good=50, bad=50)                                            # doctest: +SKIP
    """
    how = get_method(method, method_options)
    objective = _checked(how, objective, positions, items, keep)
    orders = how.orders if orders is None else orders
    wording = how.template if template is None else template
    check_batch_size(batch_size)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype={dtype!r}: give a floating type of torch, such as torch.float64")
    if output is not None:
        check_new_folder(output, CONFIG)
    anatomy = Anatomy.of(model)
    prompts = as_prompts(tokenizer, questions, orders, wording)
    check_prompts(model, prompts)
    groups = _chosen(model, group_by_question(prompts), items, batch_size, progress)

    collector = how.collector(anatomy.n_neurons)
    kept: list[torch.Tensor] = []
    with open_engine(model, anatomy, prompts, backend, dtype=dtype, batch_size=batch_size) as engine:
        if how.integrates and engine.post_normed(prompts[0]):
            warnings.warn(
                f"{type(model).__name__} normalises what its FFNs put out, which undoes the scaling of a whole layer "
                f'that integrated gradients ({method}) rest on; use method="gradient" or "exact"',
                stacklevel=3,  # past the decorator
            )
        with tqdm(total=len(groups), desc=method, disable=not progress, unit="question") as bar:
            for chunk in _chunks(groups, engine.at_once):
                raw = _collect(engine, how, chunk, objective, positions, collector)
                if keep == "all":
                    kept.append(raw)
                bar.update(len(chunk))
    provenance = _provenance(model, tokenizer, questions, how, groups, wording)
    chosen = None if isinstance(questions[0], Prompt) else orders  # of given prompts, the caller chose the order
    asked = {"objective": objective, "positions": positions, "orders": chosen, "items": items}
    values, stderr, consistency = (part.float() for part in collector.summary())
    scores = Scores(values, stderr, consistency, anatomy, provenance | asked, torch.cat(kept).float() if kept else None)
    if output is not None:
        scores.save(output)
    return scores


def _collect(
    engine: ReferenceEngine,
    how: Method,
    chunk: list[list[Prompt]],
    objective: str,
    positions: str,
    collector: Collector,
) -> torch.Tensor:
    """Score the prompts of some questions and hand them to the collector question by question; the raw scores."""
    flat = [prompt for group in chunk for prompt in group]
    sizes = [len(group) for group in chunk]
    raw = how.score(engine, flat, objective, positions)
    right: Sequence[torch.Tensor | None] = [None] * len(chunk)
    if how.needs_answers:
        right = _answered(engine.option_scores(flat), flat).split(sizes)
    for scores, are_right in zip(raw.split(sizes), right, strict=True):
        collector.add(scores, are_right)
    return raw


def _chunks(groups: list[list[Prompt]], prompts: int) -> Iterator[list[list[Prompt]]]:
    """Questions that go to the engine together: at least so many prompts, so that it can fill its passes."""
    chunk: list[list[Prompt]] = []
    for group in groups:
        chunk.append(group)
        if sum(len(group) for group in chunk) >= prompts:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _answered(scores: list[torch.Tensor], prompts: Sequence[Prompt]) -> torch.Tensor:
    """Which prompts the model answers right."""
    return torch.tensor([int(s.argmax()) == p.answer for s, p in zip(scores, prompts, strict=True)])


def as_prompts(
    tokenizer: PreTrainedTokenizerBase | None, questions: Questions, orders: str, template: Any
) -> list[Prompt]:
    """Rendered prompts: the given ones, or the questions in every order and template."""
    if isinstance(questions, (str, os.PathLike)):
        raise InputError(f"questions={str(questions)!r}: load them first, with nl.load_questions({str(questions)!r})")
    if not isinstance(questions, Sequence):
        raise InputError(f"questions: give a list, not a {type(questions).__name__}")
    if not questions:
        raise InputError("questions: the list is empty, give at least one question")
    given = [q for q in questions if isinstance(q, Prompt)]
    asked = [q for q in questions if isinstance(q, Question)]
    if len(given) == len(questions):
        return given
    if len(asked) != len(questions):
        raise InputError("questions: give a list of Question (nl.load_questions) or a list of Prompt, not a mixture")
    if tokenizer is None:
        raise InputError("tokenizer=None: questions need a tokenizer to be rendered; only Prompts do without")
    return render(tokenizer, asked, orders, list(template) if isinstance(template, tuple) else template)


def _checked(how: Method, objective: str | None, positions: str, items: str, keep: str) -> str:
    if positions not in how.positions:
        raise InputError(f"positions={positions!r}: method {how.name!r} takes {' or '.join(map(repr, how.positions))}")
    for name, value, known in (("items", items, ITEMS), ("keep", keep, KEEPS)):
        if value not in known:
            raise InputError(f"{name}={value!r}: known values are {', '.join(known)}")
    if how.objective is None:
        if objective is not None:
            raise InputError(f"objective={objective!r}: method {how.name!r} explains no objective, leave it out")
        return ""
    objective = check_objective(how.objective if objective is None else objective)
    how.check_objective(objective)
    return objective


def _chosen(
    model: PreTrainedModel, groups: list[list[Prompt]], items: str, batch_size: int | str, progress: bool
) -> list[list[Prompt]]:
    """The questions that the model answers as `items` says."""
    if items == "all":
        return groups
    flat = [prompt for group in groups for prompt in group]
    logprobs = option_logprobs(model, flat, batch_size=batch_size, progress=progress)
    rows = logprobs.split([len(group) for group in groups])
    right = [answered_right(row, group) for row, group in zip(rows, groups, strict=True)]
    chosen = [group for group, is_right in zip(groups, right, strict=True) if is_right == (items == "right")]
    if not chosen:
        raise InputError(f'items="{items}": the model answers none of the {len(groups)} questions {items}')
    return chosen


def _provenance(
    model: PreTrainedModel, tokenizer: Any, questions: Questions, how: Method, groups: list[list[Prompt]], template: Any
) -> dict[str, Any]:
    asked = [q for q in questions if isinstance(q, Question)]
    first = groups[0][0]
    return {
        "model": public_name(model.config._name_or_path),
        "revision": getattr(model.config, "_commit_hash", None),
        "model_type": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "method": how.name,
        "options": {name: getattr(how, name) for name in how.options()},
        "questions": len(groups),
        "prompts": sum(len(group) for group in groups),
        "question_fingerprint": fingerprint(asked) if asked else _prompt_hash(questions),
        "template": (list(template) if isinstance(template, tuple) else template) if asked else None,
        "template_hash": template_hash(template, tokenizer) if asked else None,
        "option_tokens": [list(ids) for ids in first.option_ids],
        "transformers": package_version("transformers"),
        "neuronllm": package_version("neuronllm"),
    }


def _prompt_hash(prompts: Questions) -> str:
    content = [(p.input_ids, p.option_ids, p.answer) for p in prompts if isinstance(p, Prompt)]
    return sha256(repr(content).encode()).hexdigest()
