"""value[b] = objective of the scores s[b, k] = logsumexp over option k's tokens v of logit(hidden[b] . weight[v]),

and its gradient with respect to hidden[b], in one launch: one program a question reads the few rows of the head that
belong to its options, once for the logits and once more (from cache) for the gradient. Objectives that are normalised
by the vocabulary have a launch before it, which streams the head and leaves a maximum and a sum of every split of it;
logits of the whole vocabulary are never written.
"""

from __future__ import annotations

from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuronllm.kernels.launch import config, launched_with, rows_together
from neuronllm.kernels.tile import NEVER, interpreted, tanh

from .reference import OBJECTIVES, normaliser_gradient

FOLDER = Path(__file__).parent


@triton.jit
def _bend(z, scale, softcap, SOFTCAP: tl.constexpr):
    """Scaled and capped logits, and their derivative by the raw ones."""
    z = z * scale
    slope = tl.full(z.shape, 1.0, tl.float32) * scale
    if SOFTCAP:
        t = tanh(z / softcap)
        z = softcap * t
        slope = slope * (1.0 - t * t)
    return z, slope


@triton.jit
def _base(top):
    """What to take off before exp. As in torch not infinity, less which infinity would be NaN."""
    return tl.where(tl.abs(top) == float("inf"), 0.0, top)


@triton.jit
def _contrastive_ce_kernel(
    h_ptr,
    w_ptr,
    bias_ptr,
    token_ptr,
    right_ptr,
    peak_ptr,
    mass_ptr,
    value_ptr,
    score_ptr,
    grad_ptr,
    width,
    count,
    forms,
    splits,
    stride_h,
    stride_w,
    scale,
    softcap,
    OBJECTIVE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    OPTIONS: tl.constexpr,
    FORMS: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, OPTIONS * FORMS)
    option = n // FORMS
    form = n % FORMS
    there = (option < count) & (form < forms)
    token = tl.load(token_ptr + (b * count + option) * forms + form, mask=there, other=-1).to(tl.int64)
    real = token >= 0
    row = w_ptr + tl.where(real, token, 0)[:, None] * stride_w

    products = tl.zeros((OPTIONS * FORMS, COLUMNS), tl.float32)
    for first in range(0, width, COLUMNS):
        c = first + tl.arange(0, COLUMNS)
        h = tl.load(h_ptr + b * stride_h + c, mask=c < width, other=0.0).to(tl.float32)
        w = tl.load(row + c[None, :], mask=real[:, None] & (c < width)[None, :], other=0.0).to(tl.float32)
        products += w * h[None, :]
    z = tl.sum(products, 1)
    if HAS_BIAS:
        z += tl.load(bias_ptr + tl.where(real, token, 0), mask=real, other=0.0).to(tl.float32)
    z, slope = _bend(z, scale, softcap, SOFTCAP)

    # Scores of the options: logsumexp over their forms.
    z = tl.reshape(tl.where(real, z, NEVER), (OPTIONS, FORMS))
    known = tl.reshape(real.to(tl.int32), (OPTIONS, FORMS))
    top = _base(tl.max(z, 1))
    share = tl.where(known > 0, tl.exp(z - top[:, None]), 0.0)
    total = tl.sum(share, 1)
    has = tl.max(known, 1) > 0
    score = tl.where(has, top + tl.log(tl.where(has, total, 1.0)), NEVER)
    share = share / tl.where(has, total, 1.0)[:, None]
    k = tl.arange(0, OPTIONS)
    tl.store(score_ptr + b * count + k, score, mask=k < count)

    # The objective and its derivative by the scores.
    mine = k == tl.load(right_ptr + b).to(tl.int32)
    at = tl.where(mine, 1.0, 0.0)
    right = tl.sum(tl.where(mine, score, 0.0), 0)
    if OBJECTIVE >= 3:
        s = tl.arange(0, SPLITS)
        peak = tl.load(peak_ptr + b * splits + s, mask=s < splits, other=NEVER)
        mass = tl.load(mass_ptr + b * splits + s, mask=s < splits, other=0.0)
        highest = _base(tl.max(peak, 0))
        value = right - highest - tl.log(tl.sum(mass * tl.exp(peak - highest), 0))
        above = at
        if OBJECTIVE == 4:
            value = tl.exp(value)
            above = at * value
    else:
        rivals = has
        if OBJECTIVE == 2:
            rivals = has & (k != tl.load(right_ptr + b).to(tl.int32))
        counted = tl.where(rivals, score, NEVER)
        highest = _base(tl.max(counted, 0))
        e = tl.where(rivals, tl.exp(counted - highest), 0.0)
        mass = tl.sum(e, 0)
        some = tl.max(rivals.to(tl.int32), 0) > 0  # a question of one option has nothing to lose to
        p = e / tl.where(some, mass, 1.0)
        value = right - tl.where(some, highest + tl.log(tl.where(some, mass, 1.0)), NEVER)
        above = at - p
        if OBJECTIVE == 1:
            value = tl.sum(p * at, 0)
            above = value * above
    tl.store(value_ptr + b, value)

    each = tl.reshape(above[:, None] * share, (OPTIONS * FORMS,)) * slope
    for first in range(0, width, COLUMNS):
        c = first + tl.arange(0, COLUMNS)
        w = tl.load(row + c[None, :], mask=real[:, None] & (c < width)[None, :], other=0.0).to(tl.float32)
        tl.store(grad_ptr + b * width + c, tl.sum(w * each[:, None], 0), mask=c < width)


