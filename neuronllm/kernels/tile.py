"""Functions that run inside kernels, on tiles in registers.

Rules that every kernel here keeps, because the compiler and the interpreter each let pass what the other rejects:
- a load is made float32 at once: the interpreter holds bfloat16 as bits and would calculate with those;
- no libdevice, which the interpreter does not have, and so no tanh but the one below;
- `tl.where` where NaN must survive: the hardware's maximum drops it;
- rows are int64 before they meet a stride; no atomics: every output has one writer and one order of additions.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

ACTIVATIONS = {"identity": 0, "silu": 1, "gelu_tanh": 2, "gelu_erf": 3, "relu": 4, "relu2": 5}
NEVER = tl.constexpr(-1.0e30)  # a logit that does not count: with -inf, differences would be NaN


@triton.jit
def activation(g, ACT: tl.constexpr):
    """act(g) and its derivative, float32; ACT is a number of ACTIVATIONS."""
    if ACT == 0:
        a = g
        d = tl.full(g.shape, 1.0, tl.float32)
    elif ACT == 1:
        s = tl.sigmoid(g)
        a = g * s
        d = s * (1.0 + g * (1.0 - s))
    elif ACT == 2:
        # (1 + tanh(y)) / 2 = sigmoid(2y) with 2y = 2 sqrt(2 / pi) (g + 0.044715 g^3)
        s = tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))
        a = g * s
        d = s + g * s * (1.0 - s) * (1.5957691216057308 + 0.2140644488 * g * g)
    elif ACT == 3:
        p = 0.5 * (1.0 + tl.erf(g * 0.7071067811865476))
        a = g * p
        d = p + g * 0.3989422804014327 * tl.exp(-0.5 * g * g)
    elif ACT == 4:
        a = tl.where(g <= 0, 0.0, g)
        d = tl.where(g <= 0, 0.0, 1.0)
    else:
        r = tl.where(g <= 0, 0.0, g)
        a = r * r
        d = 2.0 * r
    return a, d


@triton.jit
def tanh(x):
    """2 sigmoid(2x) - 1; near 0, where that difference has no digits left, the series."""
    square = x * x
    series = x * (1.0 - square * (0.33333333333 - square * (0.13333333333 - square * 0.053968253968)))
    return tl.where(tl.abs(x) < 0.25, series, 2.0 * tl.sigmoid(2.0 * x) - 1.0)


@triton.jit
def backward(above, g, d, ACT: tl.constexpr):
    """The gradient of g: `above` times the derivative d. Where relu is flat it is 0 even of NaN, as in PyTorch."""
    if ACT >= 4:
        return tl.where(g <= 0, 0.0, above * d)
    else:
        return above * d


@triton.jit
def store(pointer, value, mask, INTERPRETED: tl.constexpr):
    """Store float32 as the pointer's type, rounded to nearest even.

    The interpreter cuts bfloat16 off instead; there the bits are rounded by hand, NaN left as it is.
    """
    if INTERPRETED and pointer.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


def interpreted(kernel: object) -> bool:
    """Whether triton was imported with TRITON_INTERPRET=1, so that this kernel runs in Python on the CPU."""
    return not isinstance(kernel, JITFunction)
