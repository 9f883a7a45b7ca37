"""Attention over a prefix that stands in a tree: of its own pieces, and of answer tokens.

Registered with transformers under the name TREE, so that a model's own layers call it. What the layers hand over as
keyword arguments (scaling, soft cap, sliding window, sinks) is honoured here; windows count true positions. A piece of
the prefix attends to the pieces above it and causally to itself; an answer token attends to its prompt's prefix and to
itself, never to another one. Keys and values of shared pieces are shared: no token and no prompt has a copy of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .fused import branch_attention_wanted, by_kernel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .tree import Level, Prefix

TREE = "neuronllm_tree"


class Enough(Exception):
    """The pass has computed all that was wanted of it."""


class AttentionConfig(NamedTuple):
    """How a layer wants its attention."""

    scale: float
    softcap: float | None
    window: int | None
    sinks: Tensor | None


class Pass(Protocol):
    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, config: AttentionConfig) -> Tensor:
        """(batch, heads, queries, d) of the pass under way."""


_passes: list[Pass] = []


@contextmanager
def piece_attention(
    model: PreTrainedModel, level: Level, above: list[Level], last: int | None, *, constant_patterns: bool = False
) -> Iterator[None]:
    """Let the model's layers compute a level of the tree; the pass ends with `Enough` at layer `last`.

    A level that ends with answers has nothing below it, so nobody needs its keys and values.
    """
    with _attending(model, _Pieces(level, above, last, constant_patterns)):
        yield


@contextmanager
def branch_attention(model: PreTrainedModel, prefix: Prefix, *, constant_patterns: bool = False) -> Iterator[None]:
    """Let answer tokens attend to `prefix`."""
    own = prefix.mixers is not None and prefix.mixers.own
    with nullcontext() if own else _attending(model, _AnswerTokens(prefix, constant_patterns)):
        yield


@contextmanager
def unread_attention(model: PreTrainedModel, *, masked: bool = False) -> Iterator[list[int]]:
    """Let layers attend to nothing, for passes whose numbers nobody reads; yields the layers that did.

    They are given masks only if they are to be `masked`.
    """
    seen = _Unread()
    with _attending(model, seen, masked=masked):
        yield seen.layers


@contextmanager
def _attending(model: PreTrainedModel, how: Pass, *, masked: bool = False) -> Iterator[None]:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(TREE, _attend)
    AttentionMaskInterface.register(TREE, sdpa_mask if masked else lambda *args, **kwargs: None)
    own = model.config._attn_implementation
    _passes.append(how)
    try:
        if own != TREE:
            model.set_attn_implementation(TREE)
        yield
    finally:
        _passes.pop()
        if own != TREE:
            model.set_attn_implementation(own)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if position_bias is not None:
        raise NotImplementedError("attention with a learned position bias")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    config = AttentionConfig(scale, softcap, sliding_window, s_aux)
    mixed = _passes[-1](int(module.layer_idx), query, key, value, config)  # type: ignore[arg-type]
    return mixed.transpose(1, 2).contiguous(), None


class _Unread:
    """Notes the layers that attend."""

    def __init__(self) -> None:
        self.layers: list[int] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, config: AttentionConfig) -> Tensor:
        self.layers.append(layer)
        return value.new_zeros(*query.shape[:-1], value.shape[-1])


class _Pieces:
    """Pieces of one level, causal in themselves, below the pieces above them."""

    def __init__(self, level: Level, above: list[Level], last: int | None, constant_patterns: bool) -> None:
        self.level, self.last, self.constant_patterns = level, last, constant_patterns
        self.above = [upper.of_pieces(upper.piece[level.firsts]) for upper in above]
        self._masks: dict[tuple[int | None, torch.device], Tensor | None] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, config: AttentionConfig) -> Tensor:
        if self.level.trees is None:
            self.level.layers[layer] = (key, value)
        if layer == self.last:
            raise Enough
        key, value = (_of_branches(x, len(query), 0) for x in (key, value))
        if self.constant_patterns:
            query, key = query.detach(), key.detach()
        mask = self._mask(config.window, query.device)
        if self.above:
            uppers = [_of_pieces(upper, layer) for upper in self.above]
            key = torch.cat([upper[0] for upper in uppers] + [key], 2)
            value = torch.cat([upper[1] for upper in uppers] + [value], 2)
        if config.softcap is None and config.sinks is None:
            return nn.functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None,
                scale=config.scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        if mask is None:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
        grouped = query.unflatten(1, (key.shape[1], -1))
        scores = torch.einsum("bkgnd,bktd->bkgnt", grouped, key)
        weights = _softmax(scores, mask[:, :, None], config).to(value.dtype)
        return torch.einsum("bkgnt,bktd->bkgnd", weights, value).flatten(1, 2)

    def _mask(self, window: int | None, device: torch.device) -> Tensor | None:
        """(pieces, 1, tokens, tokens above and here), None where plain causal attention says the same."""
        if (window, device) not in self._masks:
            here = self.level.positions
            seen = [upper.real[upper.piece][:, None].expand(-1, self.level.width, -1) for upper in self.above]
            places = [upper.positions[upper.piece] for upper in self.above]
            mask = torch.cat([*seen, self.level.seen], 2)
            plain = not self.above and self.level.trees is None
            if window is not None:
                near = torch.cat([*places, here], 1)[:, None] > here[:, :, None] - window
                plain = plain and bool(near[mask].all())
                mask = mask & near
            self._masks[window, device] = None if plain else mask[:, None].to(device)
        return self._masks[window, device]


class _AnswerTokens:
    """Answer trees, any number a prompt: a node sees its prompt's prefix, the nodes above it and itself."""

    def __init__(self, prefix: Prefix, constant_patterns: bool) -> None:
        self.prefix, self.constant_patterns = prefix, constant_patterns

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, config: AttentionConfig) -> Tensor:
        self.prefix.attended.add(layer)
        key, value = (_of_branches(x, query.shape[2], 2) for x in (key, value))
        if self.constant_patterns:
            query, key = query.detach(), key.detach()
        width = self.prefix.trees.width
        if width > 1:
            query, key, value = (_nodes_together(x, width) for x in (query, key, value))
        if branch_attention_wanted(query, self.prefix, layer):
            mixed = by_kernel(query, key, value, self.prefix, layer, **config._asdict())
            return mixed if width == 1 else _nodes_apart(mixed, width)
        prompts, heads, queries, _ = query.shape
        grouped = query.unflatten(1, (key.shape[1], -1))  # (prompts, groups, heads a group, queries, d)
        pieces = [(level, *level.layers[layer]) for level in self.prefix.levels]
        scores = [_to_pieces(grouped, keys, level) for level, keys, _ in pieces]
        visible = self.prefix.visible(config.window, query.device)
        if visible is not None and width > 1:
            visible = visible.repeat(1, queries // width, 1)
        mask = None if visible is None else visible[:, None, None]
        weights = _softmax(torch.cat([*scores, _to_nodes(grouped, key, width)], -1), mask, config)
        weights = weights.to(torch.promote_types(query.dtype, value.dtype))
        mixed = _from_nodes(weights[..., -width:], value, width)
        start = 0
        for level, _, values in pieces:
            part = weights[..., start : start + level.width]
            mixed = mixed + _from_pieces(part, values, level)
            start += level.width
        mixed = mixed.reshape(prompts, heads, queries, -1)
        return mixed if width == 1 else _nodes_apart(mixed, width)


def _of_branches(x: Tensor, branches: int, axis: int) -> Tensor:
    """Keys or values of so many branches: those that joined since an earlier layer made them have the clean ones."""
    if x.shape[axis] == branches:
        return x
    clean = x.narrow(axis, 0, 1).repeat_interleave(max(0, branches - x.shape[axis]), axis)
    return torch.cat([x.narrow(axis, 0, min(branches, x.shape[axis])), clean], axis)


def _softmax(scores: Tensor, mask: Tensor | None, config: AttentionConfig) -> Tensor:
    """Attention weights (batch, groups, heads a group, queries, keys) of raw products, without those of the sinks."""
    scores = scores * config.scale
    if config.softcap is not None:
        scores = torch.tanh(scores / config.softcap) * config.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    keys = scores.shape[-1]
    if config.sinks is not None:
        batch, groups, _, queries, _ = scores.shape
        sinks = config.sinks.reshape(1, groups, -1, 1, 1).expand(batch, -1, -1, queries, 1)
        scores = torch.cat([scores, sinks.to(scores)], -1)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))[..., :keys]