@triton.jit
def _normaliser_kernel(
    h_ptr,
    w_ptr,
    bias_ptr,
    peak_ptr,
    mass_ptr,
    rows,
    vocabulary,
    width,
    split,
    splits,
    stride_h,
    stride_w,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The maximum, and the sum of exp(logit - maximum), over one split of the vocabulary."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    r64 = r.to(tl.int64)
    part = tl.program_id(1)
    begin = part * split
    end = tl.minimum(begin + split, vocabulary)
    peak = tl.full((ROWS,), NEVER, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    for at in range(begin, end, TOKENS):
        v = at + tl.arange(0, TOKENS)
        inside = v < end
        v64 = v.to(tl.int64)
        z = tl.zeros((ROWS, TOKENS), tl.float32)
        for first in range(0, width, COLUMNS):
            c = first + tl.arange(0, COLUMNS)
            near = c < width
            h = tl.load(
                h_ptr + r64[:, None] * stride_h + c[None, :], mask=(r < rows)[:, None] & near[None, :], other=0.0
            )
            w = tl.load(w_ptr + v64[None, :] * stride_w + c[:, None], mask=inside[None, :] & near[:, None], other=0.0)
            if INTERPRETED:
                h = h.to(tl.float32)
                w = w.to(tl.float32)
            z = tl.dot(h, w, z, input_precision="ieee")
        if HAS_BIAS:
            z += tl.load(bias_ptr + v, mask=inside, other=0.0).to(tl.float32)[None, :]
        z, _ = _bend(z, scale, softcap, SOFTCAP)
        z = tl.where(inside[None, :], z, NEVER)
        higher = _base(tl.maximum(peak, tl.max(z, 1)))
        now = tl.where(inside[None, :], tl.exp(z - higher[:, None]), 0.0)
        mass = mass * tl.exp(peak - higher) + tl.sum(now, 1)
        peak = higher
    tl.store(peak_ptr + r64 * splits + part, peak, mask=r < rows)
    tl.store(mass_ptr + r64 * splits + part, mass, mask=r < rows)


def contrastive_ce(
    hidden: Tensor,
    weight: Tensor,
    options: Tensor,
    right: Tensor,
    bias: Tensor | None,
    objective: str,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch. The objective (rows,), the options' scores (rows, options) and the gradient of hidden, float32."""
    rows, width = hidden.shape
    _, count, forms = options.shape
    hidden, weight, options = rows_together(hidden), rows_together(weight), options.contiguous()
    bias = None if bias is None else bias.contiguous()
    value, scores, grad = (
        hidden.new_empty(shape, dtype=torch.float32) for shape in (rows, (rows, count), (rows, width))
    )
    if not rows:
        return value, scores, grad
    if "vocab" in objective:
        peak, mass = _normaliser(hidden, weight, bias, scale, softcap)
    else:
        peak = mass = value[:, None]  # not read
    sizes = config(FOLDER, "options", hidden.device)
    tokens = triton.next_power_of_2(count), triton.next_power_of_2(forms)
    _contrastive_ce_kernel[(rows,)](
        hidden,
        weight,
        weight if bias is None else bias,
        options,
        right.contiguous(),
        peak,
        mass,
        value,
        scores,
        grad,
        width,
        count,
        forms,
        peak.shape[1],
        hidden.stride(0),
        weight.stride(0),
        scale,
        softcap or 1.0,
        OBJECTIVE=OBJECTIVES.index(objective),
        HAS_BIAS=bias is not None,
        SOFTCAP=softcap is not None,
        OPTIONS=tokens[0],
        FORMS=tokens[1],
        SPLITS=triton.next_power_of_2(peak.shape[1]),
        COLUMNS=max(32, sizes["elements"] // (tokens[0] * tokens[1])),
        **launched_with(sizes),
    )
    if "vocab" in objective:
        log_z = peak.amax(1) + (mass * (peak - peak.amax(1, keepdim=True)).exp()).sum(1).log()
        much = torch.ones_like(value) if objective == "logp_vocab" else value
        grad -= much[:, None] * normaliser_gradient(hidden, weight, bias, scale, softcap, log_z)
    return value, scores, grad


def _normaliser(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Maxima and sums of the vocabulary's splits, (rows, splits). A split's size does not depend on the batch."""
    (rows, width), vocabulary = hidden.shape, len(weight)
    sizes = config(FOLDER, str(hidden.dtype).removeprefix("torch."), hidden.device)
    splits = triton.cdiv(vocabulary, sizes["split"])
    peak, mass = (hidden.new_empty((rows, splits), dtype=torch.float32) for _ in range(2))
    _normaliser_kernel[(triton.cdiv(rows, sizes["rows"]), splits)](
        hidden,
        weight,
        weight if bias is None else bias,
        peak,
        mass,
        rows,
        vocabulary,
        width,
        sizes["split"],
        splits,
        hidden.stride(0),
        weight.stride(0),
        scale,
        softcap or 1.0,
        HAS_BIAS=bias is not None,
        SOFTCAP=softcap is not None,
        ROWS=sizes["rows"],
        TOKENS=sizes["tokens"],
        COLUMNS=sizes["columns"],
        INTERPRETED=interpreted(_normaliser_kernel),
        **launched_with(sizes),
    )
    return peak, mass
