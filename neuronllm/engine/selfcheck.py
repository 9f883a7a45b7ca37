"""The self-check of the fast engine: whether a model may be driven by answer tokens, and what its blocks allow.

One that is not causal (causality.py) may not. Of others:

1. Whole prompts are run plainly.
2. Their answer tokens run against the cached prefix. A clean branch, which joins at the first block, must give the
   plain answer, and every layer must have used the attention of the tree. In the same pass edited copies of the clean
   branch join in front of each block and leave behind it, which shows what the block makes of an edit.
3. The same with a head that is cut to the options.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.discovery import decoder_layers
from ..model.sites import Site
from ..model.wrapped import unreadable
from .answer import answer_pass, answering
from .borrowed import DRIVING_ERRORS, tolerance
from .branch import Batch, leaving, sweep, vectors
from .first_order import gradient
from .head import Letters, only_options, wide
from .mixers import Mixers

HALF, NONE, TWICE = 0.5, 0.0, 2.0  # what h of a site is multiplied with
Trials = dict[str, list[tuple[Site, float]]]  # the edited copies of each block


class Blocks(NamedTuple):
    """What blocks make of an edit of h."""

    # Those that add W h to the residual stream as it is, so that branches may join behind them.
    plain: frozenset[str] = frozenset()
    # Whether the output of one is not linear in h, as behind a norm of the FFN's output.
    post_normed: bool = False


class Verdict(NamedTuple):
    """What the self-check found."""

    reason: str | None = None  # why answer tokens cannot be used
    options_head: bool = True  # whether the head may compute the options' logits alone
    blocks: Blocks = Blocks()
    mixers: Mixers | None = None  # what has to be run in a way of its own
    together: bool = False  # whether all branches have to run from the embedding on
    counting: tuple[str, ...] = ()  # modules that count positions themselves


class Differs(Exception):
    """Answer tokens do not give the plain answers."""


@torch.no_grad()
def clean_branch(batch: Batch, plain: Tensor, *, trials: bool) -> Blocks:
    """Raises `Differs` where a branch differs from the plain logits (rows, ids); with `trials`, tries the blocks."""
    logits, blocks = tried(batch, _trials(batch) if trials else {})
    mixers = batch.prefix.mixers
    layers = len(decoder_layers(batch.model)[1]) if mixers is None else mixers.layers
    if missing := layers - len(batch.prefix.attended):
        raise Differs(f"{missing} of its {layers} layers attend in a way of their own")
    real = batch.prefix.trees.real.flatten().to(plain.device)
    distance = (logits - plain[:, None])[real].abs().max()
    if not bool(distance <= tolerance(plain)):
        raise Differs(f"a clean branch differs from the clean answer by {float(distance):.1e}")
    return blocks


def check_gradient(batch: Batch, judged: Tensor) -> None:
    """Raises `Differs` where the gradient of answer tokens is not the judged one, as in kernels that have none."""
    found = gradient(batch.model, batch.anatomy, batch.prompts, batch.prefix, batch.value, 1, "activation", None)[:, 0]
    rounding = 0.5 if torch.finfo(batch.model.dtype).eps > 1e-4 else 1e-2  # what is missing altogether is more
    if not bool((found - judged).norm() <= rounding * judged.norm()):
        raise Differs("the gradient of a clean branch is not that of the clean answer")


@torch.no_grad()
def try_blocks(batch: Batch) -> Blocks:
    return tried(batch, _trials(batch))[1]


@torch.no_grad()
def head_can_be_cut(batch: Batch, plain: Tensor) -> bool:
    ids, _ = Letters.of(batch.prompts).columns()
    try:
        with only_options(batch.model, ids), answering(batch.model, batch.prefix):
            few = answer_pass(batch.model, batch.prefix)[:, 0]
    except DRIVING_ERRORS:
        return False
    near = (few - plain[:, ids.to(plain.device)]).abs() <= tolerance(plain) if few.shape[-1] == len(ids) else None
    return near is not None and bool(near.all())


def _trials(batch: Batch) -> Trials:
    """Halves for blocks that may turn out to be plain; nothing and twice for one site of each kind, for post-norms.

    No branch joins behind a block where all run together.
    """
    count = Counter(site.block for site in batch.anatomy.sites)
    kinds = {site.expert: site for site in reversed(batch.anatomy.sites)}  # the first one of each
    trials: Trials = {}
    for site in batch.anatomy.sites:
        joins = count[site.block] == 1 and not batch.together and _readable(batch, site)
        factors = [HALF] if joins else []
        factors += [NONE, TWICE] if kinds[site.expert] is site else []
        trials.setdefault(site.block, []).extend((site, factor) for factor in factors)
    return {block: copies for block, copies in trials.items() if copies}


def _readable(batch: Batch, site: Site) -> bool:
    """Whether it can be told what the neurons of a site write: a dense one whose weights are at hand."""
    return not site.experts and unreadable(batch.model.get_submodule(site.down)) is None


def tried(batch: Batch, trials: Trials) -> tuple[Tensor, Blocks]:
    """Logits (rows, 2, ids) of the answer and of a clean copy, and what the trials showed; all in one pass."""
    held: dict[str, Tensor] = {}
    behind: dict[str, list[Tensor]] = {block: [] for block in trials}
    first = batch.anatomy.sites[0].block
    counts = {block: len(trials.get(block, [])) + (block == first) for block in {first, *trials}}
    ends = {block: at + counts[block] for block, at in batch.firsts(counts).items()} if batch.together else {}

    def edit(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
        held[site.down] = h[:, 0]
        copies = [factor if of is site else 1.0 for of, factor in trials.get(site.block, [])]
        factors = torch.tensor([1.0] * (h.shape[1] - len(copies)) + copies).to(h)
        return h * factors.reshape(1, -1, *[1] * (h.ndim - 2))

    with ExitStack() as stack:
        for block, copies in trials.items():
            leave = 0 if batch.together else len(copies)
            stack.enter_context(leaving(batch.model, block, leave, behind[block]))
        logits = sweep(batch, [site for site in batch.anatomy.sites if site.block in counts], copies=counts, edit=edit)
    left = {block: out[0][:, : ends.get(block)] for block, out in behind.items()}
    return logits[:, :2], _shown(batch, trials, held, left)


def _shown(batch: Batch, trials: Trials, held: dict[str, Tensor], behind: dict[str, Tensor]) -> Blocks:
    plain, post_normed = set(), False
    for block, copies in trials.items():
        out = behind[block]
        once, edited = wide(out[:, 0]), wide(out[:, -len(copies) :]).unbind(1)
        # what each factor made of h of a site: the change of the block's output
        changes = {(site, factor): x - once for (site, factor), x in zip(copies, edited, strict=True)}
        for site in dict.fromkeys(site for site, _ in copies):
            if (site, HALF) in changes and _adds(batch, site, held[site.down], changes[site, HALF], out.dtype):
                plain.add(block)
            if (site, NONE) in changes:
                step = -changes[site, NONE]
                post_normed |= bool((changes[site, TWICE] - step).norm() > 0.1 * step.norm())
    return Blocks(frozenset(plain), post_normed)


def _adds(batch: Batch, site: Site, h: Tensor, change: Tensor, dtype: torch.dtype) -> bool:
    """Whether halving h took half of W h away; a block that is silent here says nothing about itself."""
    step = wide(h) @ vectors(batch.model, site) / -2
    if change.shape != step.shape:  # several streams of the residual
        return False
    tolerance = 0.05 if torch.finfo(dtype).eps > 1e-4 else 1e-4  # the block's own rounding
    return bool(step.norm() > 0) and bool((change - step).norm() <= tolerance * step.norm())
