"""What the bridges out share: the factors of a neuron set, layer by layer, for libraries that run the model."""

from __future__ import annotations

import torch

from ..common.errors import InputError
from ..model.edit import Positions, check_positions, factors_by_site, scaled
from ..model.sites import DENSE, Site
from ..results.factors import factors_of
from ..results.neurons import NeuronSet


class LayerEdit:
    """The edit of one dense block: called with what its down projection takes in, it gives that with the edit made."""

    def __init__(self, site: Site, factors: torch.Tensor, positions: Positions) -> None:
        self.site, self.factors, self.positions = site, factors, positions
        self._placed = factors  # on the device and in the type of the last pass

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        if h.shape[-1] != self.site.width:
            raise InputError(
                f"the neuron set is of a model with {self.site.width} neurons in layer {self.site.layer}, this one has "
                f"{h.shape[-1]}"
            )
        if self._placed.device != h.device or self._placed.dtype != h.dtype:
            self._placed = self.factors.to(h)
        return scaled(h, self._placed, self.positions)


def layer_edits(
    neurons: NeuronSet,
    good: float | None,
    bad: float | None,
    mode: str | None,
    positions: Positions | None,
    library: str,
) -> list[LayerEdit]:
    """The edit that `neurons.apply` makes when it is given the same, a layer at a time from the first."""
    where = (neurons.positions or "all") if positions is None else positions
    if isinstance(where, str) and where == "answer":
        whose = "the set is for edits at the answer" if positions is None else 'positions="answer"'
        raise InputError(
            f'{whose}, and {library} does not say where that begins: give positions="all", or an index, a slice or a '
            "mask (positions=-1 is the last token)"
        )
    check_positions(where)
    neurons.warn_if_empty()
    factors = factors_of(neurons.role, neurons.factor, neurons.steering(mode, good, bad))
    rows = factors_by_site(neurons.anatomy, neurons.ids[factors != 1], factors[factors != 1])
    edits = [LayerEdit(site, rows[site.down], where) for site in neurons.anatomy.sites if site.down in rows]
    for edit in edits:
        if edit.site.expert != DENSE:
            raise InputError(
                f"neurons: {library} does not show the neurons of a mixture's experts (layer {edit.site.layer}): steer "
                "the Hugging Face model live, or bake the set into it"
            )
    return edits
