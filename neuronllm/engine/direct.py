"""Direct pushes of a batch: what a neuron writes, read off by the model's own final norm and head.

The branches are made as for exact effects, but go no further than the end of their block. An answer is read at its
first token, so that a branch is one answer token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..model.discovery import decoder_layers
from ..model.sites import Site
from ..model.streams import as_layers_take
from .borrowed import input_device
from .branch import Batch, clean_routes, clean_states, keeping_branches, residuals, vectors
from .effects import at_experts, columns_of, held_at
from .head import wide


def direct(batch: Batch) -> Tensor:
    """(prompts, n_neurons): F(unembed(r + h_i v_i)) - F(unembed(r)), r without what the layer's neurons write."""
    routes = clean_routes(batch)
    states = clean_states(batch, [site for site in batch.anatomy.sites if site.block in batch.plain])
    found = {}
    for site in batch.anatomy.sites:
        made = _added(batch, site, *states[site.down]) if site.block in batch.plain else _run(batch, site, routes)
        parts = []
        for branches in made:  # neurons, and last of all a branch without any
            value = batch.value(_unembedded(batch, branches))
            parts.append((value[:, :-1] - value[:, -1:]).cpu())
        found[site.down] = site.spread(*at_experts(site, torch.cat(parts, 1), routes))
    return batch.in_order(found)


def _places(batch: Batch, count: int) -> Iterator[Tensor]:
    yield from torch.arange(count).split(batch.branches)


def _added(batch: Batch, site: Site, x: Tensor, h: Tensor) -> Iterator[Tensor]:
    """Behind a plain block: what the block leaves without its neurons, plus what each one writes."""
    x, h = wide(x), wide(h)
    without = x - h @ vectors(batch.model, site)
    for places in _places(batch, site.width):
        places = places.to(h.device)
        written = h[:, places, None] * vectors(batch.model, site, places)
        yield torch.cat([without[:, None] + written, without[:, None]], 1)


def _run(batch: Batch, site: Site, routes: dict[str, Tensor]) -> Iterator[Tensor]:
    """Through any other block: copies in which one neuron of the site keeps its h, and nothing else of the layer."""
    for places in _places(batch, held_at(site, routes)):

        def alone(here: Site, h: Tensor, now: Tensor | None, places: Tensor = places) -> Tensor:
            if here is not site:
                return torch.zeros_like(h)
            column = columns_of(site, places, routes, None if now is None else now[:, :-1]).to(h.device)
            flat = h.flatten(2)
            mask = torch.zeros_like(flat, dtype=torch.bool)
            mask[:, :-1].scatter_(
                2, column.clamp(min=0).expand(len(h), -1)[..., None], (column >= 0)[..., None].expand(len(h), -1, -1)
            )
            return torch.where(mask, flat, 0).reshape(h.shape)

        yield residuals(batch, batch.anatomy.blocks[site.block], len(places) + 1, alone)


def _unembedded(batch: Batch, states: Tensor) -> Tensor:
    """Logits of residual states (prompts, branches, D), by the model's own final norm, head and scale.

    They are put behind the last layer of a single token, or of as many as there are where more than that goes on.
    """
    model, tokens = batch.model, states.flatten(0, 1).unsqueeze(1 if batch.together else 0)

    def put(module: Any, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, (list, tuple)) else output
        placed = as_layers_take(model, tokens).to(first)
        return (placed, *output[1:]) if isinstance(output, (list, tuple)) else placed

    handle = decoder_layers(model)[1][-1].register_forward_hook(put)
    try:
        ids = torch.zeros(len(tokens), 1, dtype=torch.int64, device=input_device(model))
        with keeping_branches(model):
            found: Tensor = model(input_ids=ids, use_cache=False).logits.reshape(*states.shape[:2], -1)
        return found
    finally:
        handle.remove()
