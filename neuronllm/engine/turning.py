"""Neurons multiplied by factors, with the gradient at the factors: what learning them asks for at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..model.anatomy import Anatomy
from ..model.edit import factors_by_site
from ..model.hooks import visiting
from ..model.sites import Site
from .borrowed import input_device
from .head import wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Turned(NamedTuple):
    """The turned neurons of one site: which of them it holds, and where."""

    places: Tensor  # among all turned neurons
    within: Tensor  # in the site
    factors: Tensor  # of the whole site: (width,), or (experts, width) of a routed one


class _Times(torch.autograd.Function):
    """h times factors; on the way back h and the gradient behind the factors are handed over."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, anchor: Tensor, factor: Tensor, within: Tensor | None, keep: Any) -> Tensor:
        ctx.keep, ctx.within = keep, within
        # Of few neurons, a copy of their columns lives shorter than h itself.
        ctx.save_for_backward(h if within is None else h[..., within], factor)
        return h * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        (h, factor), (grad,) = ctx.saved_tensors, grads
        ctx.keep(h.detach(), grad if ctx.within is None else grad[..., ctx.within])
        return (grad * factor if ctx.needs_input_grad[0] else None), grad.new_zeros(()), None, None, None


@contextmanager
def turning(
    model: PreTrainedModel,
    anatomy: Anatomy,
    ids: Tensor,
    factors: Tensor,
    keep: Callable[[Tensor, Tensor], None],
    where: Tensor | None = None,
) -> Iterator[Tensor]:
    """Multiply neurons by factors while the context lasts; yields the anchor.

    `torch.autograd.grad(value, anchor)` calls `keep(places, products)` for the neurons of one site after the other,
    with h times the gradient behind the factors, (rows, tokens, neurons), in float32 or better. `where` is a mask
    (rows, tokens) of the tokens to edit; None: all.
    """
    anchor = torch.zeros((), device=input_device(model), requires_grad=True)
    of_site = turned(anatomy, ids, factors)
    placed: dict[str, Turned] = {}

    def turn(site: Site, h: Tensor, routes: Tensor | None) -> Tensor:
        own = placed.get(site.down)
        if own is None or own.factors.device != h.device or own.factors.dtype != h.dtype:
            own = of_site[site.down]
            own = placed[site.down] = Turned(own.places, own.within.to(h.device), own.factors.to(h))
        factor = own.factors if routes is None else own.factors[routes]
        if where is not None:
            edited = where.to(h.device).reshape(*where.shape, *[1] * (h.ndim - 2))
            factor = torch.where(edited, factor, 1)
        few = None if routes is not None or len(own.within) == site.size else own.within

        def found(h: Tensor, grad: Tensor) -> None:
            products = wide(h) * wide(grad)
            if where is not None:
                products = products * where.to(h.device).reshape(*where.shape, *[1] * (h.ndim - 2))
            if routes is not None:
                products = site.spread(products, routes)[..., own.within]
            elif few is None:
                products = products[..., own.within]
            keep(own.places, products)

        return _Times.apply(h, anchor.to(h), factor, few, found)

    sites = [site for site in anatomy.sites if site.down in of_site]
    with visiting(model, sites, turn), torch.enable_grad():
        yield anchor


def turned(anatomy: Anatomy, ids: Tensor, factors: Tensor) -> dict[str, Turned]:
    """The turned neurons of every site that holds some."""
    whole, where = factors_by_site(anatomy, ids, factors), anatomy.site_of(ids)
    found = {}
    for n, site in enumerate(anatomy.sites):
        if site.down in whole:
            places = (where == n).nonzero()[:, 0]
            found[site.down] = Turned(places, ids[places] - anatomy.offsets[n], whole[site.down])
    return found
