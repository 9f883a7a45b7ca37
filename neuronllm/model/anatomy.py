"""The map of a model's neurons: where they are (`discovery.py` finds that out) and how they are numbered.

Neurons are numbered layer by layer: flat id <-> (layer, expert, index), expert -1 for a dense block, -2 for one that
all tokens of a mixture share, e >= 0 for a routed one. Within a layer the dense block comes first, then the shared one,
then the routed experts, one after the other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..common.errors import InputError
from .bridged import is_bridged
from .discovery import find_sites
from .sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Anatomy:
    """Ordered sites and the numbering of their neurons.

    >>> anatomy = Anatomy.of(model)                       # doctest: +SKIP
    >>> layer, expert, index = anatomy.locate([0, 700])   # doctest: +SKIP
    """

    sites: tuple[Site, ...]
    model_type: str = ""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Anatomy:
        """Find the neurons of a Hugging Face decoder."""
        if not isinstance(model, nn.Module) or not hasattr(model, "config"):
            raise InputError(f"model: give a loaded Hugging Face model (nl.load_model), not {type(model).__name__}")
        if is_bridged(model):
            raise InputError(
                "model: a TransformerLens bridge is edited by its own hooks, bridge.hooks(fwd_hooks="
                "nl.to_transformer_lens(neurons)); weights are changed in the Hugging Face model, before it is bridged"
            )
        return cls(tuple(find_sites(model)), getattr(model.config, "model_type", ""))

    @cached_property
    def offsets(self) -> torch.Tensor:
        """First flat id of every site, and the number of neurons at the end."""
        sizes = torch.tensor([0, *self.sizes])
        return sizes.cumsum(0)

    @property
    def n_neurons(self) -> int:
        return int(self.offsets[-1])

    @property
    def sizes(self) -> list[int]:
        return [site.size for site in self.sites]

    @cached_property
    def blocks(self) -> dict[str, list[Site]]:
        """The sites of every decoder layer, by the layer's name, in order."""
        blocks: dict[str, list[Site]] = {}
        for site in self.sites:
            blocks.setdefault(site.block, []).append(site)
        return blocks

    @property
    def routed(self) -> bool:
        """True for a mixture of experts."""
        return any(site.experts for site in self.sites)

    def locate(self, ids: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Flat ids -> (layer, expert, index), each an int64 tensor."""
        ids = self.checked(ids)
        where = self.site_of(ids)
        layers = torch.tensor([site.layer for site in self.sites])
        experts = torch.tensor([site.expert for site in self.sites])
        widths = torch.tensor([site.width for site in self.sites])
        within = ids - self.offsets[where]
        # Only a routed site is wider than one expert, and its first expert is 0.
        return layers[where], experts[where] + within // widths[where], within % widths[where]

    def flat(self, layer: Any, expert: Any, index: Any) -> torch.Tensor:
        """(layer, expert, index) -> flat ids, the inverse of `locate`."""
        site_of = {(site.layer, site.expert): n for n, site in enumerate(self.sites)}
        ids = []
        columns = (_whole(x).tolist() for x in (layer, expert, index))
        for address in zip(*columns, strict=True):
            at, expert_number, i = address
            n = site_of.get((at, min(expert_number, 0)))
            site = None if n is None else self.sites[n]
            if n is None or site is None or not (0 <= i < site.width and expert_number < max(1, site.experts)):
                raise InputError(f"neuron (layer, expert, index) = {address} is not in this model: {self.describe()}")
            ids.append(int(self.offsets[n]) + max(0, expert_number) * site.width + i)
        return torch.tensor(ids, dtype=torch.int64)

    def site_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Number of the site that each flat id lies in."""
        return torch.searchsorted(self.offsets, ids, right=True) - 1

    def split(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Cut the last dimension (n_neurons) into one tensor a site."""
        return list(values.split(self.sizes, -1))

    def describe(self) -> str:
        sizes = sorted(set(self.sizes))
        span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        routed = [site for site in self.sites if site.experts]
        mixtures = f", {len(routed)} of them of {max(site.experts for site in routed)} experts" if routed else ""
        return f"{self.model_type or 'model'} with {len(self.sites)} blocks of {span} neurons{mixtures}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file; `from_dict` reads it back."""
        return {"model_type": self.model_type, "sites": [asdict(site) for site in self.sites]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Anatomy:
        sites = tuple(Site(**{**site, "ups": tuple(site["ups"])}) for site in data["sites"])
        if not sites:
            raise KeyError("sites")
        return cls(sites, data["model_type"])

    def same_layout(self, other: Anatomy) -> bool:
        """True if both number the same neurons alike, whatever the modules are called."""
        key = [(s.layer, s.expert, s.width, s.experts) for s in self.sites]
        return key == [(s.layer, s.expert, s.width, s.experts) for s in other.sites]

    def checked(self, ids: Any) -> torch.Tensor:
        ids = _whole(ids)
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.n_neurons):
            raise InputError(f"neuron ids must lie in 0..{self.n_neurons - 1}: this is a {self.describe()}")
        return ids


def _whole(numbers: Any) -> torch.Tensor:
    """One or many whole numbers as int64 on the CPU; an index of 1.5 or a mask is a mistake, not a neuron."""
    try:
        given = torch.as_tensor(numbers).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"neuron ids must be whole numbers: {error}") from error
    if given.numel() and (given.is_floating_point() or given.dtype == torch.bool):
        raise InputError(f"neuron ids must be whole numbers, not {str(given.dtype).removeprefix('torch.')}")
    return given.to("cpu", torch.int64)
