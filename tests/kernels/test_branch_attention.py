"""branch_attention: forward and backward against plain softmax attention in float64, pieces shared and ragged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuronllm.ops import Pieces, branch_attention
from tests.kernels.lanes import DEVICE, bits, only_interpreted, poisoned, same_bits, watched, within_budget

# heads, groups, rows, width, width of values, then the prefix: lengths of the pieces of every level
Case = tuple[int, int, int, int, int, list[list[int]]]
CASES: dict[str, Case] = {
    "no prefix": (2, 2, 3, 16, 16, []),
    "one row": (2, 2, 1, 16, 16, [[20]]),
    "no row": (2, 2, 0, 16, 16, [[20]]),
    "shared by all": (4, 2, 5, 16, 16, [[33]]),
    "own tails": (4, 4, 3, 24, 24, [[17], [5, 0, 40]]),
    "three levels": (6, 2, 9, 20, 12, [[35], [7, 18], [1, 4, 2]]),
    "wide values": (2, 1, 17, 16, 40, [[16, 3]]),
}
PROMPTS = 3
# The kernel refuses float32 on a GPU; interpreted, it shows the arithmetic best.
SHARP = torch.float32 if DEVICE == "cpu" else torch.bfloat16
DTYPES = list(dict.fromkeys([SHARP, torch.bfloat16, torch.float16]))


def inputs(name: str, dtype: torch.dtype) -> dict[str, Any]:
    return drawn(CASES[name], dtype)


def drawn(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    heads, groups, rows, width, width_v, levels = case
    draw = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        x = torch.randn(shape[0], shape[2], shape[1], shape[3], generator=draw)
        return x.to(dtype).to(DEVICE).transpose(1, 2)  # the strides that models have

    prefix, begins = [], torch.zeros(PROMPTS, dtype=torch.int64)
    for lengths in levels:
        count = len(lengths)
        piece = torch.arange(PROMPTS) * count // PROMPTS
        starts = torch.zeros(count, dtype=torch.int64)
        starts[piece] = begins
        real = torch.tensor(lengths)
        tokens = max(lengths) + 2
        keys, values = randn(count, groups, tokens, width), randn(count, groups, tokens, width_v)
        prefix.append(Pieces(keys, values, *(x.to(DEVICE) for x in (piece, real, starts))))
        begins = begins + real[piece]
    return {
        "query": randn(PROMPTS, heads, rows, width),
        "key": randn(PROMPTS, groups, rows, width),
        "value": randn(PROMPTS, groups, rows, width_v),
        "prefix": prefix,
    }


def judged(given: dict[str, Any], options: dict[str, Any]) -> list[Tensor]:
    """Row by row in float64, with the attention written out, and gradients by autograd."""
    q, k, v = (given[name].double().detach().requires_grad_() for name in ("query", "key", "value"))
    heads, groups = q.shape[1], k.shape[1]
    scale, cap, window = options.get("scale") or q.shape[3] ** -0.5, options.get("softcap"), options.get("window")
    rows = []
    for b in range(len(q)):
        parts = [(level, int(level.piece[b])) for level in given["prefix"]]
        cut = [(level, p, int(level.lengths[p])) for level, p in parts]
        position = sum(n for *_, n in cut)
        places = torch.cat([int(level.starts[p]) + torch.arange(n) for level, p, n in cut] or [torch.zeros(0)])
        seen = torch.ones(len(places), dtype=torch.bool) if window is None else places > position - window
        for h in range(heads):
            g = h // (heads // groups)
            keys = torch.cat([level.keys[p, g, :n].double() for level, p, n in cut] or [k[b, g, :0]])[seen]
            values = torch.cat([level.values[p, g, :n].double() for level, p, n in cut] or [v[b, g, :0]])[seen]
            logits = torch.cat([q[b, h] @ keys.T, (q[b, h] * k[b, g]).sum(-1, keepdim=True)], -1) * scale
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            if options.get("sinks") is not None:
                logits = torch.cat([logits, options["sinks"][h].double().expand(len(logits), 1)], -1)
            weights = logits.softmax(-1)
            rows.append(weights[:, : len(keys)] @ values + weights[:, len(keys) : len(keys) + 1] * v[b, g])
    out = torch.stack(rows).unflatten(0, (len(q), heads))
    above = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), above)]


def run(given: dict[str, Any], options: dict[str, Any], backend: str) -> list[Tensor]:
    leaves = {name: given[name].detach().requires_grad_() for name in ("query", "key", "value")}
    out = branch_attention(**leaves, prefix=given["prefix"], **options, backend=backend)
    above = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).reshape(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad(out, tuple(leaves.values()), above)]


def check(given: dict[str, Any], **options: Any) -> None:
    right = judged(given, options)
    with poisoned():
        found = run(given, options, "triton")
    plain = run(given, options, "torch")
    for x, y, z in zip(found, plain, right, strict=True):
        # Weights meet the values in the values' type, as in every fused attention: a rounding more than in PyTorch.
        within_budget(x, y, z, more=2.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_prefixes(name: str, dtype: torch.dtype) -> None:
    check(inputs(name, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["own tails", "three levels"])
@pytest.mark.parametrize("what", ["window", "narrow window", "softcap", "sinks", "everything"])
def test_options(what: str, name: str, dtype: torch.dtype) -> None:
    heads = CASES[name][0]
    sinks = torch.linspace(-1, 2, heads).to(dtype).to(DEVICE)
    options: dict[str, dict[str, Any]] = {
        "window": {"window": 20},
        "narrow window": {"window": 1},
        "softcap": {"softcap": 1.5, "scale": 0.7},
        "sinks": {"sinks": sinks},
        "everything": {"window": 9, "softcap": 2.0, "sinks": sinks},
    }
    check(inputs(name, dtype), **options[what])


def test_small_tensors_of_any_stride() -> None:
    given = inputs("shared by all", SHARP)
    heads = CASES["shared by all"][0]
    for sinks in (torch.arange(2.0 * heads, device=DEVICE)[::2], torch.tensor(1.0, device=DEVICE).expand(heads)):
        check(given, sinks=sinks)
    lengths = given["prefix"][0].lengths[given["prefix"][0].piece].int()
    apart = torch.stack([lengths, lengths - 20], 1)[:, 0]
    whole = run(given, {"window": 9, "positions": lengths}, "triton")
    found = run(given, {"window": 9, "positions": apart}, "triton")
    assert all(torch.equal(x, y) for x, y in zip(found, whole, strict=True))


def test_reference_is_exact_in_float64() -> None:
    for name in CASES:
        given = inputs(name, torch.float64)
        sinks = torch.linspace(-1, 2, CASES[name][0], dtype=torch.float64, device=DEVICE)
        for options in ({}, {"window": 9, "softcap": 2.0, "sinks": sinks}):
            for x, y in zip(run(given, options, "torch"), judged(given, options), strict=True):
                torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")], ids=str)
def test_nan_stays_in_its_row(odd: float) -> None:
    given = inputs("own tails", SHARP)
    whole = run(given, {}, "triton")
    given["query"][1, 2, 0, 3] = odd
    found, plain = run(given, {}, "triton"), run(given, {}, "torch")
    assert bool(found[0][1, 2, 0].isnan().all()) and bool(plain[0][1, 2, 0].isnan().all())
    for x, y, of_keys in zip(found, whole, (False, False, True, True), strict=True):
        kept = torch.ones_like(x, dtype=torch.bool)
        kept[1, 2, 0] = False
        assert torch.equal(x[kept], y[kept]), of_keys


def test_shared_pieces_equal_copies_bit_for_bit() -> None:
    given = inputs("three levels", torch.bfloat16)
    copies = []
    for level in given["prefix"]:
        p = level.piece
        numbers = torch.arange(PROMPTS, device=DEVICE)
        copies.append(Pieces(level.keys[p], level.values[p], numbers, level.lengths[p], level.starts[p]))
    shared, copied = (run(given | {"prefix": x}, {"window": 30}, "triton") for x in (given["prefix"], copies))
    assert all(torch.equal(a, b) for a, b in zip(bits(shared), bits(copied), strict=True))


def test_a_row_alone_has_the_bits_it_has_in_a_batch() -> None:
    given = inputs("three levels", torch.bfloat16)
    together = run(given, {}, "triton")[0]
    for row in (0, 4, 8):
        one = {k: given[k][:, :, row : row + 1] for k in ("query", "key", "value")}
        alone = branch_attention(**one, prefix=given["prefix"], backend="triton")
        assert torch.equal(alone, together[:, :, row : row + 1])


def test_order_of_programs_changes_no_bit() -> None:
    given = inputs("own tails", torch.bfloat16)
    same_bits(lambda: run(given, {"window": 30}, "triton"))


@only_interpreted
@pytest.mark.parametrize("name", [name for name in CASES if name != "no row"])
def test_one_writer_and_no_address_outside(name: str) -> None:
    sinks = torch.zeros(CASES[name][0])
    with watched() as launches:
        run(inputs(name, torch.bfloat16), {"window": 30, "softcap": 3.0, "sinks": sinks}, "triton")
    assert len(launches) == 2
