"""branch_attention as an operator of PyTorch, `neuronllm::branch_attention`, differentiable by the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuronllm.common.errors import InputError
from neuronllm.kernels.checks import (
    FLOATS,
    WHOLE,
    check_device,
    check_given,
    check_scale,
    check_small,
    check_softcap,
    check_tensors,
    one_line,
)
from neuronllm.kernels.launch import check_backend, on_device, uses_triton

from . import reference

TYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_LEVELS, WIDEST, MOST_HEADS, MOST_NODES = 3, 256, 16, 64  # that the kernel takes; heads of a group, nodes of a tree
FARTHEST = 2**29  # that a position is from 0 where there is a window: what the kernel compares then fits into int32
_ROWS = "Tensor query, Tensor key, Tensor value"
_PREFIX = (
    "Tensor[] keys, Tensor[] values, Tensor[] pieces, Tensor[] lengths, Tensor[] starts, Tensor positions, "
    "float scale, float? softcap, int? window, Tensor? seen"
)


class Pieces(NamedTuple):
    """One level of shared prefixes: every prompt sees the one piece of it that is its own.

    keys and values are (pieces, groups, tokens, width), any strides, padded on the right.
    """

    keys: Tensor
    values: Tensor
    piece: Tensor  # (prompts,) which piece a prompt sees
    lengths: Tensor  # (pieces,) how many of a piece's tokens are real
    starts: Tensor  # (pieces,) the position of a piece's first token


def branch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix: Sequence[Pieces] = (),
    *,
    positions: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
    seen: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of rows that each see their prompt's prefix and themselves, and what is above them in their own tree.

    query is (prompts, heads, rows, width); key and value, the rows' own, are (prompts, groups, rows, width), where a
    group serves heads / groups neighbouring heads. The prefix stands in levels of shared pieces, none of which is
    copied for a prompt or a row. Rows of a prompt stand at its position (default: behind its prefix); with a window
    they see tokens of position > position - window, and positions and starts must be between -2**29 and 2**29. softcap
    bends logits to softcap * tanh(logit / softcap); sinks, (heads,), are logits that take weight and give nothing
    (infinite ones take all). scale defaults to 1 / sqrt(width).

    Without `seen` no row sees another one. seen is a bool (prompts, nodes, nodes): then every `nodes` neighbouring rows
    are a tree, and a row that is node n of its tree also sees the nodes m of it where seen[prompt, n, m]. It stands as
    many tokens behind the prompt's position as it sees other nodes, which are those on the path to it.

    The result, (prompts, heads, rows, width of values), is differentiable by query, key and value; the prefix is
    constant.

    >>> own = torch.zeros(1, 1, 2, 4)
    >>> one = torch.zeros(1, dtype=torch.int64)
    >>> shared = Pieces(torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 3, 4), one, one + 3, one)
    >>> branch_attention(own, own, own, [shared])[0, 0, :, 0]
    tensor([0.7500, 0.7500])
    >>> branch_attention(own, own, own, [shared], seen=torch.ones(1, 2, 2).tril().bool())[0, 0, :, 0]
    tensor([0.7500, 0.6000])
    """
    _check(query, key, value, prefix, positions, sinks, seen)
    if scale is not None:
        check_scale(scale)
    check_softcap(softcap)
    check_backend(backend)
    if window is not None:
        if not isinstance(window, int) or isinstance(window, bool) or not 1 <= window < 2**63:
            raise InputError(
                f"window={one_line(window)}: give a whole number of tokens from 1 to 2**63 - 1, or None for no window"
            )
        window = min(window, 2 * FARTHEST)  # no two tokens are farther apart
    if positions is None:
        positions = torch.zeros(len(query), dtype=torch.int64, device=prefix[0].piece.device if prefix else None)
        for level in prefix:
            there = level.piece.clamp(max=level.lengths.shape[0] - 1)  # what lies beyond, the operator refuses
            positions = positions + level.lengths[there]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    columns = [list(column) for column in zip(*prefix, strict=True)] if prefix else [[]] * 5
    seen = None if seen is None or seen.shape[1] == 1 else seen
    return _op(query, key, value, *columns, positions, scale, softcap, window, seen, sinks, backend)[0]


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix: Sequence[Pieces],
    positions: Tensor | None,
    sinks: Tensor | None,
    seen: Tensor | None,
) -> None:
    check_given(query=query, key=key, value=value)
    check_tensors(positions=positions, sinks=sinks, seen=seen)
    if query.ndim != 4 or key.ndim != 4 or value.ndim != 4:
        raise InputError("query, key, value: give (prompts, heads or groups, rows, width)")
    if query.dtype not in FLOATS:
        raise InputError("query, key, value: give float16, bfloat16, float32 or float64")
    prompts, heads, rows, width = query.shape
    groups = key.shape[1]
    if key.shape != (prompts, groups, rows, width) or value.shape[:3] != key.shape[:3]:
        raise InputError("key, value: give those of the rows themselves, in groups that divide the heads")
    if heads % groups if groups else heads:
        raise InputError("key, value: give those of the rows themselves, in groups that divide the heads")
    if not width:
        raise InputError("query, key: give heads of a width of 1 or more, there are no logits without one")
    if key.dtype != query.dtype or value.dtype != query.dtype:
        raise InputError("query, key, value: give one type")
    check_device("query", query.device, key=key, value=value, sinks=sinks)
    if isinstance(prefix, Pieces) or not isinstance(prefix, (list, tuple)):
        raise InputError("prefix: give a list of Pieces, one a level, also where there is one")
    for n, level in enumerate(prefix):
        _check_level(f"prefix[{n}]", level, query, groups, value.shape[3])
    if positions is not None:
        if positions.shape != (prompts,) or positions.dtype not in WHOLE:
            raise InputError("positions: give one whole number a prompt")
        check_small("positions", positions, "query", query.device)
    if sinks is not None and (sinks.shape != (heads,) or sinks.dtype not in FLOATS or sinks.requires_grad):
        raise InputError("sinks: give one floating-point number a head, detached")
    if seen is not None:
        _check_seen(seen, query)


