"""glu_score: the kernel against float64, bit for bit independent of batch and order, and inside its memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from neuronllm.kernels.glu_score import reference
from neuronllm.kernels.launch import forced
from neuronllm.kernels.questions import cut
from neuronllm.ops import GluScore, glu_score
from tests.kernels.lanes import DEVICE, DTYPES, bits, only_interpreted, poisoned, same_bits, watched, within_budget

# rows of each question, number of neurons
SHAPES = {
    "one row": ([1], 40),
    "no row": ([0], 40),
    "no question": ([], 40),
    "one neuron": ([5, 2], 1),
    "ragged": ([3, 0, 37, 16, 1, 17], 200),
    "several chunks": ([70, 0, 129, 64], 130),
    "block of neurons": ([15, 16, 17], 128),
    "many questions": ([1] * 9, 30),
}
LAYOUTS = ("separate", "fused", "no gate", "strided", "padded")


def inputs(lengths: list[int], width: int, dtype: torch.dtype, layout: str, seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    count = torch.tensor(lengths, dtype=torch.int64)
    rows = sum(lengths) + (3 * len(lengths) if layout == "padded" else 0)

    def randn(columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=draw).to(dtype).to(DEVICE)

    found: dict[str, Any] = {"lengths": count, "grad": randn(width), "up": None}
    if layout == "padded":
        found["starts"] = (count + 3).cumsum(0) - count
    if layout == "fused":
        return found | {"gate": randn(2 * width)}
    if layout == "no gate":
        return found | {"gate": randn(width)}
    if layout == "strided":
        return found | {"gate": randn(2 * width)[:, ::2], "up": randn(width + 8)[:, 5 : 5 + width]}
    return found | {"gate": randn(width), "up": randn(width)}


def wide(given: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.items()}


def check(given: dict[str, Any], **options: Any) -> GluScore:
    with poisoned():
        found = glu_score(**given, **options, backend="triton")
    plain, right = (glu_score(**x, **options, backend="torch") for x in (given, wide(given)))
    for x, y, z in zip(found, plain, right, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            within_budget(x, y, z)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_layouts_and_shapes(shape: tuple[list[int], int], layout: str, dtype: torch.dtype) -> None:
    found = check(inputs(*shape, dtype, layout))
    assert found.scores.shape == (len(shape[0]), shape[1]) and found.scores.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", reference.ACTIVATIONS)
def test_activations(act: str, dtype: torch.dtype) -> None:
    given = inputs([20, 70], 140, dtype, "separate")
    check(given, act=act)
    check(inputs([20, 7], 140, dtype, "no gate"), act=act)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("weights", ["none", "questions", "neurons"])
def test_parts_and_weights(weights: str, split: bool) -> None:
    lengths, width = [30, 0, 70, 5], 90
    draw = torch.Generator().manual_seed(1)
    given = inputs(lengths, width, torch.bfloat16, "separate")
    shape = {"questions": (4,), "neurons": (4, width)}.get(weights)
    weight = None if shape is None else torch.randn(shape, generator=draw).to(DEVICE)
    found = check(given | {"weights": weight}, split=split, gradients=False)
    assert found.gate is None and found.up is None
    short = inputs([3, 9, 1, 0], width, torch.bfloat16, "separate")
    check(short | {"weights": weight}, split=split)
    sums = torch.ones((2, width) if split else (width,), device=DEVICE)
    expected = sums + found.scores.sum(-2)
    added = glu_score(**given, weights=weight, split=split, into=sums, backend="triton")
    assert added.scores is sums
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("act", ["silu", "gelu_tanh", "gelu_erf", "relu", "relu2"])
def test_against_autograd(act: str) -> None:
    """The reference itself, against PyTorch's own derivative of the model's own activation."""
    from transformers.activations import ACT2FN

    name = {"gelu_tanh": "gelu_pytorch_tanh", "gelu_erf": "gelu"}.get(act, act)
    gate, up, grad = (torch.randn(7, 5, dtype=torch.float64, device=DEVICE) for _ in range(3))
    gate.requires_grad_()
    up.requires_grad_()
    h = ACT2FN[name](gate) * up
    dgate, dup = torch.autograd.grad(h, (gate, up), grad)
    found = glu_score(gate.detach(), up.detach(), grad, act=act, backend="torch")
    torch.testing.assert_close(found.gate, dgate)
    torch.testing.assert_close(found.up, dup)
    torch.testing.assert_close(found.scores, (h * grad).sum(0, keepdim=True).detach())


@pytest.mark.parametrize("act", reference.ACTIVATIONS)
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_and_infinity_behave_as_in_torch(odd: float, act: str) -> None:
    given = inputs([9, 20], 33, torch.float32, "separate")
    for name, at in (("gate", (3, 1)), ("up", (10, 7)), ("grad", (28, 32))):
        given[name][at] = odd
    for split in (False, True):
        found = glu_score(**given, act=act, split=split, backend="triton")
        # In float64: PyTorch's float32 gelu of infinity is NaN on a CPU, where it is infinity everywhere else.
        plain = glu_score(**wide(given), act=act, split=split, backend="torch")
        for x, y in zip(found, (None if p is None else p.float() for p in plain), strict=True):
            assert torch.equal(x.isnan(), y.isnan()) and torch.equal(x.isinf(), y.isinf())
            kept = y.isfinite()
            assert torch.equal(x[y.isinf()], y[y.isinf()])
            torch.testing.assert_close(x[kept], y[kept], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [(8, 64, 16), (16, 128, 64)], ids=str)
def test_a_question_alone_has_the_bits_it_has_in_a_batch(sizes: tuple[int, int, int]) -> None:
    lengths = [5, 0, 70, 16]
    entry = {"rows": sizes[0], "columns": sizes[1], "chunk": sizes[2], "num_warps": 4, "num_stages": 2}
    given = inputs(lengths, 100, torch.bfloat16, "separate")
    with forced({"bfloat16": entry}):
        together = glu_score(**given, backend="triton")
        begin = 0
        for q, count in enumerate(lengths):
            here = slice(begin, begin + count)
            alone = glu_score(given["gate"][here], given["up"][here], given["grad"][here], backend="triton")
            mine = (together.scores[q : q + 1], together.gate[here], together.up[here])
            assert all(torch.equal(a, b) for a, b in zip(bits(alone), bits(mine), strict=True))
            begin += count


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_of_programs_changes_no_bit(layout: str) -> None:
    given = inputs([70, 3, 65], 130, torch.bfloat16, layout)
    same_bits(lambda: glu_score(**given, split=True, backend="triton"))


@pytest.mark.parametrize("lengths", [[70, 0, 3, 129, 64], [5, 9, 0], [0, 0], []], ids=str)
@pytest.mark.parametrize("layout", ["separate", "padded"])
def test_lengths_that_nobody_can_look_at_say_the_same(
    layout: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuronllm.kernels.glu_score import kernel

    given = inputs(lengths, 100, torch.float32, layout) | {"weights": torch.ones(len(lengths), device=DEVICE) / 3}
    seen = glu_score(**given, backend="triton")
    monkeypatch.setattr(kernel, "cut", partial(cut, known=False))
    with poisoned():
        unseen = glu_score(**given, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(bits(seen), bits(unseen), strict=True))


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has one device")
def test_lengths_on_the_device_say_the_same() -> None:
    for layout in ("separate", "padded"):
        given = inputs([70, 0, 3, 129, 64], 100, torch.float32, layout)
        moved = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in given.items()}
        with poisoned():
            here, there = (glu_score(**x, backend="triton") for x in (given, moved))
        assert all(torch.equal(a, b) for a, b in zip(bits(here), bits(there), strict=True))


@only_interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("into", [False, True], ids=["scores", "running"])
def test_one_writer_and_no_address_outside(layout: str, into: bool) -> None:
    given = inputs([70, 0, 3, 65], 130, torch.bfloat16, layout)
    sums = torch.zeros(2, 130) if into else None
    with watched() as launches:
        glu_score(**given, weights=torch.ones(4, 130), split=True, into=sums, backend="triton")
        glu_score(**inputs([5, 0, 9], 130, torch.float32, layout), backend="triton")
    assert len(launches) == 4  # the sums of chunks of either part, the second call has no chunks to add up


@pytest.mark.skipif(DEVICE == "cpu", reason="needs the memory of a GPU")
def test_offsets_beyond_two_to_the_31() -> None:
    rows, width = 2**31 // 11008 + 40, 11008
    gate, up, grad = (torch.ones(rows, width, dtype=torch.bfloat16, device=DEVICE) for _ in range(3))
    found = glu_score(gate, up, grad, torch.tensor([rows - 20, 20]), act="relu", backend="triton")
    assert torch.equal(found.scores[:, 5].cpu(), torch.tensor([rows - 20.0, 20.0]))
    assert bool((found.gate[-20:] == 1).all()) and bool((found.up[-20:] == 1).all())
