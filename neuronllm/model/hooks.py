"""Hooks in front of the down projections, where neurons are seen and edited.

`visiting` is the one place that hooks a model's neurons (those of routed experts through `experts.py`); the engine and
the edits are built on it. Hooks leave with the context, also after an exception, and a forward pass that bypassed one
of them raises instead of giving unedited numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .experts import VisitExperts, visiting_experts
from .sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# (site, h, routes) -> what h is to be, or None; routes are None in a dense block
Visit = Callable[[Site, torch.Tensor, "torch.Tensor | None"], "torch.Tensor | None"]


class HookError(RuntimeError):
    """A forward pass went past a down projection that was to be seen or edited."""


@contextmanager
def visiting(model: PreTrainedModel, sites: Sequence[Site], visit: Visit) -> Iterator[None]:
    """Call `visit(site, h, routes)` with h (batch, tokens, width) in front of every site's down projection.

    At a routed site h is (batch, tokens, K, width), of the K experts that `routes` (batch, tokens, K) names for each
    token. What `visit` returns replaces h; None leaves it. Every forward pass of `model` must reach every site, in its
    own order: a layer's experts may come before or after its shared block. An outer context comes before an inner one.
    """
    fired: set[str] = set()
    shapes: dict[str, torch.Size] = {}
    handles: list[Any] = []

    def remember_shape(block: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            shapes[block] = (args[0] if args else kwargs["hidden_states"]).shape[:2]

        return hook

    def intercept(site: Site) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any) -> Any:
            fired.add(site.down)
            h = args[0]
            # Some blocks (OPT) flatten batch and tokens before their linear modules.
            edited = visit(site, h if h.ndim == 3 else h.unflatten(0, shapes[site.block]), None)
            return None if edited is None else (edited.reshape(h.shape), *args[1:])

        return hook

    def intercept_experts(site: Site) -> VisitExperts:
        def visit_experts(h: torch.Tensor, routes: torch.Tensor, leading: Any) -> torch.Tensor | None:
            fired.add(site.down)
            shape = shapes[site.block]
            if shape.numel() != len(h):
                raise HookError(f"{site.down} saw {len(h)} tokens where its layer has {shape.numel()}")
            edited = visit(site, h.unflatten(0, shape), routes.unflatten(0, shape))
            return None if edited is None else edited.flatten(0, 1)

        return visit_experts

    def check(module: nn.Module, args: Any, output: Any) -> None:
        missed = [site.down for site in sites if site.down not in fired]
        if missed:
            raise HookError(
                f"{missed[0]} was bypassed in a forward pass ({len(missed)} of {len(sites)} down projections): "
                "the model computes its FFN without calling the module, so its neurons cannot be reached"
            )

    try:
        handles.append(model.register_forward_pre_hook(lambda *_: fired.clear()))
        handles.append(model.register_forward_hook(check))
        for site in sites:
            block, down = model.get_submodule(site.block), model.get_submodule(site.down)
            handles.append(block.register_forward_pre_hook(remember_shape(site.block), with_kwargs=True))
            if not site.experts:
                handles.append(down.register_forward_pre_hook(intercept(site)))
        with visiting_experts(model, {site.down: intercept_experts(site) for site in sites if site.experts}):
            yield
    finally:
        for handle in handles:
            handle.remove()
