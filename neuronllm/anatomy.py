"""The map of a model's neurons: where they are and how they are numbered.

A neuron is one input channel of a block's down projection. This module finds the down projections of a decoder by
structure, not by a list of model names: inside every decoder layer it looks for linear modules that lead from the
hidden size D to some width I and back (one or two into I, or one fused into 2I). Widths come from the weights, so
ragged layers are normal. Attention is left out because it fits the same shapes.

Neurons are numbered layer by layer: flat id <-> (layer, expert, index), expert -1 for a dense block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DENSE = -1
ENTRY_POINTS = "neuronllm.anatomy"
_REGISTRY: dict[str, Callable[[Any], list[Site]]] = {}


@dataclass(frozen=True)
class Site:
    """One down projection: its neurons are the `width` input channels of the module `down`."""

    layer: int
    expert: int
    width: int
    block: str  # the decoder layer, as a dotted module name
    down: str
    ups: tuple[str, ...]  # the projections into the width, the gate first; one fused module counts once
    transposed: bool = False  # True: the weight is (width, D), as in GPT-2's Conv1D
    experts: int = 0


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
        model_type = getattr(model.config, "model_type", "")
        find = _REGISTRY.get(model_type) or _from_entry_points(model_type) or _by_structure
        return cls(tuple(find(model)), model_type)

    @cached_property
    def offsets(self) -> torch.Tensor:
        """First flat id of every site, and the number of neurons at the end."""
        widths = torch.tensor([0] + [site.width for site in self.sites])
        return widths.cumsum(0)

    @property
    def n_neurons(self) -> int:
        return int(self.offsets[-1])

    @property
    def widths(self) -> list[int]:
        return [site.width for site in self.sites]

    def locate(self, ids: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Flat ids -> (layer, expert, index), each an int64 tensor."""
        ids = self.checked(ids)
        where = self.site_of(ids)
        layers = torch.tensor([site.layer for site in self.sites])
        experts = torch.tensor([site.expert for site in self.sites])
        return layers[where], experts[where], ids - self.offsets[where]

    def flat(self, layer: Any, expert: Any, index: Any) -> torch.Tensor:
        """(layer, expert, index) -> flat ids, the inverse of `locate`."""
        site_of = {(site.layer, site.expert): n for n, site in enumerate(self.sites)}
        ids = []
        columns = (_whole(x).tolist() for x in (layer, expert, index))
        for address in zip(*columns, strict=True):
            n = site_of.get(address[:2])
            if n is None or not 0 <= address[2] < self.sites[n].width:
                raise InputError(f"neuron (layer, expert, index) = {address} is not in this model: {self.describe()}")
            ids.append(int(self.offsets[n]) + address[2])
        return torch.tensor(ids, dtype=torch.int64)

    def site_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Number of the site that each flat id lies in."""
        return torch.searchsorted(self.offsets, ids, right=True) - 1

    def split(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Cut the last dimension (n_neurons) into one tensor a site."""
        return list(values.split(self.widths, -1))

    def describe(self) -> str:
        widths = sorted(set(self.widths))
        span = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        return f"{self.model_type or 'model'} with {len(self.sites)} blocks of {span} neurons"

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
        key = [(s.layer, s.expert, s.width) for s in self.sites]
        return key == [(s.layer, s.expert, s.width) for s in other.sites]

    def checked(self, ids: Any) -> torch.Tensor:
        ids = _whole(ids)
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.n_neurons):
            raise InputError(f"neuron ids must lie in 0..{self.n_neurons - 1}: this is a {self.describe()}")
        return ids


def _whole(numbers: Any) -> torch.Tensor:
    """One or many whole numbers as int64 on the CPU; an index of 1.5 or a mask is a mistake, not a neuron."""
    given = torch.as_tensor(numbers).reshape(-1)
    if given.numel() and (given.is_floating_point() or given.dtype == torch.bool):
        raise InputError(f"neuron ids must be whole numbers, not {str(given.dtype).removeprefix('torch.')}")
    return given.to("cpu", torch.int64)


def register(model_type: str, find: Callable[[Any], list[Site]]) -> None:
    """Teach the anatomy a foreign block: `find(model)` lists the sites of models with this `config.model_type`.

    A package can do the same without a call, by an entry point in the group "neuronllm.anatomy" named after the
    model type.
    """
    _REGISTRY[model_type] = find


