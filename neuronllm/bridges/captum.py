"""captum: neuron times gradient, as one of its layer attributions that knows where a language model's neurons are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..common.errors import InputError
from ..model.anatomy import Anatomy
from ..model.sites import Site

if TYPE_CHECKING:
    from captum.attr import LayerGradientXActivation
else:
    try:
        from captum.attr import LayerGradientXActivation
    except ImportError:  # said when it is used
        LayerGradientXActivation = object


class LayerNeuronAttribution(LayerGradientXActivation):
    """Each neuron times the gradient of the output at it, of one layer or of all in one backward pass.

    forward_func: a Hugging Face model, whose logits (rows, tokens, vocabulary) are the output, or a function of your
    own that runs `model`. layer: a number, a decoder layer, or the FFN or the down projection in it; a list of these;
    or None for all. The other arguments are captum's.

    >>> method = LayerNeuronAttribution(model)                      # doctest: +SKIP
    >>> per_layer = method.attribute(input_ids, target=(-1, 319))   # doctest: +SKIP
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Any = None,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
        memory_efficient: bool = False,
        *,
        model: Any = None,
    ) -> None:
        if LayerGradientXActivation is object:
            raise InputError("LayerNeuronAttribution: takes the package captum; pip install 'neuronllm[doors]'")
        if model is None:
            if not isinstance(forward_func, nn.Module):
                raise InputError("model: give the model that forward_func runs, whose neurons are meant")
            model, forward_func = forward_func, _logits_of(forward_func)
        downs = _down_projections(model, layer)
        super().__init__(forward_func, downs, device_ids, multiply_by_inputs, memory_efficient)

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """(rows, tokens, neurons) of the layer, or a list of them, one a layer.

        inputs, target, additional_forward_args: captum's; of logits, a target is (token, vocabulary id), one for all
        rows or a list with one a row, and token -1 is the last.
        """
        if not attribute_to_layer_input:
            raise InputError("attribute_to_layer_input=False: neurons are what a down projection takes in")
        return super().attribute(inputs, target, additional_forward_args, True, grad_kwargs)


def _logits_of(model: Callable[..., Any]) -> Callable[..., Tensor]:
    def logits(*inputs: Any) -> Tensor:
        found: Tensor = model(*inputs, use_cache=False).logits
        return found

    return logits


def _down_projections(model: Any, layer: Any) -> nn.Module | list[nn.Module]:
    """The module of one layer, or those of several, in the order asked for."""
    anatomy = Anatomy.of(model)
    several = layer is None or isinstance(layer, (list, tuple))
    asked = range(anatomy.sites[-1].layer + 1) if layer is None else layer if several else [layer]
    sites = [site for one in asked for site in _sites(model, anatomy, one)]
    for site in sites:
        if site.experts:
            raise InputError(
                f"layer {site.layer}: its experts are stacked in one module, which captum cannot look into"
            )
    downs = [model.get_submodule(site.down) for site in sites]
    return downs[0] if len(downs) == 1 and not several else downs


def _sites(model: nn.Module, anatomy: Anatomy, layer: Any) -> list[Site]:
    """The sites of a layer that is given by its number, or as a module in which they are."""
    if isinstance(layer, nn.Module):
        found = [site for site in anatomy.sites if layer in _path(model, site)]
    else:
        found = [site for site in anatomy.sites if not isinstance(layer, bool) and site.layer == layer]
    if not found:
        name = type(layer).__name__ if isinstance(layer, nn.Module) else repr(layer)
        raise InputError(f"layer={name}: give a layer's number, or a module in a layer of the {anatomy.describe()}")
    return found


def _path(model: nn.Module, site: Site) -> list[nn.Module]:
    """The modules from a decoder layer down to its down projection."""
    inside = site.down.removeprefix(site.block).split(".")[1:]
    names = [".".join([site.block, *inside[:depth]]) for depth in range(len(inside) + 1)]
    return [model.get_submodule(name) for name in names]
