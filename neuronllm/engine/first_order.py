"""One pass of a batch, forward and where asked backward: what neurons hold, and gradients at them.

With a prefix, answer tokens run against it; without one, whole prompts do, and scores are sums over all their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.question_trees import QuestionTree
from ..model.anatomy import Anatomy
from ..model.sites import Site
from .activity import measuring
from .answer import answer_pass, answering, watching_gradients
from .answer_trees import of_prompts
from .base import summed
from .full import full_pass, paths_of, whole_answers, whole_questions, whole_trees
from .fused import glu_score_wanted, summed_products
from .head import wide
from .mixers import Mixers
from .relp import relp_rules
from .tree import Prefix
from .turning import turning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt


def held(
    model: PreTrainedModel,
    anatomy: Anatomy,
    prompts: Sequence[Prompt],
    prefix: Prefix | None,
    everywhere: bool,
    statistic: str,
    norms: Tensor | None,
) -> Tensor:
    """(prompts, n_neurons): the mean of what neurons hold (activity.py), over the answer's tokens or all.

    An answer of several tokens is the right one, and needs whole prompts.
    """
    found: dict[str, Tensor] = {}
    shown = [[*p.input_ids, *p.option_ids[p.answer][0][:-1]] for p in prompts]
    ends = [len(tokens) if prefix is None else 1 for tokens in shown]
    own = [1 if p.one_token else len(p.option_ids[p.answer][0]) for p in prompts]
    spans = [slice(0 if everywhere else end - span, end) for end, span in zip(ends, own, strict=True)]

    def take(site: Site, value: Tensor, routes: Tensor | None) -> None:
        value = wide(value)
        means = [
            summed(site, value[n, span], None if routes is None else routes[n, span]) / len(value[n, span])
            for n, span in enumerate(spans)
        ]
        found[site.down] = torch.stack(means)

    with measuring(model, anatomy, statistic, norms, take):
        if prefix is None:
            full_pass(model, shown)
        else:
            with answering(model, prefix):
                answer_pass(model, prefix)
    return torch.cat([found[site.down].cpu() for site in anatomy.sites], -1)


def gradient(
    model: PreTrainedModel,
    anatomy: Anatomy,
    prompts: Sequence[Any],
    prefix: Prefix | None,
    value: Callable[[Tensor], Tensor],
    copies: int,
    weight: str,
    rules: str | None,
    mixers: Mixers | None = None,
) -> Tensor:
    """(prompts, copies, n_neurons): weight times the gradient of every copy's value, summed over its tokens.

    Whole questions are taken too, whose prompts share what they start with, of models without mixers.
    """
    nodes = _rows_of_each(prompts, prefix, mixers)
    found: dict[str, Tensor] = {}
    scale = torch.sign if weight == "sign" else torch.Tensor.detach

    def keep(site: Site, h: Tensor, grad: Tensor, routes: Tensor | None) -> None:
        if copies == 1 and routes is None and glu_score_wanted(h):
            whole = [x.reshape(len(prompts), -1, x.shape[-1]) for x in (scale(h), grad)]
            found[site.down] = summed_products(*whole)[:, None].cpu()
            return
        parts = []
        for n in range(len(h)):  # so that products in float32 stay small; behind the answer the gradient is 0
            product, of = wide(scale(h[n])) * wide(grad[n]), None if routes is None else routes[n]
            parts.append(summed(site, product, of)[None] if copies == 1 else site.spread(product, of))
        found[site.down] = of_prompts(torch.stack(parts), nodes).cpu()

    detached, texts = rules == "relp-detached", not prompts[0].one_token
    with ExitStack() as stack:
        if rules:  # answer passes, and whole trees, have an attention of ours
            ours = (texts and mixers is None) if prefix is None else prefix.mixers is None or not prefix.mixers.own
            stack.enter_context(relp_rules(model, anatomy, detach_attention=detached and not ours))
        if prefix is not None:
            stack.enter_context(answering(model, prefix, constant_patterns=detached))
        anchor = stack.enter_context(watching_gradients(model, anatomy.sites, keep))
        logits = _logits(model, prompts, prefix, copies, mixers, constant_patterns=detached)
        torch.autograd.grad(value(logits).sum(), anchor)
    return torch.cat([found[site.down] for site in anatomy.sites], -1)


def at_factors(
    model: PreTrainedModel,
    anatomy: Anatomy,
    prompts: Sequence[Prompt],
    prefix: Prefix | None,
    value: Callable[[Tensor], Tensor],
    ids: Tensor,
    factors: Tensor,
    mixers: Mixers | None = None,
) -> Tensor:
    """(prompts, 1 + neurons): every prompt's value under the factors, and its gradient at each of them."""
    nodes = _rows_of_each(prompts, prefix, mixers)
    found = torch.zeros(len(prompts), 1 + len(ids), dtype=torch.promote_types(model.dtype, torch.float32))

    def keep(places: Tensor, products: Tensor) -> None:
        found[:, 1 + places] = of_prompts(products.sum(1), nodes).to(found)

    with ExitStack() as stack:
        if prefix is not None:
            stack.enter_context(answering(model, prefix))
        anchor = stack.enter_context(turning(model, anatomy, ids, factors, keep))
        values = value(_logits(model, prompts, prefix, 1, mixers))
        torch.autograd.grad(values.sum(), anchor)
    found[:, 0] = values.detach()[:, 0].to(found)
    return found


def _rows_of_each(prompts: Sequence[Any], prefix: Prefix | None, mixers: Mixers | None) -> int:
    """How many rows a pass has of each prompt."""
    if prefix is not None:
        return prefix.trees.width
    return 1 if mixers is None or prompts[0].one_token else len(paths_of(prompts)[0])


def _logits(
    model: PreTrainedModel,
    prompts: Sequence[Any],
    prefix: Prefix | None,
    copies: int,
    mixers: Mixers | None,
    constant_patterns: bool = False,
) -> Tensor:
    """Logits (prompts x nodes, copies, ids) of answer tokens behind their prefix, or of whole prompts."""
    if prefix is not None:
        return answer_pass(model, prefix, copies)
    if isinstance(prompts[0], QuestionTree):
        return whole_questions(model, prompts, constant_patterns=constant_patterns)
    if not prompts[0].one_token and mixers is not None:
        return whole_answers(model, prompts)
    if not prompts[0].one_token:
        return whole_trees(model, prompts, constant_patterns=constant_patterns)
    return full_pass(model, [p.input_ids for p in prompts])
