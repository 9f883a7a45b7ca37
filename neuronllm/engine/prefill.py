"""Computes the pieces of the tree of prefixes: one pass each, without a graph."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..model.discovery import decoder_layers
from .answer_trees import AnswerTrees
from .attention import Enough, piece_attention
from .borrowed import input_device
from .tree import WORTH_SHARING, Level, Prefix, common, siblings, tails

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt


def prefill_root(model: PreTrainedModel, ids: Sequence[int]) -> Level:
    """The piece that all prompts of a run start with."""
    root = Level(torch.tensor([0]), torch.tensor([len(ids)]), torch.tensor([0]))
    _compute(model, root, [], [ids])
    return root


def prefill(model: PreTrainedModel, prompts: Sequence[Prompt], root: Level | None = None) -> Prefix:
    """Keys and values of everything before the last tokens; `root` is what all the prompts are known to start with."""
    ends = [len(p.input_ids) - 1 for p in prompts]
    levels, begins = shared_levels(model, prompts, root)
    if any(end > begin for begin, end in zip(begins, ends, strict=True)):
        tail, pieces = tails(prompts, begins, ends)
        _compute(model, tail, levels, pieces)
        levels.append(tail)
    return Prefix(levels, torch.tensor(ends), AnswerTrees(prompts))


def shared_levels(
    model: PreTrainedModel, prompts: Sequence[Prompt], root: Level | None = None
) -> tuple[list[Level], list[int]]:
    """The pieces that prompts have in common, and where each prompt goes on by itself."""
    levels = [] if root is None else [root.for_prompts(len(prompts))]
    start = 0 if root is None else int(root.lengths)
    groups = siblings(prompts, start)
    stems = [_stem(prompts, group, start) for group in groups]
    if sum(length * (len(group) - 1) for length, group in zip(stems, groups, strict=True)) < WORTH_SHARING:
        return levels, [start] * len(prompts)
    # A prompt without siblings puts as much into its stem as the others do, so that tails stay short.
    longest = max(stems)
    firsts = [prompts[group[0]].input_ids for group in groups]
    stems = [length or min(longest, len(ids) - 1 - start) for length, ids in zip(stems, firsts, strict=True)]
    piece = [n for n, group in enumerate(groups) for _ in group]
    stem = Level(torch.full((len(groups),), start), torch.tensor(stems), torch.tensor(piece))
    _compute(model, stem, levels, [ids[start : start + n] for ids, n in zip(firsts, stems, strict=True)])
    return [*levels, stem], [start + stems[n] for n in piece]


def prefill_all(model: PreTrainedModel, prompts: Sequence[Prompt], root: Level | None, size: int) -> Level:
    """Keys and values of what every prompt has between the root and its last token, so many prompts a pass.

    One level with a piece for each, from which passes of some of the prompts are served again and again.
    """
    begin = 0 if root is None else int(root.lengths)
    ends = [len(p.input_ids) - 1 for p in prompts]
    whole, _ = tails(prompts, [begin] * len(prompts), ends)
    for start in range(0, len(prompts), size):
        rows = slice(start, start + size)
        some, last = prompts[rows], ends[rows]
        tail, pieces = tails(some, [begin] * len(some), last)
        _compute(model, tail, [] if root is None else [root.for_prompts(len(some))], pieces)
        for layer, parts in tail.layers.items():
            if layer not in whole.layers:
                shape = (len(prompts), parts[0].shape[1], whole.width)
                whole.layers[layer] = tuple(part.new_zeros(*shape, part.shape[-1]) for part in parts)  # type: ignore[assignment]
            for kept, part in zip(whole.layers[layer], parts, strict=True):
                kept[rows, :, : tail.width] = part
    return whole


def _stem(prompts: Sequence[Prompt], group: list[int], start: int) -> int:
    """How long the stem of siblings is behind the root; 0 for an only child."""
    return common([prompts[n].input_ids for n in group]) - start if len(group) > 1 else 0


@torch.no_grad()
def _compute(model: PreTrainedModel, level: Level, above: list[Level], pieces: Sequence[Sequence[int]]) -> None:
    """Fill in a level's keys and values: one pass of its pieces, which ends as soon as the last layer has them."""
    last = None if _offloaded(model) else len(decoder_layers(model)[1]) - 1
    with piece_attention(model, level, above, last), suppress(Enough):
        model.get_decoder()(**piece_inputs(model, level, pieces))


def piece_inputs(model: PreTrainedModel, level: Level, pieces: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What a model takes to compute the pieces of a level."""
    ids = torch.tensor([[*piece, *[0] * (level.width - len(piece))] for piece in pieces])
    return {
        "input_ids": ids.to(input_device(model)),
        "position_ids": level.positions.to(input_device(model)),
        "past_key_values": passing_cache(int(level.starts.max())),
        "use_cache": True,
    }


def _offloaded(model: PreTrainedModel) -> bool:
    """Whether a hook must bring weights back behind each layer, so that a pass has to run to its end."""
    return any(str(place) in ("cpu", "disk") for place in getattr(model, "hf_device_map", {}).values())


def passing_cache(length: int) -> Any:
    """A cache that says how long the prefix is and hands a layer its own new keys and values back."""
    from transformers import DynamicCache

    class PassingCache(DynamicCache):
        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            return key_states, value_states

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return length

        def get_query_offset(self, *args: Any, **kwargs: Any) -> int:
            return length

        def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
            tokens = query_length if isinstance(query_length, int) else len(query_length)
            return length + tokens, 0

    return PassingCache()
