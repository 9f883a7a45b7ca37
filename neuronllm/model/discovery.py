"""Finds the down projections of a decoder by structure, not by a list of model names.

Inside every decoder layer it looks for linear modules that lead from the hidden size D to some width I and back (one or
two into I, or one fused into 2I). Widths come from the weights, so ragged layers are normal. Attention is left out
because it fits the same shapes.

A mixture of experts keeps its experts' weights stacked in one module. Modules that follow transformers' common
interface for experts are recognised by it, and are one site that spans all experts of the layer; others are refused by
name.

A layer of PEFT is seen as the module that it has taken the place of, under the name of that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from ..common.errors import InputError
from ..common.registry import points
from .sites import DENSE, SHARED, Site
from .wrapped import inner, is_wrapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENTRY_POINTS = "neuronllm.anatomy"
Group: TypeAlias = list[tuple[str, nn.Module, int, int, bool]]  # (name, linear module, inputs, outputs, transposed)
_REGISTRY: dict[str, Callable[[Any], list[Site]]] = {}


def find_sites(model: Any) -> list[Site]:
    """The sites of a decoder, in order: as somebody has taught its `config.model_type`, else by structure."""
    model_type = getattr(model.config, "model_type", "")
    find = _REGISTRY.get(model_type) or _from_entry_points(model_type) or _by_structure
    return find(model)


def register(model_type: str, find: Callable[[Any], list[Site]]) -> None:
    """Teach the anatomy a foreign block: `find(model)` lists the sites of models with this `config.model_type`.

    A package can do the same without a call, by an entry point in the group "neuronllm.anatomy" named after the
    model type.
    """
    _REGISTRY[model_type] = find


def _from_entry_points(model_type: str) -> Callable[[Any], list[Site]] | None:
    found = points(ENTRY_POINTS).select(name=model_type) if model_type else ()
    return next(iter(found)).load() if found else None


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The decoder's stack of layers and its dotted name: the module list that holds the most parameters."""
    stacks = [m for m in _reading_text(decoder_of(model)) if isinstance(m, nn.ModuleList)]
    if not stacks:
        raise InputError(f"{type(model).__name__} has no stack of decoder layers: give a decoder language model")
    stack = max(stacks, key=lambda m: sum(p.numel() for p in m.parameters()))
    return next(name for name, m in model.named_modules() if m is stack), stack


def decoder_of(model: Any) -> Any:
    """What takes token ids and runs them through the decoder's layers."""
    given = model.get_decoder() if hasattr(model, "get_decoder") else model
    # some (ModernBERT's decoder) call their head so
    for part in (given, getattr(model, "base_model", model)):
        if isinstance(part, nn.Module) and any(isinstance(inside, nn.ModuleList) for inside in part.modules()):
            return part
    return model


def _reading_text(module: nn.Module) -> Iterator[nn.Module]:
    """A module's parts without the models in it that read images or sound, which may be larger than the decoder."""
    yield module
    for child in module.children():
        reads = getattr(child, "input_modalities", "text"), getattr(child, "main_input_name", "input_ids")
        if "text" in reads[0] and reads[1] == "input_ids":
            yield from _reading_text(child)


def _by_structure(model: PreTrainedModel) -> list[Site]:
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"{type(model).__name__} is an encoder-decoder: only decoder language models are supported")
    text_config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    hidden = getattr(text_config, "hidden_size", None)
    if hidden is None:
        raise InputError(
            f"{type(model).__name__}: its configuration names no hidden size of a decoder, which the FFN is known by; "
            "neuronllm.model.discovery.register can teach a foreign block"
        )
    if getattr(model.config, "ngram", 1) > 1:
        raise InputError(
            f"{type(model).__name__} runs several streams of tokens side by side, one for each token that it predicts "
            "ahead (ngram), which is not supported: give a decoder of one stream"
        )
    # Most families keep an FFN in a module of its own; CPM-Ant's stands in several.
    sites = _sites(model, hidden, _groups) or _sites(model, hidden, _one_group)
    if not sites:
        raise InputError(
            f"{type(model).__name__} has no FFN neurons: no decoder layer holds linear modules that lead from the "
            f"hidden size {hidden} to a width and back; neuronllm.model.discovery.register can teach a foreign block"
        )
    _refuse_shared(model, sites)
    return sites


