"""Random neurons that are as strong as given ones, to compare learned edits with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.model.hooks import visiting

NEAR = 16  # in rank of strength, neurons that each is drawn from


@torch.no_grad()
def strengths(model: Any, anatomy: nl.Anatomy, prompts: Sequence[nl.Prompt]) -> Tensor:
    """(n_neurons,): the mean of abs(h) over the tokens of prompts, times the norm of the neuron's output vector."""
    found = {site.down: torch.zeros(site.width, dtype=torch.float64) for site in anatomy.sites}

    def see(site: Any, h: Tensor, routes: Tensor | None) -> None:
        found[site.down] += h.abs().double().sum((0, 1))

    with visiting(model, anatomy.sites, see):
        for prompt in prompts:
            model(torch.tensor([prompt.input_ids]), use_cache=False)
    for site in anatomy.sites:
        weight = model.get_submodule(site.down).weight.double()
        found[site.down] *= weight.norm(dim=1 if site.transposed else 0)
    return torch.cat([*found.values()]) / sum(len(prompt.input_ids) for prompt in prompts)


def matched_like(ids: Tensor, strength: Tensor, anatomy: nl.Anatomy, generator: torch.Generator) -> Tensor:
    """For each neuron another one of its layer that is about as strong and not among them; none of them twice."""
    where, chosen = anatomy.site_of(ids), torch.empty_like(ids)
    for n in where.unique().tolist():
        free = torch.arange(int(anatomy.offsets[n]), int(anatomy.offsets[n + 1]))
        free = free[~torch.isin(free, ids)]
        places = (where == n).nonzero()[:, 0]
        if len(free) < len(places):
            raise nl.InputError(f"layer {n}: {len(free)} neurons are too few to match {len(places)} others")
        for place in places.tolist():
            near = (strength[free].log() - strength[ids[place]].log()).abs().argsort(stable=True)[:NEAR]
            drawn = near[int(torch.randint(len(near), (1,), generator=generator))]
            chosen[place] = free[drawn]
            free = free[torch.arange(len(free)) != drawn]
    return chosen
