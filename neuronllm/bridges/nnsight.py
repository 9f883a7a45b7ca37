"""nnsight: a neuron set applied inside a trace."""

from __future__ import annotations

from typing import Any

import torch

from ..common.errors import InputError
from ..model.edit import Positions
from ..results.neurons import NeuronSet
from .factors import layer_edits


def steer_trace(
    net: Any,
    neurons: NeuronSet,
    good: float | None = None,
    bad: float | None = None,
    *,
    mode: str | None = None,
    positions: Positions | None = None,
) -> None:
    """Multiply the neurons by their factors, inside a trace of nnsight's model `net`.

    To be called before the trace reads anything of the edited layers, as traces follow the order of the model. mode,
    good, bad: as in `neurons.apply`. positions: "all", an index, a slice, a tensor of indices or a mask; by default
    where the set was found. A trace does not say where an answer begins, so "answer" is refused. Inside `net.edit()`
    the edit stays.

    >>> with net.trace(input_ids):                       # doctest: +SKIP
    ...     steer_trace(net, neurons, mode="enhance")
    ...     logits = net.output.logits.save()
    """
    edits = layer_edits(neurons, good, bad, mode, positions, "nnsight")
    if isinstance(net, torch.nn.Module):
        raise InputError(
            f"net: give the model as nnsight has it (nnsight.NNsight(model)), not the {type(net).__name__}"
        )
    for edit in edits:
        down = _module(net, edit.site.down)
        down.input = edit(down.input)


def _module(net: Any, path: str) -> Any:
    """What stands for a module in nnsight's model."""
    for name in path.split("."):
        try:
            net = net[int(name)] if name.isdigit() else getattr(net, name)
        except (AttributeError, IndexError, TypeError) as error:
            raise InputError(f"net: the neuron set is of a model with {path}, which this one has not") from error
    return net
