"""What neurons hold in a pass, as `activations` takes the mean of it.

| statistic | at a token |
| --- | --- |
| value | h |
| size | abs(h) |
| frequency | 1 where the gate is positive, else 0 |
| cett | abs(h) times the norm of the neuron's output vector, over the norm of what its FFN puts out |

CETT is that of H-Neurons (arXiv 2512.01797). The output is that of the down projection, its bias included; of routed
experts what they put out together, where a neuron counts with its expert's routing weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..model.anatomy import Anatomy
from ..model.hooks import visiting
from ..model.sites import Site
from .head import wide
from .relp import watching_ups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ACTIVITY = ("value", "size", "frequency", "cett")
# (site, what is held, routes), shaped as `visiting` shows h
Take = Callable[[Site, Tensor, "Tensor | None"], None]


@contextmanager
def measuring(
    model: PreTrainedModel, anatomy: Anatomy, statistic: str, norms: Tensor | None, take: Take
) -> Iterator[None]:
    """Call `take` with the statistic at every site of every pass; "cett" needs the norms of the neurons' outputs."""
    if norms is not None:
        with _shares(model, anatomy, norms, take):
            yield
        return
    with watching_ups(model, anatomy.sites) as ups:

        def look(site: Site, h: Tensor, routes: Tensor | None) -> None:
            if statistic == "frequency":
                take(site, (ups(site, h)[0] > 0).to(h), routes)
            else:
                take(site, h if statistic == "value" else h.abs(), routes)

        with visiting(model, anatomy.sites, look):
            yield


@contextmanager
def _shares(model: PreTrainedModel, anatomy: Anatomy, norms: Tensor, take: Take) -> Iterator[None]:
    """h is kept until the output of its site is there."""
    held: dict[str, tuple[Tensor, Tensor | None]] = {}

    def keep(site: Site, h: Tensor, routes: Tensor | None) -> None:
        held[site.down] = h, routes

    def finish(site: Site, norm: Tensor) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            h, routes = held.pop(site.down)
            share, own = wide(h).abs(), norm.to(h.device, wide(h).dtype)
            if routes is None:
                share = share * own
            else:
                weights = args[2].reshape(routes.shape)[..., None].abs()
                share = share * weights * own.unflatten(0, (site.experts, -1))[routes]
            total = torch.linalg.vector_norm(wide(output), dim=-1).reshape(*h.shape[:2], *[1] * (h.ndim - 2))
            take(site, torch.where(total > 0, share / total, 0), routes)

        return hook

    handles = []
    try:
        with visiting(model, anatomy.sites, keep):
            for site, norm in zip(anatomy.sites, anatomy.split(norms), strict=True):
                handles.append(model.get_submodule(site.down).register_forward_hook(finish(site, norm)))
            yield
    finally:
        for handle in handles:
            handle.remove()
