"""Fold a neuron set into the weights: a factor on a neuron is the same factor on its column of the down projection."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .anatomy import Anatomy
from .errors import InputError
from .neurons import NeuronSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Baked:
    """The undo handle of `bake`: it kept the original columns, because dividing cannot restore zeros."""

    def __init__(self) -> None:
        self._columns: list[tuple[Tensor, Tensor, int, Tensor]] = []

    @torch.no_grad()
    def scale(self, weight: Tensor, index: Tensor, dim: int, factors: Tensor) -> None:
        original = weight.index_select(dim, index)
        self._columns.append((weight, index, dim, original))
        shape = [1, -1] if dim == 1 else [-1, 1]
        weight.index_copy_(dim, index, original * factors.to(weight).reshape(shape))

    @torch.no_grad()
    def undo(self) -> None:
        """Put the original weights back, bit for bit."""
        while self._columns:
            weight, index, dim, original = self._columns.pop()
            # The model may have been moved or cast in between.
            weight.index_copy_(dim, index.to(weight.device), original.to(weight))


def bake(
    model: PreTrainedModel,
    neurons: NeuronSet,
    good: float | None = None,
    bad: float | None = None,
    *,
    mode: str | None = None,
) -> Baked:
    """Multiply the neurons' columns of the model's weights in place; equals the live edit at all positions.

    Bit for bit for factors that are 0 or powers of two, within rounding otherwise. `mode` is "enhance" or "degrade";
    without mode and factors, the tuned ones are used. `model.save_pretrained` then writes an ordinary model.

    >>> handle = bake(model, neurons, mode="enhance")   # doctest: +SKIP
    >>> handle.undo()                                   # doctest: +SKIP
    """
    good, bad, positions = neurons.factors(mode, good, bad)
    if positions not in (None, "all"):
        raise InputError(
            "the set was tuned for edits at the answer position, which weights cannot express: "
            'tune with positions=("all",), or give a mode or factors'
        )
    ids, factors = neurons.edits(model, good, bad)
    anatomy = Anatomy.of(model)
    where = anatomy.site_of(ids)
    owners = Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
    plan = []
    for n in where.unique().tolist():
        site = anatomy.sites[n]
        weight: Any = model.get_submodule(site.down).weight
        if weight.dtype not in DTYPES or weight.ndim != 2:
            raise InputError(
                f"{site.down}: quantised weights cannot be baked, use the live edit or unquantised weights"
            )
        if owners[weight] > 1:
            raise InputError(f"{site.down}: its weight is shared with another module, use the live edit")
        index = (ids[where == n] - anatomy.offsets[n]).to(weight.device)
        plan.append((weight, index, 0 if site.transposed else 1, factors[where == n]))
    handle = Baked()
    for weight, index, dim, factor in plan:
        handle.scale(weight, index, dim, factor)
    return handle
