"""Fold a neuron set into the weights: a factor on a neuron is the same factor on its column of the down projection."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..model.anatomy import Anatomy
from ..model.wrapped import own_model, wrapped_around
from ..results.neurons import POSITIONS, NeuronSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Baked:
    """The undo handle of `bake`: it kept the original columns, because dividing cannot restore zeros."""

    def __init__(self) -> None:
        self._columns: list[tuple[Tensor, bool, tuple[Tensor, ...], Tensor, Tensor]] = []

    @torch.no_grad()
    def scale(self, weight: Tensor, transposed: bool, neurons: tuple[Tensor, ...], factors: Tensor) -> None:
        """Multiply the columns of `neurons`: their indices, after those of their experts where there are any."""
        columns = _by_neuron(weight, transposed)
        original = columns[neurons]
        baked = original * factors.to(weight)[:, None]
        self._columns.append((weight, transposed, neurons, original, baked))
        columns[neurons] = baked

    @torch.no_grad()
    def undo(self) -> None:
        """Put the original weights back, bit for bit; refused where they were changed since, as by another bake."""
        # The model may have been moved or cast in between.
        places = [tuple(n.to(weight.device) for n in neurons) for weight, _, neurons, *_ in self._columns]
        for (weight, transposed, _, _, baked), here in zip(self._columns, places, strict=True):
            if not torch.equal(_by_neuron(weight, transposed)[here], baked.to(weight)):
                raise InputError("undo: the baked weights were changed since; undo what was baked later first")
        for (weight, transposed, _, original, _), here in zip(self._columns, places, strict=True):
            _by_neuron(weight, transposed)[here] = original.to(weight)
        self._columns = []


def _by_neuron(weight: Tensor, transposed: bool) -> Tensor:
    """The weight of a down projection with the neurons in front: (width, D), or (experts, width, D)."""
    return weight if transposed else weight.transpose(-1, -2)


def bake(
    model: PreTrainedModel,
    neurons: NeuronSet,
    good: float | None = None,
    bad: float | None = None,
    *,
    mode: str | None = None,
    positions: str | None = None,
) -> Baked:
    """Multiply the neurons' columns of the model's weights in place; equals the live edit at all positions.

    Bit for bit for factors that are 0 or powers of two, within rounding otherwise. `mode` is "enhance", "degrade",
    "own" or "tuned"; without mode and factors the neurons' own factors are used, else the tuned ones.
    `model.save_pretrained` then writes an ordinary model. Weights know no answer position: a set that was found or
    tuned there is refused unless positions="all" is given.

    >>> handle = bake(model, neurons, mode="enhance")   # doctest: +SKIP
    >>> handle.undo()                                   # doctest: +SKIP
    """
    check_positions(neurons, positions)
    model = own_model(model)
    neurons.warn_if_empty()
    ids, factors = neurons.edits(model, neurons.steering(mode, good, bad))
    anatomy = Anatomy.of(model)
    where = anatomy.site_of(ids)
    owners = Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
    plan = []
    for n in where.unique().tolist():
        site = anatomy.sites[n]
        module: Any = model.get_submodule(site.down)
        weight = module.down_proj if site.experts else module.weight
        if kind := wrapped_around(model, site.down):
            raise InputError(
                f"{site.down}: PEFT has wrapped it ({kind}), and a baked weight would lie under the adapter: merge "
                "it first (model = model.merge_and_unload()), or steer live"
            )
        if weight.dtype not in DTYPES or weight.ndim != (3 if site.experts else 2):
            raise InputError(
                f"{site.down}: quantised weights cannot be baked, use the live edit or unquantised weights"
            )
        if owners[weight] > 1:
            raise InputError(f"{site.down}: its weight is shared with another module, use the live edit")
        within = (ids[where == n] - anatomy.offsets[n]).to(weight.device)
        neurons_here = (within // site.width, within % site.width) if site.experts else (within,)
        plan.append((weight, site.transposed, neurons_here, rounded(factors[where == n], weight.dtype, site.down)))
    handle = Baked()
    for step in plan:
        handle.scale(*step)
    return handle


def rounded(factors: Tensor, dtype: torch.dtype, down: str) -> Tensor:
    """The factors in the type that they act in, after refusing those that it cannot hold."""
    held = factors.to(dtype)
    if len(beyond := factors[held.isinf()]):
        raise InputError(
            f"{down}: the factor {float(beyond[0]):g} is more than {str(dtype).removeprefix('torch.')} holds: give "
            "smaller factors, or load the model in bfloat16 or float32"
        )
    return held


def check_positions(neurons: NeuronSet, positions: str | None, holder: str = "weights") -> None:
    """Weights and adapters hold an edit at every token, which is another edit than one at the answer position."""
    if positions not in (None, *POSITIONS):
        raise InputError(f"positions={positions!r}: known values are {', '.join(POSITIONS)}")
    if (positions or neurons.positions) == "answer":
        whose = "positions='answer'" if positions else "the set is for edits at the answer position"
        raise InputError(
            f'{whose}, which {holder} cannot hold: steer live, or ask for an edit at every token with positions="all" '
            "(--positions all)"
        )
