"""TransformerLens 4: a neuron set as forward hooks of a TransformerBridge.

The other way round, every function that scores or judges a model takes a bridge (`model/bridged.py`).
"""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor

from ..model.edit import Positions
from ..results.neurons import NeuronSet
from .factors import LayerEdit, layer_edits


class Hook:
    """One layer's edit, as TransformerLens calls it."""

    def __init__(self, edit: LayerEdit) -> None:
        self.edit = edit

    def __call__(self, h: Tensor, hook: Any) -> Tensor:
        return self.edit(h)


Hooks: TypeAlias = "list[tuple[str, Hook]]"


def to_transformer_lens(
    neurons: NeuronSet,
    good: float | None = None,
    bad: float | None = None,
    *,
    mode: str | None = None,
    positions: Positions | None = None,
) -> Hooks:
    """(hook name, function) of every edited layer, for `bridge.hooks` and `bridge.run_with_hooks`.

    mode, good, bad: as in `neurons.apply`; without them the neurons' own factors, else the tuned ones. positions:
    "all", an index, a slice, a tensor of indices or a mask; by default where the set was found. A hook sees no end of a
    prompt, so "answer" is refused. Neurons of experts are refused too.

    >>> hooks = to_transformer_lens(neurons, mode="enhance")     # doctest: +SKIP
    >>> logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks)  # doctest: +SKIP
    """
    edits = layer_edits(neurons, good, bad, mode, positions, "TransformerLens")
    return [(f"blocks.{edit.site.layer}.mlp.out.hook_in", Hook(edit)) for edit in edits]