def _from_entry_points(model_type: str) -> Callable[[Any], list[Site]] | None:
    found = entry_points(group=ENTRY_POINTS, name=model_type) if model_type else ()
    return next(iter(found)).load() if found else None


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The decoder's stack of layers and its dotted name: the module list that holds the most parameters."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    stacks = [m for m in decoder.modules() if isinstance(m, nn.ModuleList)]
    if not stacks:
        raise InputError(f"{type(model).__name__} has no stack of decoder layers: give a decoder language model")
    stack = max(stacks, key=lambda m: sum(p.numel() for p in m.parameters()))
    return next(name for name, m in model.named_modules() if m is stack), stack


def _by_structure(model: PreTrainedModel) -> list[Site]:
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"{type(model).__name__} is an encoder-decoder: only decoder language models are supported")
    text_config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    hidden = text_config.hidden_size
    prefix, layers = decoder_layers(model)
    sites = []
    for number, layer in enumerate(layers):
        _refuse_experts(model, number, layer, hidden)
        # A layer may hold side branches of the same form (adapters, per-layer inputs): the FFN is the widest.
        found = [site for group in _groups(layer) if (site := _match(group, hidden))]
        if found:
            down, ups, width, transposed = max(found, key=lambda f: f[2])
            block = f"{prefix}.{number}"
            paths = tuple(f"{block}.{up}" for up in ups)
            sites.append(Site(number, DENSE, width, block, f"{block}.{down}", paths, transposed))
    if not sites:
        raise InputError(
            f"{type(model).__name__} has no FFN neurons: no decoder layer holds linear modules that lead from the "
            f"hidden size {hidden} to a width and back; neuronllm.anatomy.register can teach a foreign block"
        )
    _refuse_shared(model, sites)
    return sites


def _refuse_shared(model: nn.Module, sites: list[Site]) -> None:
    first: dict[nn.Module, Site] = {}
    for site in sites:
        other = first.setdefault(model.get_submodule(site.down), site)
        if other is not site:
            raise InputError(
                f"{type(model).__name__}: {other.down} is shared by the layers {other.layer} and {site.layer}: "
                "a neuron of one would be edited in both, which is not supported"
            )


def _refuse_experts(model: nn.Module, number: int, layer: nn.Module, hidden: int) -> None:
    for name, module in layer.named_modules():
        kind = type(module).__name__
        # Experts stacked into one weight have a matrix from or to the hidden size each; a mixer's heads smaller ones.
        shapes = [p.shape for p in module.parameters(recurse=False) if not isinstance(module, nn.Conv1d)]
        stacked = any(len(shape) == 3 and shape[0] > 1 and hidden in shape[1:] for shape in shapes)
        if stacked or "expert" in f"{name} {kind}".lower():
            raise InputError(
                f"{type(model).__name__} is a mixture of experts (layer {number}, module {name}: {kind}): "
                "experts are not supported yet, give a dense model"
            )


def _groups(layer: nn.Module) -> Iterator[list[tuple[str, nn.Module, int, int, bool]]]:
    """Linear modules of a layer by parent, without attention and convolution mixers, in order of registration."""
    for parent_name, parent in _outside_attention("", layer):
        group = []
        for name, child in parent.named_children():
            dims = _dims(child)
            if dims:
                group.append((f"{parent_name}.{name}" if parent_name else name, child, *dims))
        if group and not any(isinstance(child, nn.Conv1d) for child in parent.children()):
            yield group


def _outside_attention(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield name, module
    for child_name, child in module.named_children():
        words = f"{child_name} {type(child).__name__}".lower()
        if "attn" not in words and "attention" not in words:
            yield from _outside_attention(f"{name}.{child_name}" if name else child_name, child)


def _dims(module: nn.Module) -> tuple[int, int, bool] | None:
    """(inputs, outputs, transposed) of a linear module, read off its weight; None for anything else."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        if weight is not None and weight.ndim == 2 and weight.is_floating_point():
            return weight.shape[1], weight.shape[0], False
        return module.in_features, module.out_features, False  # packed, quantised weights
    if type(module).__name__ == "Conv1D" and weight is not None and weight.ndim == 2:
        return weight.shape[0], weight.shape[1], True
    return None


def _match(group: list[tuple[str, nn.Module, int, int, bool]], hidden: int) -> tuple[str, list[str], int, bool] | None:
    """The down projection of a group and what leads into its width, or None if the group is no FFN.

    The last registered candidate is tried first: when the width equals the hidden size every shape fits, and all known
    blocks register the down projection last.
    """
    for name, module, width, outputs, transposed in reversed(group):
        if outputs != hidden:
            continue
        others = [g for g in group if g[1] is not module and g[2] == hidden]
        ups = [g[0] for g in others if g[3] == width]
        fused = [g[0] for g in others if g[3] == 2 * width]
        if len(ups) in (1, 2):
            return name, ups, width, transposed
        if not ups and len(fused) == 1:
            return name, fused, width, transposed
    return None