def _nodes_together(x: Tensor, width: int) -> Tensor:
    """(prompts x nodes, heads, branches, d) -> (prompts, heads, branches x nodes, d)."""
    return x.unflatten(0, (-1, width)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _nodes_apart(x: Tensor, width: int) -> Tensor:
    """The inverse."""
    return x.unflatten(2, (-1, width)).permute(0, 3, 1, 2, 4).flatten(0, 1)


def _to_nodes(query: Tensor, key: Tensor, width: int) -> Tensor:
    """Products of every query (prompts, groups, heads a group, queries, d) with the keys of its own tree's nodes."""
    if width == 1:
        return (query * key[:, :, None]).sum(-1, keepdim=True)
    trees, keys = query.unflatten(3, (-1, width)), key.unflatten(2, (-1, width))[:, :, None]
    return (trees @ keys.mT).flatten(3, 4)


def _from_nodes(weights: Tensor, value: Tensor, width: int) -> Tensor:
    """The values of its own tree's nodes, mixed by every query's weights."""
    if width == 1:
        return weights * value[:, :, None]
    trees, values = weights.unflatten(3, (-1, width)), value.unflatten(2, (-1, width))[:, :, None]
    return (trees @ values).flatten(3, 4)


def _of_pieces(level: Level, layer: int) -> tuple[Tensor, Tensor]:
    """The keys and values that each prompt of a batch has in its piece."""
    keys, values = level.layers[layer]
    if len(keys) == 1:
        return keys.expand(len(level.piece), -1, -1, -1), values.expand(len(level.piece), -1, -1, -1)
    index = level.piece_on(keys.device)
    return keys[index], values[index]


def _to_pieces(query: Tensor, keys: Tensor, level: Level) -> Tensor:
    """Products of every query (prompts, groups, heads a group, queries, d) with the keys of its prompt's piece."""
    dtype = torch.promote_types(query.dtype, keys.dtype)
    shared, unshared = _by_piece(query.to(dtype), keys.to(dtype), level)
    return _by_prompt(shared @ unshared.mT, query)


def _from_pieces(weights: Tensor, values: Tensor, level: Level) -> Tensor:
    """The values of its prompt's piece, mixed by every query's weights."""
    dtype = torch.promote_types(weights.dtype, values.dtype)
    shared, unshared = _by_piece(weights.to(dtype), values.to(dtype), level)
    return _by_prompt(shared @ unshared, weights)


def _by_piece(queries: Tensor, pieces: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Queries (pieces, groups, those of all that share the piece, x) beside pieces (pieces, groups, tokens, d).

    Where pieces have different numbers of prompts they are copied for each.
    """
    prompts, groups = queries.shape[:2]
    count = prompts // len(pieces)
    if count * len(pieces) != prompts or not torch.equal(level.piece, torch.arange(prompts) // count):
        pieces, count = pieces[level.piece_on(pieces.device)], 1
    if count == 1:
        return queries.flatten(2, 3), pieces
    together = queries.unflatten(0, (-1, count)).transpose(1, 2)  # (pieces, groups, prompts, heads a group, queries, x)
    return together.reshape(len(pieces), groups, -1, queries.shape[-1]), pieces


def _by_prompt(queries: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_by_piece`'s order."""
    prompts, groups, heads, count, _ = like.shape
    together = queries.reshape(len(queries), groups, prompts // len(queries), heads, count, queries.shape[-1])
    return together.transpose(1, 2).reshape(prompts, groups, heads, count, queries.shape[-1])
