"""The prefix of a prompt: every token before the answer position, whose keys and values no edit there can change.

Prompts share prefixes: instructions and demonstration are common to all, the stem to a question's variants. So the
prefixes of a batch form a tree of three levels (root, stems, tails) and every piece is computed once, without a graph.
A piece attends to the pieces above it and to itself. Pieces are padded on the right; what is padding, and where a
token stands, is known from lengths and starts, never guessed from token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..model.discovery import decoder_layers
from .borrowed import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt

WORTH_SHARING = 32  # tokens saved, below which another pass costs more


@dataclass
class Level:
    """Pieces of one depth of the tree, with the keys and values of every layer: (pieces, groups, tokens, d)."""

    starts: Tensor  # (pieces,) position of the first token
    lengths: Tensor  # (pieces,) real tokens
    piece: Tensor  # (prompts,) which piece is a prompt's
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _placed: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    def piece_on(self, device: torch.device) -> Tensor:
        """`piece` on a device, brought there once: a copy to a GPU makes the host wait."""
        if device not in self._placed:
            self._placed[device] = self.piece.to(device)
        return self._placed[device]

    @property
    def width(self) -> int:
        return int(self.lengths.max())

    @property
    def positions(self) -> Tensor:
        """(pieces, width) where each token stands in its prompt."""
        return self.starts[:, None] + torch.arange(self.width)

    @property
    def real(self) -> Tensor:
        """(pieces, width) which tokens are no padding."""
        return torch.arange(self.width) < self.lengths[:, None]

    def for_prompts(self, count: int) -> Level:
        """The same single piece, shared by so many prompts."""
        return Level(self.starts, self.lengths, torch.zeros(count, dtype=torch.int64), self.layers)


class Prefix:
    """The levels above the answer tokens of a batch, and how many tokens each prompt has there."""

    def __init__(self, levels: list[Level], lengths: Tensor) -> None:
        self.levels, self.lengths = levels, lengths
        self._visible: dict[tuple[int | None, torch.device], Tensor | None] = {}

    def n_bytes(self) -> int:
        """What the keys and values take."""
        pairs = [pair for level in self.levels for pair in level.layers.values()]
        return sum(part.numel() * part.element_size() for pair in pairs for part in pair)

    def visible(self, window: int | None, device: torch.device) -> Tensor | None:
        """(prompts, tokens + 1): what an answer token sees within a sliding window; last, itself. None: everything."""
        if (window, device) not in self._visible:
            parts = []
            for level in self.levels:
                seen = level.real[level.piece]
                if window is not None:
                    seen = seen & (level.positions[level.piece] > self.lengths[:, None] - window)
                parts.append(seen)
            seen = torch.nn.functional.pad(torch.cat(parts, 1), (0, 1), value=True)
            self._visible[window, device] = None if bool(seen.all()) else seen.to(device)
        return self._visible[window, device]


def common(sequences: Sequence[list[int]]) -> int:
    """How many tokens all sequences start with, always leaving each its last one."""
    first, last = min(sequences), max(sequences)  # what these two share, all share
    longest = min(len(s) for s in sequences) - 1
    return next((n for n in range(longest) if first[n] != last[n]), longest)


def root_length(prompts: Sequence[Prompt]) -> int:
    """How many tokens of all prompts are worth computing once for all."""
    shared = common([p.input_ids for p in prompts])
    return shared if shared * (len(prompts) - 1) >= WORTH_SHARING else 0


def siblings(prompts: Sequence[Prompt], root: int) -> list[list[int]]:
    """Places of neighbours that share a stem, such as the variants of a question."""
    groups: list[list[int]] = []
    for n, prompt in enumerate(prompts):
        before = prompts[groups[-1][0]] if groups else None
        if before is not None and common([before.input_ids, prompt.input_ids]) - root >= WORTH_SHARING // 4:
            groups[-1].append(n)
        else:
            groups.append([n])
    return groups


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
    return Prefix(levels, torch.tensor(ends))


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


def tails(prompts: Sequence[Prompt], begins: list[int], ends: list[int]) -> tuple[Level, list[list[int]]]:
    """What each prompt has for itself, from `begins` to `ends`: a level to be computed, and its tokens."""
    lengths = torch.tensor([end - begin for begin, end in zip(begins, ends, strict=True)])
    level = Level(torch.tensor(begins), lengths, torch.arange(len(prompts)))
    return level, [list(p.input_ids[b:e]) for p, b, e in zip(prompts, begins, ends, strict=True)]


def _stem(prompts: Sequence[Prompt], group: list[int], start: int) -> int:
    """How long the stem of siblings is behind the root; 0 for an only child."""
    return common([prompts[n].input_ids for n in group]) - start if len(group) > 1 else 0


@torch.no_grad()
def _compute(model: PreTrainedModel, level: Level, above: list[Level], pieces: Sequence[Sequence[int]]) -> None:
    """Fill in a level's keys and values: one pass of its pieces, which ends as soon as the last layer has them."""
    from .attention import Enough, piece_attention

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
            rows = query_length if isinstance(query_length, int) else len(query_length)
            return length + rows, 0

    return PassingCache()
