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

from ..common.errors import InputError
from .experts import VisitExperts, visiting_experts
from .sites import Site
from .streams import tokens_first

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# (site, h, routes) -> what h is to be, or None; routes are None in a dense block
Visit = Callable[[Site, torch.Tensor, "torch.Tensor | None"], "torch.Tensor | None"]


class HookError(InputError):
    """A forward pass did not call every down projection that was to be seen or edited once, with tokens in rows."""


@contextmanager
def visiting(model: PreTrainedModel, sites: Sequence[Site], visit: Visit) -> Iterator[None]:
    """Call `visit(site, h, routes)` with h (batch, tokens, width) in front of every site's down projection.

    At a routed site h is (batch, tokens, K, width), of the K experts that `routes` (batch, tokens, K) names for each
    token. What `visit` returns replaces h; None leaves it. Every forward pass of `model` must reach every site, in its
    own order: a layer's experts may come before or after its shared block. An outer context comes before an inner one.
    """
    fired: set[str] = set()
    shapes: dict[str, torch.Size] = {}
    under_way: list[Any] = []  # the token ids of the forward pass that is running
    handles: list[Any] = []

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        fired.clear()
        under_way[:] = [kwargs.get("input_ids", args[0] if args else None)]

    def remember_shape(block: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            shape = shapes[block] = tokens_first(model, args[0] if args else kwargs["hidden_states"]).shape[:2]
            ids = under_way[0] if under_way else None
            if ids is not None and shape != ids.shape and shape == ids.shape[::-1]:
                raise HookError(f"{type(model).__name__} puts tokens in front of the batch, which is not supported")

        return hook

    def call(site: Site) -> None:
        if under_way and site.down in fired:
            raise HookError(
                f"{site.down} runs several times in a forward pass of {type(model).__name__}, which goes through its "
                "layers again and again: that is not supported"
            )
        fired.add(site.down)

    def intercept(site: Site) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any) -> Any:
            call(site)
            h = args[0]
            # Some blocks (OPT) flatten batch and tokens before their linear modules.
            edited = visit(site, h if h.ndim == 3 else h.unflatten(0, shapes[site.block]), None)
            return None if edited is None else (edited.reshape(h.shape), *args[1:])

        return hook

    def intercept_experts(site: Site) -> VisitExperts:
        def visit_experts(h: torch.Tensor, routes: torch.Tensor, leading: Any) -> torch.Tensor | None:
            call(site)
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
        handles.append(model.register_forward_pre_hook(begin, with_kwargs=True))
        handles.append(model.register_forward_hook(check))
        # Blocks that run again on the way back are no part of it; a pass that failed is over too.
        handles.append(model.register_forward_hook(lambda *_: under_way.clear(), always_call=True))
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