def _sites(
    model: PreTrainedModel, hidden: int, groups: Callable[[nn.Module], Iterator[tuple[str, Group]]]
) -> list[Site]:
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
        together = [group for parent, group in groups(layer) if not (routed and parent in beside)]
        # Of BERT's, each module has a parent of its own.
        alone = [] if routed else [linear for group in together if len(group) == 1 for linear in group]
        for group in [*together, alone]:
            if found := _match(group, hidden):
                kind = SHARED if routed and "shared" in found[0] else DENSE
                widest[kind] = max(widest.get(kind, found), found, key=lambda f: f[2])
        for kind, (down, ups, width, transposed) in sorted(widest.items(), reverse=True):
            paths = tuple(f"{block}.{up}" for up in ups)
            sites.append(Site(number, kind, width, block, f"{block}.{down}", paths, transposed))
        sites += [_routed_site(model, number, block, name, module) for name, module in routed]
    return sites


def _refuse_shared(model: nn.Module, sites: list[Site]) -> None:
    """Of one module in two layers, or of two (Zamba's) that have one weight."""
    first: dict[int, Site] = {}
    for site in sites:
        module = inner(model.get_submodule(site.down))
        weight = module.down_proj if site.experts else getattr(module, "weight", module)
        other = first.setdefault(id(weight), site)
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
    known = {part for _, module in routed for part in module.modules()}
    around = [module for module in layer.modules() if is_wrapped(module) and inner(module) in known]
    known |= {part for module in around for part in module.modules()}
    family = getattr(model.config, "model_type", "") or type(model).__name__
    for name, module in layer.named_modules():
        kind = type(module).__name__
        # Experts stacked into one weight have a matrix from or to the hidden size each. So may have the heads of a
        # mixer, which is known by its convolution.
        mixes = any(isinstance(part, nn.Conv1d) for part in [module, *module.children()])
        shapes = [] if mixes else [parameter.shape for parameter in module.parameters(recurse=False)]
        stacked = any(len(shape) == 3 and shape[0] > 1 and hidden in shape[1:] for shape in shapes)
        named = "expert" in f"{name} {kind}".lower() and not (routed and "shared" in name)
        if module not in known and (stacked or named):
            tensors = [*module.parameters(), *module.buffers()]
            packed = any(t.dtype.itemsize == 1 and t.dtype != torch.bool for t in tensors)
            why = (
                "are packed, so their neurons cannot be reached: load the model dequantised"
                if packed
                else "do not follow transformers' common interface for experts, so their neurons cannot be reached: "
                "load another model, or name its other blocks by neuronllm.model.discovery.register (docs/models.md)"
            )
            raise InputError(
                f"{type(model).__name__}: the experts of the family {family} (layer {number}, {name}: {kind}) {why}"
            )


def _groups(layer: nn.Module) -> Iterator[tuple[str, Group]]:
    """Linear modules of a layer by parent, without attention, norms and convolutions, in order of registration."""
    for parent_name, parent in _outside_attention("", layer):
        group = []
        for name, child in parent.named_children():
            dims = _dims(inner(child))
            if dims:
                group.append((f"{parent_name}.{name}" if parent_name else name, child, *dims))
        if group and not any(isinstance(child, nn.Conv1d) for child in parent.children()):
            yield parent_name, group


def _one_group(layer: nn.Module) -> Iterator[tuple[str, Group]]:
    """All of them as if they had one parent."""
    yield "", [linear for _, group in _groups(layer) for linear in group]


def _outside_attention(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield name, module
    for child_name, child in module.named_children():
        if not _mixes_or_scales(child_name.lower(), type(child).__name__.lower()):
            yield from _outside_attention(f"{name}.{child_name}" if name else child_name, child)


def _mixes_or_scales(name: str, kind: str) -> bool:
    """Whether a module is attention or a norm, by its name and its class's; Zamba's layers of attention hold an FFN."""
    words = f"{name} {kind.replace('attentiondecoderlayer', '')}"
    return "attn" in words or "attention" in words or "norm" in name or kind.endswith("norm")


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


def _match(group: Group, hidden: int) -> tuple[str, list[str], int, bool] | None:
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
