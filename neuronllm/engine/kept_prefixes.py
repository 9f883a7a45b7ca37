"""Prefixes that are kept for many passes over the same prompts, as far as a budget goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .mixers import Mixers
from .prefill import made_prefix, prefill_all
from .tree import Level, Prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt


class KeptPrefixes:
    """What no edit at the answer can change, of the shortest of `prompts`; the others are computed again for a pass.

    Which prompts are kept follows from the budget alone, so that a run that goes on computes what it did before.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        root: Level | None,
        size: int,
        budget: int,
        mixers: Mixers | None = None,
    ) -> None:
        unique = {tuple(p.input_ids): p for p in sorted(prompts, key=lambda p: len(p.input_ids))}
        some = list(unique.values())
        begin = 0 if root is None else int(root.lengths)
        some = some[: _fitting(model, some, root, begin, budget, mixers)]
        self._model, self._root, self._mixers = model, root, mixers
        self._places = {tuple(p.input_ids): n for n, p in enumerate(some)}
        self._level = prefill_all(model, some, root, size, mixers) if some else None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, prompt: Prompt) -> bool:
        return tuple(prompt.input_ids) in self._places

    def prefix(self, prompts: Sequence[Prompt]) -> Prefix:
        """That of a batch of kept prompts; nothing is copied."""
        assert self._level is not None
        places = torch.tensor([self._places[tuple(p.input_ids)] for p in prompts])
        levels = [] if self._root is None else [self._root.for_prompts(len(prompts))]
        if self._level.width:
            levels.append(self._level.of_pieces(places))
        return made_prefix(self._model, levels, prompts, self._mixers)


def _fitting(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    root: Level | None,
    begin: int,
    budget: int,
    mixers: Mixers | None,
) -> int:
    """How many of the prompts, shortest first, fit into so many bytes, each as wide as the longest of them."""
    widths = [len(p.input_ids) - 1 - begin for p in prompts]
    longest = max(range(len(widths)), key=widths.__getitem__)
    if widths[longest] == 0:
        return len(prompts)
    level = prefill_all(model, [prompts[longest]], root, 1, mixers)
    of_states = level.state_bytes()
    of_token = (level.n_bytes() - of_states) // widths[longest]
    fitting = [n for n, width in enumerate(widths, start=1) if n * (width * of_token + of_states) <= budget]
    return max(fitting, default=0)
