"""RelP's backward rules, by hooks: the forward values stay as they are, gradients follow layer-wise relevance rules.

Norms pass gradients as if their scale were constant, and a gate that a norm takes beside its input is part of that
scale; an activation passes x * (act(x)/x with the ratio constant); the two factors of a gated product take half each.
At a down projection these rules meet in one formula that needs neither the activation function nor to know which factor
is the gate: dh/dg = h / 2g, dh/du = h / 2u (dh/dx = h / x ungated).

Experts follow the same formula. Where a family's up factor is u + 1, the share of h that is linear in u passes through
u: dh/du = (h - h at u = 0) / 2u. A routing weight is a constant, so that the relevance of its product with an expert's
output is the expert's alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..common.errors import InputError
from ..model.anatomy import Anatomy
from ..model.experts import VisitExperts, gate_and_up, share_of_up, visiting_experts
from ..model.hooks import visiting
from ..model.sites import Site
from .borrowed import attention_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Ups:
    """The outputs that lead into a site's h in the pass that is running."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seen: dict[str, Any] = {}  # an output by the module's name; of experts, how to make it

    def __call__(self, site: Site, h: Tensor) -> list[Tensor]:
        """The gate first, each shaped as h."""
        if site.experts:
            outputs = gate_and_up(self.model.get_submodule(site.down), self.seen[site.down]())
        else:
            outputs = [self.seen[name] for name in site.ups]
            if outputs[0].shape[-1] == 2 * site.width:
                outputs = list(outputs[0].chunk(2, -1))
        return [output.reshape(h.shape) for output in outputs]

    def parts(self, site: Site, h: Tensor) -> list[Tensor]:
        """The part of h that is a product with each of the outputs: h itself, but for up factors like u + 1."""
        if not site.experts:
            return [h] * len(self(site, h))
        module: Any = self.model.get_submodule(site.down)
        if not module.has_gate:
            return [h]
        return [h, h * share_of_up(module, self.seen[site.down]()).reshape(h.shape).to(h)]


@contextmanager
def watching_ups(model: PreTrainedModel, sites: Sequence[Site]) -> Iterator[Ups]:
    """Yields `ups(site, h)`: the outputs that lead into a site's h in this pass, the gate first, shaped as h."""
    ups = Ups(model)

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            ups.seen[name] = output

        return hook

    def keep_experts(name: str) -> VisitExperts:
        def visit(h: Tensor, routes: Tensor, leading: Callable[[], Tensor]) -> None:
            ups.seen[name] = leading

        return visit

    names = {name for site in sites for name in site.ups}
    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        with visiting_experts(model, {site.down: keep_experts(site.down) for site in sites if site.experts}):
            yield ups
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def relp_rules(model: PreTrainedModel, anatomy: Anatomy, *, detach_attention: bool = False) -> Iterator[None]:
    """Run the body's backward passes by RelP's rules."""
    norms = [m for m in model.modules() if "norm" in type(m).__name__.lower() and not list(m.children())]
    handles = [norm.register_forward_hook(_constant_scale) for norm in norms]
    routed = [model.get_submodule(site.down) for site in anatomy.sites if site.experts]
    handles += [experts.register_forward_pre_hook(_constant_weights) for experts in routed]
    try:
        with ExitStack() as stack:
            if detach_attention:
                stack.enter_context(_constant_patterns(model))
            ups = stack.enter_context(watching_ups(model, anatomy.sites))
            stack.enter_context(visiting(model, anatomy.sites, lambda site, h, _: _relevance(h, ups, site)))
            yield
    finally:
        for handle in handles:
            handle.remove()


def _ratio(y: Tensor, x: Tensor) -> Tensor:
    """y / x as a constant, 0 where x is 0."""
    return torch.where(x == 0, torch.zeros_like(y), y / x).detach()


def _follow(value: Tensor, terms: list[Tensor]) -> Tensor:
    """`value`, with the gradient of the sum of `terms`."""
    return value.detach() + sum(term - term.detach() for term in terms)


def _relevance(h: Tensor, ups: Ups, site: Site) -> Tensor:
    outputs = ups(site, h)
    pairs = zip(outputs, ups.parts(site, h), strict=True)
    return _follow(h, [up * _ratio(part, up) / len(outputs) for up, part in pairs])


def _constant_weights(experts: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    hidden, routes, weights = args
    return hidden, routes, weights.detach()


def _constant_scale(norm: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
    if isinstance(output, tuple):  # queries and keys, each scaled
        return tuple(_follow(y, [x * _ratio(y, x)]) for x, y in zip(args, output, strict=True))
    x = args[0]
    if output.shape != x.shape:  # the scale alone
        return output.detach()
    bias = getattr(norm, "bias", None)
    scaled = output if bias is None else output - bias
    centred = x - x.mean(-1, keepdim=True)
    with torch.no_grad():  # a LayerNorm does not see its input's mean; an RMSNorm does
        subtracts_mean = torch.allclose(norm.forward(centred, *args[1:]), output, rtol=1e-4, atol=1e-5)
    source = centred if subtracts_mean else x
    return _follow(output, [source * _ratio(scaled, source)])


@contextmanager
def _constant_patterns(model: PreTrainedModel) -> Iterator[None]:
    """Attention whose pattern is a constant: queries and keys pass no gradient.

    It goes by the names that the attention has already, since a model may do otherwise under one that it does not know.
    """
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    modules, called = set(model.modules()), []
    before = {name: ALL_ATTENTION_FUNCTIONS.get(name) for name in attention_names(model).values() if name}

    def detached(name: str, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        # "eager" is no entry of the table: every modelling file has its own, with that family's caps and sinks.
        attend: Any = before[name] or getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if module in modules:
            called.append(module)
            query, key = query.detach(), key.detach()
        return attend(module, query, key, *args, **kwargs)

    try:
        for name in before:
            AttentionInterface.register(name, partial(detached, name))
        yield
    finally:
        for name, attend in before.items():
            if attend is None:
                AttentionInterface._global_mapping.pop(name, None)
            else:
                AttentionInterface.register(name, attend)
    if not called:
        raise InputError(
            f'attention="detached": {type(model).__name__} does not attend through a replaceable interface; '
            'use attention="live"'
        )
