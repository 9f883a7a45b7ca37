"""The C++ extension, every instruction set that this machine has, against an oracle in NumPy."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from neuronllm.common import env
from neuronllm.select import Stream, extremes, extremes_rows
from tests.checks import refused
from tests.selection import DISTRIBUTIONS, DTYPES, Oracle, bits, draw, tensor_of

MODULE, REASON = env.extension()
if MODULE is None:
    pytest.skip(REASON, allow_module_level=True)
SETS = MODULE.instruction_sets()
EDGES = [*range(10), *(2**i + j for i in range(4, 11) for j in (-1, 0, 1)), 1000, 1100]


@pytest.fixture(params=SETS)
def instruction_set(request, monkeypatch):
    monkeypatch.setenv("NEURONLLM_SELECT_ISA", request.param)
    assert MODULE.instruction_set() == request.param
    return request.param


def views_of(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same elements, lying otherwise in memory."""
    n = len(x)
    wide, column = x.new_zeros(3 * n + 1), x.new_zeros(n, 5)
    wide[1::3] = x
    column[:, 2] = x
    offset = x.new_zeros(n + 3)
    offset[3:] = x
    return {"as it is": x, "every third": wide[1::3], "a column": column[:, 2], "an offset": offset[3:]}


def counts(n: int) -> list[int]:
    return sorted({0, 1, n // 40, n // 2, max(0, n - 1), n, n + 5})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_small_arrays(name, dtype, instruction_set):
    """33 sizes of 15 distributions, four dtypes and every instruction set: some 60,000 calls."""
    rng = np.random.default_rng(0)
    for n in EDGES:
        x = tensor_of(draw(name, n, rng), dtype)
        oracle = Oracle(x)
        views = list(views_of(x).values())
        for i, k in enumerate(counts(n)):
            view, other = views[(n + i) % len(views)], k // 2 if i % 2 else k
            oracle.check(extremes(view, k, other, backend="ext"), x, k, other)
        oracle.check(extremes(x, 3, 5, sorted=False, backend="ext"), x, 3, 5, sorted=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_any_number_of_threads_gives_the_same_bits(name, dtype, instruction_set):
    """Blocks of 2 KB, so that the threads really share an array of this size."""
    rng = np.random.default_rng(1)
    for n in (4095, 4096, 4097, 30011):
        x = tensor_of(draw(name, n, rng), dtype)
        oracle, array = Oracle(x), x.view(torch.int8).view(n, -1).numpy().view(f"u{x.element_size()}")[:, 0]
        for k in (1, 100, n // 25, n // 2, n):
            found = [MODULE.extremes(array, dtype, k, k // 3, True, threads, 2048) for threads in (1, 2, 3, 8)]
            as_bytes = [[bits(part.view(f"i{part.itemsize}")) for part in one[:4]] + list(one[4:]) for one in found]
            assert as_bytes[1:] == as_bytes[:-1]
            assert found[0][1].tolist() == oracle.falling[:k].tolist()
            assert found[0][3].tolist() == oracle.rising[: k // 3].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_large_array(name, dtype):
    """Large enough for samples, guesses, cuts and the second pass of a large k."""
    x = tensor_of(draw(name, 300_007, np.random.default_rng(2)), dtype)
    oracle = Oracle(x)
    for k in (0, 10, 3000, 100_000, 300_007):
        for threads in (1, 3):
            oracle.check(extremes(x, k, 7, threads=threads, backend="ext"), x, k, 7)
        oracle.check(extremes(x, 5, k, sorted=False, backend="ext"), x, 5, k, sorted=False)


def test_unaligned_and_backward_arrays(instruction_set):
    x = np.random.default_rng(3).standard_normal(5000).astype(np.float32)
    raw = np.zeros(x.nbytes + 1, dtype=np.uint8)
    raw[1:] = x.view(np.uint8)
    unaligned = raw[1:].view(np.float32)
    record = np.zeros(5000, dtype=[("flag", "i1"), ("value", "<f4")])
    record["value"] = x
    for view in (unaligned, x[::-1], record["value"], np.broadcast_to(x[:1], 70), x[:0]):
        found = extremes(view, 20, 20, backend="ext")
        Oracle(torch.from_numpy(view.copy())).check(found, torch.from_numpy(view.copy()), 20, 20)


def test_denormals_count_whatever_the_floating_point_mode(instruction_set):
    x = torch.arange(-100, 100).mul(1e-45).float()
    expected = Oracle(x)
    torch.set_flush_denormal(True)
    try:
        found = extremes(x, 150, 150, backend="ext")
    finally:
        torch.set_flush_denormal(False)
    expected.check(found, x, 150, 150)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [0, 1, 5, 200, 4096, 9001])
def test_rows(columns, dtype, instruction_set):
    rng = np.random.default_rng(4)
    x = torch.stack([tensor_of(draw(name, columns, rng), dtype) for name in DISTRIBUTIONS])
    oracles = [Oracle(row) for row in x]
    for k, low, view in ((3, 2, x), (columns // 30, 1, x.t().contiguous().t()), (columns + 1, 0, x)):
        for threads in (1, 3):
            found = extremes_rows(view, k, low, threads=threads, backend="ext")
            assert found.largest.indices.shape == (len(x), min(k, columns))
            for row, oracle in enumerate(oracles):
                assert (int(found.n_nan[row]), int(found.n_valid[row])) == (oracle.n_nan, oracle.n_valid)
                for end, order, count in ((found.largest, oracle.falling, k), (found.smallest, oracle.rising, low)):
                    expected = order[:count]
                    assert end.indices[row, : len(expected)].tolist() == expected.tolist()
                    assert bits(end.values[row, : len(expected)]) == bits(x[row][torch.from_numpy(expected)])
                    assert (end.indices[row, len(expected) :] == -1).all()
                    assert end.values[row, len(expected) :].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_stream_in_any_order_gives_what_one_call_gives(name, dtype, instruction_set):
    rng = np.random.default_rng(5)
    x = tensor_of(draw(name, 20_000, rng), dtype)
    cuts = [0, *sorted(rng.integers(0, 20_000, 6).tolist()), 20_000]
    parts = list(zip(cuts, cuts[1:], strict=False))
    for k in ((5, 3), (9000, 1), (0, 0)):
        oracle = Oracle(x)
        for order in (parts, parts[::-1]):
            left, right = (
                Stream(k, getattr(torch, dtype), backend="ext"),
                Stream(k, getattr(torch, dtype), backend="ext"),
            )
            for number, (begin, end) in enumerate(order):
                (left, right)[number % 2].push(x[begin:end], begin)
            left.merge(right)
            oracle.check(left.result(), x, *k)
            oracle.check(left.result(sorted=False), x, *k, sorted=False)


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("NEURONLLM_SELECT_ISA", "sse9")
    with refused("NEURONLLM_SELECT_ISA=sse9", ", ".join(SETS)):
        extremes([1.0], 1, backend="ext")


def test_the_module_refuses_what_it_cannot_read():
    x = np.zeros(8, dtype=np.float32)
    for bad in (x.astype(np.float64), x.reshape(2, 4), [1.0, 2.0]):
        with pytest.raises(TypeError):
            MODULE.extremes(bad, "float32", 1, 1)
    with pytest.raises(TypeError, match="int8"):
        MODULE.extremes(x, "int8", 1, 1)
    for largest, smallest, threads in ((-1, 0, 1), (0, -1, 1), (1, 1, 0)):
        with pytest.raises(ValueError):
            MODULE.extremes(x, "float32", largest, smallest, True, threads)


INTERRUPTED = """
import os, signal, threading, time
import numpy as np
from neuronllm.select import extremes
x = np.zeros(1, dtype=np.float32)
endless = np.broadcast_to(x, 1 << 50)  # weeks
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
began = time.monotonic()
try:
    extremes(endless, 1, 1, threads=2, backend="ext")
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - began < 60)
"""


def test_ctrl_c_ends_a_long_call():
    here = {"PYTHONPATH": str(Path(env.__file__).parents[2]), "NEURONLLM_SELECT_ISA": ""}
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, env=os.environ | here)
    assert done.stdout.split() == ["interrupted", "True"], done.stderr


def test_other_python_threads_run_meanwhile():
    """A long call in one thread does not keep another from counting."""
    x = np.broadcast_to(np.float32([1.0]), 1 << 27)
    working = threading.Thread(target=extremes, args=(x, 5, 5), kwargs={"backend": "ext"})
    working.start()
    turns = 0
    while working.is_alive():
        time.sleep(0.001)
        turns += 1
    working.join()
    assert turns > 10
