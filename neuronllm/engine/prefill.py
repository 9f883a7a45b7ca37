"""Computes the pieces of the tree of prefixes: one pass each, without a graph.

A mixer that carries a state would take padding into it, so in a model that has any, pieces of one length are a pass,
and the model's own cache keeps what its mixers know at their ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..model.discovery import decoder_layers, decoder_of
from .answer_trees import AnswerTrees
from .attention import Enough, piece_attention
from .borrowed import input_device
from .caches import passing_cache, rows_of, states_in_modules
from .handed import prepare
from .mixers import Ended, Mixers
from .tree import WORTH_SHARING, Level, Prefix, common, siblings, tails

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt


def prefill_root(model: PreTrainedModel, ids: Sequence[int], mixers: Mixers | None = None) -> Level:
    """The piece that all prompts of a run start with."""
    root = Level(torch.tensor([0]), torch.tensor([len(ids)]), torch.tensor([0]))
    _compute(model, root, [], [ids], mixers)
    return root


def prefill(
    model: PreTrainedModel, prompts: Sequence[Prompt], root: Level | None = None, mixers: Mixers | None = None
) -> Prefix:
    """Keys and values of everything before the last tokens; `root` is what all the prompts are known to start with."""
    ends = [len(p.input_ids) - 1 for p in prompts]
    levels, begins = shared_levels(model, prompts, root, mixers)
    if any(end > begin for begin, end in zip(begins, ends, strict=True)):
        tail, pieces = tails(prompts, begins, ends)
        _compute(model, tail, levels, pieces, mixers)
        levels.append(tail)
    return made_prefix(model, levels, prompts, mixers)


def made_prefix(
    model: PreTrainedModel, levels: list[Level], prompts: Sequence[Prompt], mixers: Mixers | None
) -> Prefix:
    """The prefix of prompts whose levels are there."""
    lengths = torch.tensor([len(p.input_ids) - 1 for p in prompts])
    prefix = Prefix(levels, lengths, AnswerTrees(prompts), mixers)
    if mixers is not None:
        for end in prefix.ends:
            prepare(model, mixers, end.ended, int(prefix.trees.depth.max()) + 1)
    return prefix


def shared_levels(
    model: PreTrainedModel, prompts: Sequence[Prompt], root: Level | None = None, mixers: Mixers | None = None
) -> tuple[list[Level], list[int]]:
    """The pieces that prompts have in common, and where each prompt goes on by itself."""
    levels = [] if root is None else [root.for_prompts(len(prompts))]
    start = 0 if root is None else int(root.lengths)
    if mixers is not None and not mixers.shares:
        return levels, [start] * len(prompts)
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
    _compute(model, stem, levels, [ids[start : start + n] for ids, n in zip(firsts, stems, strict=True)], mixers)
    return [*levels, stem], [start + stems[n] for n in piece]


def prefill_all(
    model: PreTrainedModel, prompts: Sequence[Prompt], root: Level | None, size: int, mixers: Mixers | None = None
) -> Level:
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
        _compute(model, tail, [] if root is None else [root.for_prompts(len(some))], pieces, mixers)
        _put(whole, torch.arange(len(prompts))[rows], tail)
        whole.ended += [replace(ended, pieces=ended.pieces + start) for ended in tail.ended]
    return whole


def _put(whole: Level, pieces: Tensor, part: Level) -> None:
    """Keys and values of some pieces into a level of more and longer ones."""
    for layer, pair in part.layers.items():
        if layer not in whole.layers:
            shape = (len(whole.lengths), pair[0].shape[1], whole.width)
            whole.layers[layer] = tuple(new.new_zeros(*shape, new.shape[-1]) for new in pair)  # type: ignore[assignment]
        for kept, new in zip(whole.layers[layer], pair, strict=True):
            kept[pieces.to(new.device), :, : part.width] = new


def _stem(prompts: Sequence[Prompt], group: list[int], start: int) -> int:
    """How long the stem of siblings is behind the root; 0 for an only child."""
    return common([prompts[n].input_ids for n in group]) - start if len(group) > 1 else 0


@torch.no_grad()
def _compute(
    model: PreTrainedModel, level: Level, above: list[Level], pieces: Sequence[Sequence[int]], mixers: Mixers | None
) -> None:
    """Fill in a level's keys and values: one pass of its pieces, which ends as soon as the last layer has them."""
    if mixers is not None:
        _compute_alike(model, level, above, pieces, mixers)
        return
    if not level.width:  # prompts that differ in their last token alone
        return
    last = None if _offloaded(model) else len(decoder_layers(model)[1]) - 1
    with piece_attention(model, level, above, last), suppress(Enough):
        decoder_of(model)(**piece_inputs(model, level, pieces))


def _compute_alike(
    model: PreTrainedModel, level: Level, above: list[Level], pieces: Sequence[Sequence[int]], mixers: Mixers
) -> None:
    """The same of a model with mixers: a pass of all pieces that begin and end together."""
    for places, cache in _alike(model, level, above, mixers):
        first = int(places[0])
        start, length = int(level.starts[first]), int(level.lengths[first])
        if length:
            part = Level(level.starts[places], level.lengths[places], torch.arange(len(places)))
            uppers = [upper.of_pieces(upper.piece[level.firsts[places]]) for upper in above]
            attention = nullcontext() if mixers.own else piece_attention(model, part, uppers, None)
            with attention, states_in_modules(model, cache):
                inputs = piece_inputs(model, part, [pieces[n] for n in places.tolist()])
                decoder_of(model)(**inputs | {"past_key_values": cache})
            cache.length = start + length
            _put(level, places, part)
        level.ended.append(Ended(places, cache, start + length))


def _alike(model: PreTrainedModel, level: Level, above: list[Level], mixers: Mixers) -> Iterator[tuple[Tensor, Any]]:
    """The pieces of one length behind pieces that ended together, and the cache that they go on from."""
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}  # of pieces, and of rows in the cache above
    for piece, (first, length) in enumerate(zip(level.firsts.tolist(), level.lengths.tolist(), strict=True)):
        number, row = above[-1].end_of(int(above[-1].piece[first])) if above else (-1, 0)
        groups.setdefault((number, length), []).append((piece, row))
    for (number, _), pairs in groups.items():
        places, rows = torch.tensor(pairs).T
        yield places, mixers.empty(model) if number < 0 else rows_of(above[-1].ended[number].cache, rows)


def piece_inputs(model: PreTrainedModel, level: Level, pieces: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What a model takes to compute the pieces of a level."""
    ids = torch.tensor([[*piece, *[0] * (level.width - len(piece))] for piece in pieces])
    positions = level.positions.masked_fill(~level.real, 0)  # padding may reach beyond the last one there is
    return {
        "input_ids": ids.to(input_device(model)),
        "position_ids": positions.to(input_device(model)),
        "past_key_values": passing_cache(int(level.starts.max())),
        "use_cache": True,
    }


def _offloaded(model: PreTrainedModel) -> bool:
    """Whether a hook must bring weights back behind each layer, so that a pass has to run to its end."""
    return any(str(place) in ("cpu", "disk") for place in getattr(model, "hf_device_map", {}).values())
