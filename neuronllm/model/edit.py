"""Edits on a live model: factors on neurons, in front of the down projections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ..common.errors import InputError
from .anatomy import Anatomy
from .answer_tokens import answer_tokens, checked_start
from .hooks import visiting
from .sites import Site
from .wrapped import own_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Positions: TypeAlias = "str | int | slice | torch.Tensor"


@contextmanager
def edit(
    model: PreTrainedModel,
    ids: Any,
    factors: Any,
    *,
    positions: Positions = "all",
    answer_start: Any = None,
    anatomy: Anatomy | None = None,
) -> Iterator[PreTrainedModel]:
    """Multiply neurons by factors while the context lasts: 0 silences, 2 doubles.

    `factors` is one number or one a neuron. `positions` is "all"; "answer"; an index or slice into the tokens of every
    forward pass; an int64 tensor with one index a row of the batch; or a mask (rows, tokens). "answer" edits each row's
    last prompt token and every token behind it inside `model.generate`; a plain forward pass shows no end of the prompt
    and needs `answer_start`, the place of the first edited token in the padded sequence, one for all rows or one a row.

    >>> with edit(model, ids=[3, 17], factors=0.0):   # doctest: +SKIP
    ...     model.generate(**inputs)
    """
    given, model = model, own_model(model)
    anatomy = anatomy or Anatomy.of(model)
    check_positions(positions, answer_start)
    by_site = factors_by_site(anatomy, ids, factors)
    # The factors move to a site's device and dtype at the first pass and stay there.
    placed: dict[str, torch.Tensor] = {}

    def scale(site: Site, h: torch.Tensor, routes: torch.Tensor | None) -> torch.Tensor:
        factor = placed.get(site.down)
        if factor is None or factor.device != h.device or factor.dtype != h.dtype:
            factor = placed[site.down] = by_site[site.down].to(h)
        factor = factor if routes is None else factor[routes]
        return scaled(h, factor, positions) if of_answer is None else _scaled_where(h, factor, of_answer)

    of_answer: Callable[[], torch.Tensor] | None
    sites = [site for site in anatomy.sites if site.down in by_site]
    answer = isinstance(positions, str) and positions == "answer"
    with answer_tokens(model, answer_start) if answer else nullcontext() as of_answer, visiting(model, sites, scale):
        yield given


def _scaled_where(h: torch.Tensor, factor: torch.Tensor, of_answer: Callable[[], torch.Tensor]) -> torch.Tensor:
    chosen = of_answer().to(h.device)
    return torch.where(chosen.reshape(*chosen.shape, *[1] * (h.ndim - 2)), h * factor, h)


def scaled(h: torch.Tensor, factor: torch.Tensor, positions: Positions) -> torch.Tensor:
    """h, (rows, tokens, width) in front of a down projection, with its neurons times their factors at positions."""
    if isinstance(positions, str):
        return h * factor
    if isinstance(positions, torch.Tensor) and positions.dtype == torch.bool:
        if positions.shape != h.shape[:2]:
            raise InputError(f"positions: a mask {tuple(positions.shape)} for a forward pass {tuple(h.shape[:2])}")
        return _scaled_where(h, factor, lambda: positions)
    out, factor = h.clone(), factor.expand_as(h)
    try:
        if isinstance(positions, torch.Tensor):
            rows = torch.arange(h.shape[0], device=h.device)
            out[rows, positions.to(h.device)] *= factor[rows, positions.to(h.device)]
        else:
            out[:, positions] *= factor[:, positions]
    except IndexError as error:
        raise InputError(f"positions do not fit a forward pass of {h.shape[0]} rows of {h.shape[1]} tokens") from error
    return out


def check_positions(positions: Any, answer_start: Any = None) -> None:
    """Refuse positions that no live edit can have."""
    if answer_start is not None:
        checked_start(answer_start)
        if not (isinstance(positions, str) and positions == "answer"):
            raise InputError('answer_start: it says where the answer begins, so it needs positions="answer"')
    if isinstance(positions, torch.Tensor):
        mask = positions.dtype == torch.bool
        if positions.ndim != 2 if mask else (positions.ndim > 1 or positions.is_floating_point()):
            raise InputError("positions: a tensor holds one index a row of the batch, or is a mask (rows, tokens)")
        return
    index = hasattr(positions, "__index__") and not isinstance(positions, bool)
    if not index and not isinstance(positions, slice) and positions not in ("all", "answer"):
        raise InputError(
            f'positions={positions!r}: a live edit takes "all", "answer", an index, a slice or a tensor of indices'
        )


def factors_by_site(anatomy: Anatomy, ids: Any, factors: Any) -> dict[str, torch.Tensor]:
    """Factors of all neurons of every site that holds an edited one: (width,), or (experts, width) of a routed site."""
    ids = anatomy.checked(ids)
    factors = torch.as_tensor(factors, dtype=torch.float64).reshape(-1)
    if factors.numel() not in (1, ids.numel()):
        raise InputError(f"factors: give one number, or one a neuron: {ids.numel()} neurons, {factors.numel()} factors")
    factors = factors.expand(ids.numel())
    if not bool(factors.isfinite().all()):
        raise InputError("factors: every factor must be a finite number")
    if ids.unique().numel() != ids.numel():
        raise InputError("ids: a neuron is named twice; give each neuron one factor")
    rows = {}
    for n in anatomy.site_of(ids).unique().tolist():
        site, here = anatomy.sites[n], anatomy.site_of(ids) == n
        row = torch.ones(site.size, dtype=torch.float64)
        row[ids[here] - anatomy.offsets[n]] = factors[here]
        rows[site.down] = row.unflatten(0, (site.experts, site.width)) if site.experts else row
    return rows
