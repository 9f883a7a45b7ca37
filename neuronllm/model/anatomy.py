"""The map of a model's neurons: where they are and how they are numbered.

A neuron is one input channel of a block's down projection. This module finds the down projections of a decoder by
structure, not by a list of model names: inside every decoder layer it looks for linear modules that lead from the
hidden size D to some width I and back (one or two into I, or one fused into 2I). Widths come from the weights, so
ragged layers are normal. Attention is left out because it fits the same shapes.

A mixture of experts keeps its experts' weights stacked in one module. Modules that follow transformers' common
interface for experts are recognised by it, and are one site that spans all experts of the layer; others are refused by
name.

Neurons are numbered layer by layer: flat id <-> (layer, expert, index), expert -1 for a dense block, -2 for one that
all tokens of a mixture share, e >= 0 for a routed one. Within a layer the dense block comes first, then the shared one,
then the routed experts, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..common.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DENSE, SHARED = -1, -2
ENTRY_POINTS = "neuronllm.anatomy"
_REGISTRY: dict[str, Callable[[Any], list[Site]]] = {}


@dataclass(frozen=True)
class Site:
    """One down projection: its neurons are the `width` input channels of the module `down`.

    The routed experts of a layer are one site: `down` is then the module that holds them all, and the site's neurons
    are numbered expert by expert.
    """

    layer: int
    expert: int  # DENSE, SHARED, or 0 of a routed site: its first expert
    width: int  # of one expert
    block: str  # the decoder layer, as a dotted module name
    down: str
    ups: tuple[str, ...]  # the projections into the width, the gate first; one fused module counts once
    transposed: bool = False  # True: the weight is (width, D), as in GPT-2's Conv1D
    experts: int = 0  # how many experts a routed site has, 0 in other sites

    @property
    def size(self) -> int:
        """How many neurons the site has."""
        return self.width * max(1, self.experts)

    def spread(self, values: torch.Tensor, routes: torch.Tensor | None) -> torch.Tensor:
        """(..., K, width) of the K experts a token was routed to -> (..., size): 0 at all other experts' neurons.

        Values of an expert that is named twice add up. In a dense site (routes None) values are spread already.
        """
        if routes is None:
            return values
        routes = routes.to(values.device)
        spread = values.new_zeros(*values.shape[:-2], self.experts, self.width)
        if values.is_cuda and routes.ndim == 1:  # many values of an expert: atomic sums would come in any order
            return spread.index_put_((routes,), values, accumulate=True).flatten(-2)
        return spread.scatter_add(-2, routes[..., None].expand(values.shape), values).flatten(-2)


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
        block = f"{prefix}.{number}"
        routed = list(_experts(layer))
        _refuse_foreign_experts(model, number, layer, hidden, routed)
        # Beside the experts there may be projections of their own into a narrower space, which are no neurons.
        beside = {name.rpartition(".")[0] for name, _ in routed}
        # A layer may hold side branches of the same form (adapters, per-layer inputs): the FFN is the widest.
        widest: dict[int, tuple[str, list[str], int, bool]] = {}
        for parent, group in _groups(layer):
            found = None if routed and parent in beside else _match(group, hidden)
            if found:
                kind = SHARED if routed and "shared" in found[0] else DENSE
                widest[kind] = max(widest.get(kind, found), found, key=lambda f: f[2])
        for kind, (down, ups, width, transposed) in sorted(widest.items(), reverse=True):
            paths = tuple(f"{block}.{up}" for up in ups)
            sites.append(Site(number, kind, width, block, f"{block}.{down}", paths, transposed))
        sites += [_routed_site(model, number, block, name, module) for name, module in routed]
    if not sites:
        raise InputError(
            f"{type(model).__name__} has no FFN neurons: no decoder layer holds linear modules that lead from the "
            f"hidden size {hidden} to a width and back; neuronllm.model.anatomy.register can teach a foreign block"
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


def _experts(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules of a layer that hold stacked experts behind transformers' common interface."""
    for name, module in layer.named_modules():
        stacked = getattr(module, "down_proj", None)
        if hasattr(module, "_apply_gate") and hasattr(module, "has_gate") and isinstance(stacked, torch.Tensor):
            yield name, module


def _routed_site(model: nn.Module, number: int, block: str, name: str, module: Any) -> Site:
    down = module.down_proj
    if down.ndim != 3 or not down.is_floating_point() or down.dtype.itemsize < 2:
        raise InputError(
            f"{type(model).__name__}: the experts of layer {number} ({block}.{name}) are packed in "
            f"{str(down.dtype).removeprefix('torch.')}, so their neurons cannot be reached: load the model dequantised"
        )
    experts, *rest = down.shape
    transposed = bool(getattr(module, "is_transposed", False))
    return Site(number, 0, rest[0 if transposed else 1], block, f"{block}.{name}", (), transposed, experts)


def _refuse_foreign_experts(
    model: Any, number: int, layer: nn.Module, hidden: int, routed: list[tuple[str, Any]]
) -> None:
    known = {inner for _, module in routed for inner in module.modules()}
    family = getattr(model.config, "model_type", "") or type(model).__name__
    for name, module in layer.named_modules():
        kind = type(module).__name__
        # Experts stacked into one weight have a matrix from or to the hidden size each; a mixer's heads smaller ones.
        shapes = [p.shape for p in module.parameters(recurse=False) if not isinstance(module, nn.Conv1d)]
        stacked = any(len(shape) == 3 and shape[0] > 1 and hidden in shape[1:] for shape in shapes)
        named = "expert" in f"{name} {kind}".lower() and not (routed and "shared" in name)
        if module not in known and (stacked or named):
            tensors = [*module.parameters(), *module.buffers()]
            packed = any(t.dtype.itemsize == 1 and t.dtype != torch.bool for t in tensors)
            why = (
                "are packed, so their neurons cannot be reached: load the model dequantised"
                if packed
                else "do not follow transformers' common interface for experts, so their neurons cannot be reached"
            )
            raise InputError(
                f"{type(model).__name__}: the experts of the family {family} (layer {number}, {name}: {kind}) {why}"
            )


def _groups(layer: nn.Module) -> Iterator[tuple[str, list[tuple[str, nn.Module, int, int, bool]]]]:
    """Linear modules of a layer by parent, without attention, norms and convolutions, in order of registration."""
    for parent_name, parent in _outside_attention("", layer):
        group = []
        for name, child in parent.named_children():
            dims = _dims(child)
            if dims:
                group.append((f"{parent_name}.{name}" if parent_name else name, child, *dims))
        if group and not any(isinstance(child, nn.Conv1d) for child in parent.children()):
            yield parent_name, group


def _outside_attention(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield name, module
    for child_name, child in module.named_children():
        words = f"{child_name} {type(child).__name__}".lower()
        if not any(word in words for word in ("attn", "attention", "norm")):
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
