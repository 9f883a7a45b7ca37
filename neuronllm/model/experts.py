"""Neurons inside a mixture of experts: what a token's routed experts hold in front of their down projections.

transformers keeps the experts of a layer stacked in one module and lets that module's computation be chosen by name.
While somebody visits a module, a function of ours is chosen: it computes what the model's own choice computes, in the
same order and with the same matrix products, and shows h on the way. Modules that nobody visits run the model's own
function.

The numbers are those of the family's own code ("eager") or of transformers' grouped products (every other choice; next
to "batched_mm" and fused kernels they differ by rounding). There is no grouped product in float64, which always runs as
"eager".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from ..common.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# what the first projection gives (tokens, K, width, or twice the width where there is a gate), made when asked for
Leading: TypeAlias = Callable[[], Tensor]
# (h, routes, leading) -> what h (tokens, K, width) of the experts `routes` (tokens, K) is to be, or None
VisitExperts: TypeAlias = "Callable[[Tensor, Tensor, Leading], Tensor | None]"

VISITS = "_neuronllm_visits"  # on a visited module, so that a copy of the model takes its visitors along, as with hooks
PREFIX = "neuronllm_"


@contextmanager
def visiting_experts(model: PreTrainedModel, visits: Mapping[str, VisitExperts]) -> Iterator[None]:
    """Call `visits[name]` with what the named modules of experts hold, in every pass; outer contexts come first."""
    modules: list[tuple[Any, VisitExperts]] = [(model.get_submodule(name), visit) for name, visit in visits.items()]
    before = model.get_experts_implementation() if modules else {}
    ours = {part: name if name.startswith(PREFIX) else _registered(name) for part, name in before.items() if name}
    try:
        if modules:
            model.set_experts_implementation(ours)
        for module, visit in modules:
            vars(module).setdefault(VISITS, []).append(visit)
        yield
    finally:
        for module, visit in modules:
            left = [other for other in vars(module).pop(VISITS, []) if other is not visit]
            if left:
                vars(module)[VISITS] = left
        if modules:
            model.set_experts_implementation(before)


@contextmanager
def computable(model: PreTrainedModel) -> Iterator[None]:
    """A mixture of experts in float64 runs its family's own code for the while: grouped products take no float64."""
    before = model.get_experts_implementation() if model.dtype == torch.float64 else {}
    try:
        if before:
            model.set_experts_implementation({part: "eager" for part, name in before.items() if name})
        yield
    finally:
        if before:
            model.set_experts_implementation(before)


def gate_and_up(module: Any, leading: Tensor) -> list[Tensor]:
    """What leads into h, the gate first, cut out of the first projection; one tensor where there is no gate."""
    if not module.has_gate:
        return [leading]
    if module.is_concatenated:
        return list(leading.chunk(2, -1))
    return [leading[..., ::2], leading[..., 1::2]]


def share_of_up(module: Any, leading: Tensor) -> Tensor:
    """The share of h that is linear in the up output: h = act(gate) * (up + c), and some families have c = 1.

    Read off the family's own gating by taking the up output away; in float32 at least, because it is a difference.
    """
    leading = leading.detach().to(torch.promote_types(leading.dtype, torch.float32))
    without = leading.clone()
    gate_and_up(module, without)[1].zero_()
    whole = _activated(module, leading)
    return torch.where(whole == 0, 0.0, (whole - _activated(module, without)) / whole)


def _registered(own: str) -> str:
    """The name of our function that computes as `own` does."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if PREFIX + own not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(PREFIX + own, partial(_forward, own))
    return PREFIX + own


def _forward(own: str, module: Any, hidden: Tensor, routes: Tensor, weights: Tensor) -> Tensor:
    """The forward of an experts module: hidden (tokens, D), routes and weights (tokens, K)."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    visits: list[VisitExperts] = vars(module).get(VISITS, [])
    if not visits:
        return ALL_EXPERTS_FUNCTIONS.get_interface(own, type(module).forward.__wrapped__)(
            module, hidden, routes, weights
        )
    if getattr(module, "_is_expert_parallel", False):
        raise InputError("model: its experts are spread over processes, which is not supported: load it without a plan")
    routes = routes.long()
    eager = own == "eager" or hidden.dtype == torch.float64
    order, ends = _by_expert(routes, module.down_proj.shape[0], slot_first=eager)
    project = partial(_project, module, routes.reshape(-1)[order], ends, eager)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))

    leading = project("gate_up_proj" if module.has_gate else "up_proj", hidden[order // routes.shape[1]])
    # The family's own code gates one expert at a time; the last bit of a vectorised function can depend on the shape.
    parts = [leading[start:end] for _, start, end in _spans(ends)] if eager else [leading]
    h = torch.cat([_activated(module, part) for part in parts])
    shown = seen = h[inverse].unflatten(0, routes.shape)
    for visit in visits:
        changed = visit(shown, routes, lambda: leading[inverse].unflatten(0, routes.shape))
        shown = shown if changed is None else changed
    out = project("down_proj", h if shown is seen else shown.flatten(0, 1)[order])

    if getattr(module, "has_post_expert_norm", False):
        out = module.post_expert_norm(out)
    out = out * weights.reshape(-1)[order][:, None]
    if not eager:
        return out[inverse].unflatten(0, routes.shape).sum(1).to(hidden.dtype)
    total = torch.zeros_like(hidden)
    for _, start, end in _spans(ends):  # a token meets an expert once, so no sum depends on the order of threads
        total.index_add_(0, order[start:end] // routes.shape[1], out[start:end].to(hidden.dtype))
    return total


def _by_expert(routes: Tensor, experts: int, *, slot_first: bool) -> tuple[Tensor, Tensor]:
    """The order that sorts (token, slot) pairs by expert, and where each expert's pairs end in it.

    Within an expert the pairs are in order of tokens, as in transformers' grouped products, or of slots, as in the
    families' own loops: the place of a row in a matrix product can change its last bit.
    """
    if slot_first:
        tokens, slots = routes.shape
        flat, by_slot = routes.T.reshape(-1).sort(stable=True)
        order = by_slot % tokens * slots + by_slot // tokens
    else:
        flat, order = routes.reshape(-1).sort()
    numbers = torch.arange(experts, device=routes.device, dtype=flat.dtype)
    return order, torch.searchsorted(flat, numbers, right=True)


def _spans(ends: Tensor) -> list[tuple[int, int, int]]:
    """(expert, start, end) of every expert that has rows."""
    stops = ends.tolist()
    starts = [0, *stops[:-1]]
    return [(e, start, end) for e, (start, end) in enumerate(zip(starts, stops, strict=True)) if end > start]


def _project(module: Any, experts: Tensor, ends: Tensor, eager: bool, name: str, x: Tensor) -> Tensor:
    """Rows x, sorted by expert, through each one's own matrix."""
    from transformers.integrations.moe import _grouped_linear

    weight, bias = getattr(module, name), getattr(module, f"{name}_bias") if module.has_bias else None
    if not eager:
        rows = None if bias is None else bias[experts]
        return _grouped_linear(x, weight, ends.int(), bias=rows, is_transposed=module.is_transposed)
    parts = []
    for expert, start, end in _spans(ends):
        if module.is_transposed:
            part = x[start:end] @ weight[expert]
        else:
            part = nn.functional.linear(x[start:end], weight[expert])
        parts.append(part if bias is None else part + bias[expert])
    return torch.cat(parts)


def _activated(module: Any, leading: Tensor) -> Tensor:
    return module._apply_gate(leading) if module.has_gate else module.act_fn(leading)
