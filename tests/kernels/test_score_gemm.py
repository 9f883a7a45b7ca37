"""score_gemm: the kernel against float64 in every layout, bit for bit independent of batch and order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuronllm.kernels.launch import forced
from neuronllm.ops import glu_score, score_gemm
from tests.kernels.lanes import DEVICE, DTYPES, bits, only_interpreted, poisoned, same_bits, watched, within_budget

# rows of each question (None: every row is one), width, neurons
SHAPES: dict[str, tuple[list[int] | None, int, int]] = {
    "one row": ([1], 24, 40),
    "no row": ([0], 24, 40),
    "no question": ([], 24, 40),
    "ragged": ([3, 0, 37, 17], 40, 150),
    "several chunks": ([70, 0, 66], 33, 130),
    "every row": (None, 40, 140),
}
LAYOUTS = ("separate", "fused", "no gate", "transposed", "padded")


def inputs(shape: tuple[list[int] | None, int, int], dtype: torch.dtype, layout: str, seed: int = 0) -> dict[str, Any]:
    lengths, width, neurons = shape
    draw = torch.Generator().manual_seed(seed)
    count = None if lengths is None else torch.tensor(lengths, dtype=torch.int64)
    padded = layout == "padded" and lengths is not None
    rows = 70 if lengths is None else sum(lengths) + (3 * len(lengths) if padded else 0)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=draw).to(dtype).to(DEVICE)

    found: dict[str, Any] = {"grad": randn(rows, width), "weight": randn(width, neurons), "up": randn(rows, neurons)}
    found |= {"lengths": count, "each": lengths is None, "gate": randn(rows, neurons)}
    if padded:
        assert count is not None
        found["starts"] = (count + 3).cumsum(0) - count
    if layout == "fused":
        return found | {"gate": randn(rows, 2 * neurons), "up": None}
    if layout == "no gate":
        return found | {"up": None, "act": "identity"}
    if layout == "transposed":
        return found | {"weight": randn(neurons, width).T, "grad": randn(width, rows).T}
    return found


def wide(given: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.items()}


def check(given: dict[str, Any]) -> Tensor:
    with poisoned():
        found = score_gemm(**given, backend="triton")
    within_budget(found, score_gemm(**given, backend="torch"), score_gemm(**wide(given), backend="torch"))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_layouts_and_shapes(shape: tuple[list[int] | None, int, int], layout: str, dtype: torch.dtype) -> None:
    assert check(inputs(shape, dtype, layout)).dtype == torch.float32


@pytest.mark.parametrize("act", ["silu", "gelu_tanh", "gelu_erf", "relu", "relu2", "identity"])
@pytest.mark.parametrize("shape", ["several chunks", "every row", "ragged"])
def test_activations_and_weights(shape: str, act: str) -> None:
    given = inputs(SHAPES[shape], torch.bfloat16, "separate") | {"act": act}
    questions = len(given["grad"]) if given["each"] else len(given["lengths"])
    draw = torch.Generator().manual_seed(3)
    check(given | {"weights": torch.randn(questions, generator=draw).to(DEVICE)})
    check(given | {"weights": torch.randn(questions, SHAPES[shape][2], generator=draw).to(DEVICE)})


def test_it_is_a_product_and_glu_score() -> None:
    given = inputs(SHAPES["ragged"], torch.float64, "separate")
    dh = given["grad"] @ given["weight"]
    scores = glu_score(given["gate"], given["up"], dh, given["lengths"], backend="torch").scores
    torch.testing.assert_close(score_gemm(**given, backend="torch"), scores)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")], ids=str)
def test_nan_and_infinity_behave_as_in_torch(odd: float) -> None:
    for name, at in (("grad", (40, 3)), ("gate", (2, 7)), ("weight", (5, 9))):
        given = inputs(SHAPES["ragged"], torch.float32, "separate")
        given[name][at] = odd
        found, plain = (score_gemm(**given, backend=backend) for backend in ("triton", "torch"))
        kept = plain.isfinite()
        assert not kept.all()
        assert torch.equal(found.isnan(), plain.isnan()) and torch.equal(found[plain.isinf()], plain[plain.isinf()])
        torch.testing.assert_close(found[kept], plain[kept], rtol=1e-4, atol=1e-4)


def test_a_question_alone_has_the_bits_it_has_in_a_batch() -> None:
    given = inputs(([5, 0, 70, 16], 40, 100), torch.bfloat16, "separate")
    entry = {"rows": 16, "columns": 64, "depth": 32, "num_warps": 4, "num_stages": 2}
    for sizes in ({}, {"bfloat16": entry}):
        with forced(sizes):
            together, begin = score_gemm(**given, backend="triton"), 0
            for q, count in enumerate(given["lengths"].tolist()):
                here = slice(begin, begin + count)
                rows = {name: given[name][here] for name in ("grad", "gate", "up")}
                alone = score_gemm(weight=given["weight"], **rows, backend="triton")
                assert torch.equal(*bits((alone, together[q : q + 1])))
                begin += count


@pytest.mark.parametrize("shape", ["several chunks", "every row"])
def test_order_of_programs_changes_no_bit(shape: str) -> None:
    given = inputs(SHAPES[shape], torch.bfloat16, "separate")
    same_bits(lambda: [score_gemm(**given, backend="triton")])


@only_interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ["several chunks", "every row", "ragged"])
def test_one_writer_and_no_address_outside(shape: str, layout: str) -> None:
    given = inputs(SHAPES[shape], torch.bfloat16, layout)
    with watched() as launches:
        score_gemm(**given, backend="triton")
    assert len(launches) == (2 if shape == "several chunks" else 1)