def _check_seen(seen: Tensor, query: Tensor) -> None:
    prompts, _, rows, _ = query.shape
    if seen.dtype != torch.bool or seen.ndim != 3 or seen.shape[0] != prompts or seen.shape[1] != seen.shape[2]:
        raise InputError(f"seen: give a bool ({prompts} prompts, nodes, nodes), which nodes a node of a tree sees")
    nodes = seen.shape[1]
    if not nodes or rows % nodes:
        raise InputError(f"seen: {rows} rows are no whole trees of {nodes} nodes; give the rows of every node")
    check_small("seen", seen, "query", query.device)


def _check_level(name: str, level: Pieces, query: Tensor, groups: int, width_v: int) -> None:
    if not isinstance(level, Pieces):
        raise InputError(f"{name}: give Pieces, not {type(level).__name__}")
    prompts, width = query.shape[0], query.shape[3]
    keys, values, piece, lengths, starts = level
    for part, x in (("keys", keys), ("values", values), ("piece", piece), ("lengths", lengths), ("starts", starts)):
        if not isinstance(x, Tensor):
            raise InputError(f"{name}.{part}: give a tensor, not {type(x).__name__}")
    if keys.ndim != 4 or keys.shape[1] != groups or keys.shape[3] != width:
        raise InputError(f"{name}.keys: give (pieces, {groups}, tokens, {width})")
    if prompts and not keys.shape[0]:
        raise InputError(f"{name}: it has no pieces, of which every prompt sees one; leave the level out")
    if values.shape != (*keys.shape[:3], width_v):
        raise InputError(f"{name}.values: give {(*keys.shape[:3], width_v)}")
    if keys.dtype != query.dtype or values.dtype != query.dtype:
        raise InputError(f"{name}: give keys and values in the type of query")
    if (piece.shape, lengths.shape, starts.shape) != ((prompts,), keys.shape[:1], keys.shape[:1]):
        raise InputError(f"{name}: give a piece for every prompt, a length and a start for every piece")
    if keys.requires_grad or values.requires_grad:
        raise InputError(f"{name}: a prefix takes no gradient, detach it")
    for part, x in (("keys", keys), ("values", values)):
        if x.device != query.device:
            raise InputError(f"{name}.{part}: they are on {x.device}, query on {query.device}; move them there")
    for part, x in (("piece", piece), ("lengths", lengths), ("starts", starts)):
        if x.dtype not in WHOLE:
            raise InputError(f"{name}.{part}: give whole numbers (int32 or int64), not {x.dtype}")
        check_small(f"{name}.{part}", x, "query", query.device)
        if x.device != piece.device:
            raise InputError(f"{name}: give piece, lengths and starts on one device")


