"""The k largest and smallest, every back end against an oracle in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from neuronllm.select import Stream, extension_refusal, extremes
from tests.checks import refused

NO_EXTENSION = extension_refusal()
BACKENDS = [
    "torch",
    pytest.param("ext", marks=pytest.mark.skipif(NO_EXTENSION is not None, reason=str(NO_EXTENSION))),
]
SIZES = [*range(20), 31, 32, 33, 63, 64, 65, 70]
INF, NAN = math.inf, math.nan


def few(n: int) -> list[float]:
    return [[0.0, -0.0, 1.0, -1.0][(i * i) % 4] for i in range(n)]


def noise(n: int) -> list[float]:
    return torch.randn(n, generator=torch.Generator().manual_seed(n)).half().tolist()


DISTRIBUTIONS = {
    "noise": noise,
    "constant": lambda n: [2.5] * n,
    "zeros of both signs": lambda n: [0.0 if i % 3 else -0.0 for i in range(n)],
    "rising": lambda n: [float(i) for i in range(n)],
    "falling": lambda n: [float(-i) for i in range(n)],
    "few distinct": few,
    "some NaN": lambda n: [(NAN, -NAN, x)[min(i % 4, 2)] for i, x in enumerate(noise(n))],
    "all NaN": lambda n: [NAN] * n,
    "infinities": lambda n: [(INF, -INF, 1.0, NAN, -2.0)[(i * 7) % 5] for i in range(n)],
    "one huge": lambda n: [65504.0 if i == n // 2 else float(i % 5) for i in range(n)],
    "tiny": lambda n: [(i - n // 2) * 2.0**-24 for i in range(n)],  # subnormal in float16
}


def oracle(values: list[float], largest: int, smallest: int):
    """Sort pairs: by value, then by lowest index, NaN left out; Python compares -0 and 0 as equal."""
    valid = [i for i, v in enumerate(values) if v == v]
    down = sorted(valid, key=lambda i: (-values[i], i))[:largest]
    up = sorted(valid, key=lambda i: (values[i], i))[:smallest]
    return down, up, len(values) - len(valid), len(valid)


def bits(values) -> list[bytes]:
    """Values that tell -0 from 0."""
    return [np.float64(v).tobytes() for v in values]


def check(x, values: list[float], largest: int, smallest: int, backend: str) -> None:
    found = extremes(x, largest=largest, smallest=smallest, backend=backend)
    down, up, n_nan, n_valid = oracle(values, largest, smallest)
    assert (found.n_nan, found.n_valid) == (n_nan, n_valid)
    for end, indices in ((found.largest, down), (found.smallest, up)):
        assert end.indices.tolist() == indices
        assert bits(end.values.tolist()) == bits([values[i] for i in indices])


@pytest.mark.noext
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_against_the_oracle(name, backend):
    for n in SIZES:
        values = DISTRIBUTIONS[name](n)
        for k in sorted({0, 1, n // 2, max(0, n - 1), n, n + 5}):
            x = torch.tensor(values, dtype=torch.float32)
            check(x, values, k, k, backend)
        check(x, values, 3, 1, backend)
        check(x, values, 0, 2, backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_other_dtypes(name, dtype):
    """Whatever runs them, values come back in the dtype they had."""
    for n in (0, 1, 2, 17, 64, 70):
        x = torch.tensor(DISTRIBUTIONS[name](n), dtype=torch.float64).nan_to_num(3.0, 4.0, -4.0)
        x = x.abs().to(dtype) if dtype == torch.uint8 else x.to(dtype)
        for backend in ("auto", "torch"):
            check(x, x.tolist(), n // 2 + 1, 3, backend)
        if dtype.is_floating_point:
            assert extremes(x, 1).largest.values.dtype == dtype


def test_neighbours_beyond_float32_are_told_apart():
    x = torch.tensor([1.0, 1.0 + 2**-40, 1.0 - 2**-40], dtype=torch.float64)
    assert extremes(x, 3).largest.indices.tolist() == [1, 0, 2]
    big = torch.tensor([2**60, 2**60 + 1, 2**60 - 1])
    assert extremes(big, 3).largest.indices.tolist() == [1, 0, 2]


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_views(backend):
    base = torch.tensor(noise(300))
    for view in (base[3:], base[::2], base[5:200:7], base.reshape(20, 15)[:, 4], base.flip(0), base[:1].expand(9)):
        check(view, view.tolist(), 11, 7, backend)
        check(view.numpy(), view.tolist(), 11, 7, backend)
    backwards = base.numpy()[::-1]
    check(backwards, backwards.tolist(), 11, 7, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_offset_into_a_larger_array(backend):
    base = torch.tensor(noise(100))
    for start in range(1, 9):
        check(base[start:], base[start:].tolist(), 5, 5, backend)


@pytest.mark.noext
def test_what_goes_in_decides_what_comes_out():
    tensors = extremes(torch.tensor([3.0, 1.0, 2.0]), 2, 1)
    assert isinstance(tensors.largest.values, torch.Tensor) and tensors.largest.indices.dtype == torch.int64
    for x in (np.array([3, 1, 2], dtype=np.float32), np.array([3.0, 1.0, 2.0]), [3.0, 1.0, 2.0], [3, 1, 2], (3, 1, 2)):
        arrays = extremes(x, 2, 1)
        assert isinstance(arrays.largest.values, np.ndarray) and arrays.largest.indices.dtype == np.int64
        assert arrays.largest.indices.tolist() == [0, 2] and arrays.smallest.indices.tolist() == [1]
    assert extremes([], 3, 3).n_valid == 0
    half = np.array([1.0, 4.0], dtype=np.float16)
    assert extremes(half, 1).largest.values.dtype == np.float16


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_is_left_alone(backend):
    x = torch.tensor([0.0, -0.0, 5.0, NAN], requires_grad=True)
    before = x.detach().clone()
    found = extremes(x, 2, 2, backend=backend)
    assert torch.equal(x.detach().view(torch.int32), before.view(torch.int32))
    assert not found.largest.values.requires_grad
    found.largest.values[:] = 9.0
    assert x[2].item() == 5.0


@pytest.mark.filterwarnings("error")
def test_a_read_only_array_is_taken_without_a_warning():
    x = np.array([3.0, 1.0, 2.0], dtype=np.float32)
    x.flags.writeable = False
    for backend in ("auto", "torch"):
        assert extremes(x, 1, backend=backend).largest.indices.tolist() == [0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_whole_number_is_a_k(backend):
    x = torch.tensor([3.0, 1.0])
    for k in (np.int32(1), np.int64(1), np.uint8(1)):
        assert extremes(x, k, k, backend=backend).smallest.indices.tolist() == [1]
    assert extremes(x, 10**30, 2**63, backend=backend).largest.indices.tolist() == [0, 1]


@pytest.mark.noext
@pytest.mark.parametrize(
    ("arguments", "keywords", "parts"),
    [
        (([1.0], -1), {}, ["largest=-1", "0 or more"]),
        (([1.0], 0, -2), {}, ["smallest=-2"]),
        (([1.0], 1.5), {}, ["largest=1.5"]),
        (([1.0], True), {}, ["largest=True"]),
        (([1.0], None), {}, ["largest=None"]),
        ((torch.zeros(2, 3), 1), {}, ["one-dimensional", "(2, 3)"]),
        ((np.zeros((2, 3)), 1), {}, ["one-dimensional", "(2, 3)"]),
        ((torch.tensor(1.0), 1), {}, ["one-dimensional", "()"]),
        (([1.0], 1), {"backend": "gpu"}, ["backend='gpu'", "auto, ext, cuda, torch"]),
        ((["a", "b"], 1), {}, ["x:", "numbers"]),
        (([None, 1.0], 1), {}, ["x:", "numbers"]),
        ((torch.tensor([1j]), 1), {}, ["x:", "real numbers"]),
        ((np.array([1j]), 1), {}, ["x:", "real numbers"]),
        (([True, False], 1), {}, ["x:", "real numbers"]),
        (([[1], [2, 3]], 1), {}, ["x:", "not an array of numbers"]),
        ((np.ma.array([1.0, 9.0], mask=[False, True]), 1), {}, ["x:", "masked", "filled"]),
        ((np.arange(3, dtype=np.uint16), 1), {}, ["not of uint16", "convert"]),
        ((np.arange(3, dtype=np.uint32), 1), {}, ["not of uint32", "convert"]),
        (([2**63], 1), {}, ["not of uint64", "convert"]),
        ((torch.zeros(3, dtype=torch.uint16), 1), {}, ["not of uint16", "convert"]),
        ((torch.zeros(3).to(torch.float8_e4m3fn), 1), {}, ["not of float8_e4m3fn", "convert"]),
        ((np.zeros(3, dtype="M8[s]"), 1), {}, ["x:", "not of datetime64"]),
        ((torch.ones(3).to_sparse(), 1), {}, ["x:", "dense", "sparse_coo"]),
        ((torch.ones(3, device="meta"), 1), {}, ["x:", "meta"]),
    ],
)
def test_bad_input_is_one_line(arguments, keywords, parts):
    with refused(*parts):
        extremes(*arguments, **keywords)


@pytest.mark.skipif(NO_EXTENSION is not None, reason=str(NO_EXTENSION))
@pytest.mark.parametrize("x", [torch.arange(3), np.arange(3), np.array([2.0, 1.0, 0.0], dtype=">f4")])
def test_the_extension_asked_for_by_name_refuses_what_it_cannot_take(x):
    with refused('backend="ext"', "the extension takes float16, bfloat16, float32, float64"):
        extremes(x, 1, backend="ext")
    assert extremes(x, 1).largest.values.tolist() == [2]


def test_an_extension_that_is_not_there_is_said_so(monkeypatch):
    import sys

    import neuronllm

    monkeypatch.setitem(sys.modules, "neuronllm._select", None)
    monkeypatch.delattr(neuronllm, "_select", raising=False)
    with refused('backend="ext"', "neuronllm._select"):
        extremes([1.0], 1, backend="ext")
    assert extremes([1.0, 2.0], 1).largest.indices.tolist() == [1]


@pytest.mark.skipif(np.dtype(np.longdouble) == np.dtype(np.float64), reason="long double is float64 here")
def test_a_long_double_is_refused():
    with refused("x:", "convert it first"):
        extremes(np.zeros(3, dtype=np.longdouble), 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_negated_view_counts_as_what_it_shows(backend):
    x = torch.imag(torch.tensor([1 + 2j, 1 - 3j]).conj())
    assert x.is_neg() and extremes(x, 1, backend=backend).largest.indices.tolist() == [1]


def test_an_array_without_masked_elements_is_taken():
    assert extremes(np.ma.array([1.0, 9.0]), 1).largest.indices.tolist() == [1]


@pytest.mark.noext
def test_streams_refuse_what_they_cannot_count():
    for k in ((1, 2, 3), (), [1, 2], 1.5, None):
        with refused(f"k={k}", "a whole number, or two as a tuple"):
            Stream(k, "float32")
    for dtype in (None, "float31", torch.int64):
        with refused(f"dtype={dtype}", "float32"):
            Stream(1, dtype)
    stream = Stream(1, "float32")
    for base in (2**63 - 2, 2**70, -1, 0.0):
        with refused("base_index="):
            stream.push(np.float32([1, 2]), base)
    stream.push(np.float32([1, 2]), 2**63 - 3)
    assert stream.result().largest.indices.tolist() == [2**63 - 2]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", torch.float32])
def test_the_result_of_a_stream_is_the_callers(dtype, backend):
    stream = Stream(2, dtype, backend=backend)
    stream.push(np.float32([1, 2, 3]), 0)
    for is_sorted in (True, False):
        found = stream.result(sorted=is_sorted)
        for end in (found.largest, found.smallest):
            end.values[:] = 77
            end.indices[:] = 77
    found = stream.result()
    assert found.largest.values.tolist() == [3, 2] and found.largest.indices.tolist() == [2, 1]
    assert found.smallest.values.tolist() == [1, 2] and found.smallest.indices.tolist() == [0, 1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_streams_take_both_byte_orders(order, backend):
    for dtype in ("f2", "f4", "f8"):
        stream = Stream(2, order + dtype, backend=backend)
        for base, other in ((0, "<"), (3, ">")):
            stream.push(np.array([1, base + 2, 3], dtype=other + dtype), base)
        found = stream.result()
        assert found.largest.values.tolist() == [5, 3] and found.largest.indices.tolist() == [4, 2]
        with refused("not of"):
            stream.push(np.zeros(2, dtype=">i4"), 6)


class Odd:
    """An array by name only."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __array__(self, *arguments: object, **keywords: object) -> np.ndarray:
        raise self.error


class OddTensor(Odd):
    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **keywords: object) -> object:
        raise self.error


@pytest.mark.parametrize("kind", [Odd, OddTensor])
@pytest.mark.parametrize("error", [RuntimeError("no\nway"), ValueError(""), BufferError("no"), KeyError("a")])
def test_what_an_odd_object_raises_is_one_line(kind, error):
    with refused("x: not an array of numbers (", next(iter(str(error).splitlines()), "ValueError")):
        extremes(kind(error), 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_denormals_count_whatever_the_floating_point_mode(dtype, backend):
    x = (torch.arange(-5, 6).double() * torch.finfo(dtype).smallest_normal / 8).to(dtype)
    values = [float(i) for i in range(-5, 6)]
    torch.set_flush_denormal(True)
    try:
        found = extremes(x, 8, 8, backend=backend)
        stream = Stream(8, dtype, backend=backend)
        stream.push(x, 0)
        streamed = stream.result()
    finally:
        torch.set_flush_denormal(False)
    down, up, _, _ = oracle(values, 8, 8)
    for one in (found, streamed):
        assert one.largest.indices.tolist() == down and one.smallest.indices.tolist() == up
        assert one.largest.values.tolist() == x[down].tolist()
