"""Mixtures of experts written out, one expert and one token at a time, with a place to change h."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

DENSE, SHARED = -1, -2
SINGLE = {"mlp.down_proj": DENSE, "mlp.shared_expert.down_proj": SHARED, "mlp.shared_experts.down_proj": SHARED}
# what h (width,) of (layer, expert) at a token is to be
Change = Callable[[int, int, int, Tensor], Tensor]


def gated(family: str, leading: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of h."""
    if family == "gpt_oss":
        gate, up = leading[::2].clamp(max=7.0), leading[1::2].clamp(-7.0, 7.0)
        return gate * torch.sigmoid(1.702 * gate), up + 1
    gate, up = leading[: len(leading) // 2], leading[len(leading) // 2 :]
    return gate * torch.sigmoid(gate), up


def expert_forward(
    family: str, layer: int, experts: Any, change: Change, weigh: Any, gate: Any
) -> Callable[..., Tensor]:
    """The forward of an experts module; its parameters may have either orientation."""
    out_first = family != "gpt_oss"

    def linear(x: Tensor, name: str, expert: int) -> Tensor:
        weight = getattr(experts, name)[expert]
        y = weight @ x if out_first else x @ weight
        return y if out_first else y + getattr(experts, f"{name}_bias")[expert]

    def forward(hidden: Tensor, routes: Tensor, weights: Tensor) -> Tensor:
        rows = []
        for token, x in enumerate(hidden):
            row = torch.zeros_like(x)
            for expert, weight in zip(routes[token].tolist(), weights[token], strict=True):
                h = change(layer, expert, token, gate(family, linear(x, "gate_up_proj", expert)))
                row = row + weigh(weight) * linear(h, "down_proj", expert)
            rows.append(row)
        return torch.stack(rows)

    return forward


def product(family: str, leading: Tensor) -> Tensor:
    one, other = gated(family, leading)
    return one * other


def relp_gate(family: str, leading: Tensor) -> Tensor:
    """act(gate) as gate times a constant, the product halved, as RelP's rules say."""
    act, factor = gated(family, leading)
    gate = leading[::2] if family == "gpt_oss" else leading[: len(leading) // 2]
    linear = gate * (act / gate).detach()
    halved = linear * factor
    return 0.5 * halved + 0.5 * halved.detach()


@contextmanager
def experts_by_hand(
    model: Any, change: Change, weigh: Any = lambda weight: weight, gate: Any = product
) -> Iterator[None]:
    """Run the model's experts by the code above, and `change` in dense and shared blocks too; one row of tokens."""
    replaced, handles = [], []

    def hook(layer: int, expert: int) -> Callable[..., tuple[Tensor]]:
        def every_token(module: Any, args: Any) -> tuple[Tensor]:
            h = args[0].reshape(-1, args[0].shape[-1])
            return (torch.stack([change(layer, expert, t, row) for t, row in enumerate(h)]).reshape(args[0].shape),)

        return every_token

    try:
        for layer, block in enumerate(model.model.layers):
            experts = getattr(block.mlp, "experts", None)
            if experts is not None:
                experts.forward = expert_forward(model.config.model_type, layer, experts, change, weigh, gate)
                replaced.append(experts)
            for name, module in block.named_modules():
                if name in SINGLE:
                    handles.append(module.register_forward_pre_hook(hook(layer, SINGLE[name])))
        yield
    finally:
        for experts in replaced:
            del experts.forward
        for handle in handles:
            handle.remove()


def seen_by_hand(model: Any, ids: list[int]) -> dict[tuple[int, int, int], Tensor]:
    """h by (layer, expert, token), of every expert that the token is routed to."""
    seen: dict[tuple[int, int, int], Tensor] = {}

    def keep(layer: int, expert: int, token: int, h: Tensor) -> Tensor:
        seen[layer, expert, token] = h.detach()
        return h

    with torch.no_grad(), experts_by_hand(model, keep):
        model(input_ids=torch.tensor([ids]), use_cache=False)
    return seen