def _check_values(keys: list[Tensor], pieces: list[Tensor], lengths: list[Tensor]) -> None:
    """What can be looked at without waiting for a device: a kernel would read outside the prefix."""
    for n, (k, piece, length) in enumerate(zip(keys, pieces, lengths, strict=True)):
        if _outside(piece, len(k) - 1):
            raise InputError(f"prefix[{n}].piece: give numbers of pieces, from 0 to {len(k) - 1}")
        if _outside(length, k.shape[2]):
            raise InputError(f"prefix[{n}].lengths: give numbers of tokens, from 0 to the {k.shape[2]} that there are")


def _check_positions(positions: Tensor, starts: list[Tensor]) -> None:
    """As above, of the numbers that a window compares."""
    for name, x in (("positions", positions), *((f"prefix[{n}].starts", start) for n, start in enumerate(starts))):
        if _outside(x, FARTHEST - 1, 1 - FARTHEST):
            raise InputError(f"{name}: with a window, give positions between -2**29 and 2**29")


def _outside(x: Tensor, most: int, least: int = 0) -> bool:
    return x.device.type == "cpu" and x.numel() > 0 and (int(x.min()) < least or int(x.max()) > most)


def _refusal(query: Tensor, key: Tensor, value: Tensor, levels: int, seen: Tensor | None) -> str | None:
    if query.dtype not in TYPES:
        return f"the kernel takes float16, bfloat16 and float32, not {query.dtype}"
    if query.dtype == torch.float32 and query.is_cuda:
        return "its float32 products would not use tensor cores"
    if max(query.shape[3], value.shape[3]) > WIDEST:
        return f"the kernel takes heads of at most {WIDEST}"
    if query.shape[1] // max(1, key.shape[1]) > MOST_HEADS:
        return f"the kernel takes at most {MOST_HEADS} heads a group"
    if seen is not None and seen.shape[1] > MOST_NODES:
        return f"the kernel takes trees of at most {MOST_NODES} nodes"
    return f"the kernel takes at most {MOST_LEVELS} levels" if levels > MOST_LEVELS else None


def _uses_triton(backend: str, query: Tensor, key: Tensor, value: Tensor, keys: list[Tensor], *rest: Any) -> bool:
    return uses_triton("branch_attention", backend, query, refusal=_refusal(query, key, value, len(keys), rest[-1]))


@torch.library.custom_op(
    "neuronllm::branch_attention",
    mutates_args=(),
    schema=f"({_ROWS}, {_PREFIX}, Tensor? sinks, str backend) -> (Tensor, Tensor)",
)
def _op(*inputs: Any) -> tuple[Tensor, Tensor]:
    *values, sinks, backend = inputs
    _check_values(values[3], *values[5:7])
    if values[11] is not None:
        _check_positions(values[8], values[7])
    triton = _uses_triton(backend, *values)
    if not values[0].numel():  # also heads: none can be shared out to groups
        return _empty(*values[:3])
    if triton:
        from . import kernel

        with on_device(values[0]):
            return kernel.branch_attention(*values, sinks)
    return reference.branch_attention(*values, sinks=sinks)


@_op.register_fake
def _empty(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    kind = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty((*query.shape[:3], value.shape[3])), query.new_empty(query.shape[:3], dtype=kind)


@torch.library.custom_op(
    "neuronllm::branch_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, Tensor lse, {_ROWS}, {_PREFIX}, str backend) -> (Tensor, Tensor, Tensor)",
)
def _op_backward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *values, backend = inputs
    if not values[3].numel():
        dquery, dkey, dvalue = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in values[3:6])
        return dquery, dkey, dvalue
    if _uses_triton(backend, *values[3:]):
        from . import kernel

        with on_device(values[0]):
            return kernel.backward(*values)
    return reference.backward(*values)


@_op_backward.register_fake
def _fake_backward(grad: Tensor, out: Tensor, lse: Tensor, *rows: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in rows[:3])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, *prefix, positions, ctx.scale, ctx.softcap, ctx.window, seen, _, ctx.backend = inputs
    ctx.levels = len(prefix[0])
    ctx.save_for_backward(*output, query, key, value, positions, seen, *(x for column in prefix for x in column))
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    out, lse, query, key, value, positions, seen, *rest = ctx.saved_tensors
    n = ctx.levels
    prefix = [list(rest[start : start + n]) for start in range(0, 5 * n, n)] if n else [[]] * 5
    options = (positions, ctx.scale, ctx.softcap, ctx.window, seen, ctx.backend)
    found = _op_backward(grads[0], out, lse, query, key, value, *prefix, *options)
    return *found, *([None] * n for _ in range(5)), *[None] * 7


_op.register_autograd(_backward, setup_context=_save)
