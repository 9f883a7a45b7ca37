"""What neurons write into the residual stream: their columns of the down projections, adapters included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common.errors import InputError
from .anatomy import Anatomy
from .sites import Site
from .wrapped import unreadable, wrapped_around, written

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def output_norms(model: PreTrainedModel, anatomy: Anatomy) -> Tensor:
    """(n_neurons,): the norm of what each neuron writes into the residual stream when its h is 1, in float64."""
    norms = []
    for site in anatomy.sites:
        rows = _rows(model, site)
        norms.append(torch.linalg.vector_norm(rows.detach(), dim=-1, dtype=torch.float64).flatten().cpu())
    return torch.cat(norms)


def output_vectors(model: PreTrainedModel, site: Site, within: Tensor) -> Tensor:
    """(neurons, D): what some neurons of a site write when their h is 1; of experts without the routing weight.

    `within` counts the site's neurons from 0.
    """
    rows = _rows(model, site, None if site.experts else within)
    if site.experts:
        within = within.to(rows.device)
        rows = rows[within // site.width, within % site.width]
    return rows.detach()


def _rows(model: PreTrainedModel, site: Site, within: Tensor | None = None) -> Tensor:
    """(neurons, D) of a dense site, some or all; of routed experts (experts, width, D)."""
    module: Any = model.get_submodule(site.down)
    if why := _unreadable_experts(model, site) if site.experts else unreadable(module):
        raise InputError(f"{site.down}: what its neurons write cannot be told: {why}")
    if not site.experts:
        return written(module, site.transposed, within)
    stacked: Tensor = module.down_proj
    return stacked if site.transposed else stacked.transpose(-1, -2)


def _unreadable_experts(model: PreTrainedModel, site: Site) -> str | None:
    weight: Any = model.get_submodule(site.down)
    if not weight.down_proj.is_floating_point() or weight.down_proj.ndim != 3:
        return "its weights are quantised"
    kind = wrapped_around(model, site.down)
    return kind and f"PEFT has wrapped its experts ({kind}): merge the adapter first (merge_and_unload)"
