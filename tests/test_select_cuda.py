"""The CUDA selection: its kernels on an emulated device, and the real thing where there is one.

The emulation compiles the same file as C++ and runs the threads of a kernel one after the other.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from neuronllm.common import env
from neuronllm.select import cuda, extremes, extremes_rows
from tests.checks import refused
from tests.selection import DISTRIBUTIONS, DTYPES, Oracle, bits, draw, tensor_of

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
NVCC_BUILT = env.build_record().get("cuda", {}).get("built", False)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("emulated") / "libselect.so"
    flags = ["-O2", "-std=c++17", "-x", "c++", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    done = subprocess.run(
        [str(COMPILER), *flags, str(SOURCES / "select_cuda.cu"), "-o", str(target)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return cuda.load(target)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_kernels_against_the_oracle(name, dtype, emulated):
    rng = np.random.default_rng(0)
    for n, most in ((1, 2), (5, 9), (1000, 1000), (33_000, 300)):
        whole = tensor_of(draw(name, n + 3, rng), dtype)
        for offset in (0, 3):
            x = whole[offset : offset + n]
            oracle = Oracle(x)
            for k in sorted({0, min(7, n), min(most, n)}):
                found = cuda.call(emulated, x[None], k, k // 2)
                assert int(found.n_nan) == oracle.n_nan
                check_row(found, 0, oracle, x, k, k // 2)


def check_row(found, row, oracle, x, largest, smallest) -> None:
    for end, order, k in ((found.largest, oracle.falling, largest), (found.smallest, oracle.rising, smallest)):
        expected = order[:k]
        assert end.indices[row, : len(expected)].tolist() == expected.tolist()
        assert bits(end.values[row, : len(expected)]) == bits(x[torch.from_numpy(expected)])
        assert (end.indices[row, len(expected) :] == -1).all() and end.values[row, len(expected) :].isnan().all()


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [3, 500, 33_000])
def test_rows_of_all_distributions_at_once(columns, dtype, emulated):
    rng = np.random.default_rng(1)
    x = torch.stack([tensor_of(draw(name, columns, rng), dtype) for name in DISTRIBUTIONS])
    for k in (1, 3, min(columns, 100)):
        for view in (x, x[:, :], x.t().contiguous().t()):
            found = cuda.call(emulated, view, k, 2)
            for row in range(len(x)):
                check_row(found, row, Oracle(x[row]), x[row], k, 2)


@needs_compiler
def test_bad_arguments_are_an_error(emulated):
    x = torch.zeros(1, 4)
    with refused('backend="cuda"'):
        cuda.call(emulated, x, 5, 1)
    assert emulated.neuronllm_cuda_devices() == 1


def test_tensors_of_the_host_are_refused():
    for x in (torch.zeros(3), np.zeros(3)):
        with refused('backend="cuda"', "tensors on a CUDA device"):
            extremes(x, 1, backend="cuda")
    with refused('backend="cuda"'):
        extremes_rows(torch.zeros(2, 3), 1, backend="cuda")


@pytest.mark.skipif(not NVCC_BUILT, reason=env.cuda_library())
def test_the_library_loads_without_a_driver_and_has_no_spills():
    code = (
        "from neuronllm.select import cuda; found = cuda.load(cuda.LIBRARY);"
        "print(found.neuronllm_cuda_devices() >= 0, cuda.refusal() is None)"
    )
    here = {"PYTHONPATH": str(Path(env.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | here)
    assert done.stdout.split() == ["True", str(torch.cuda.is_available())], done.stderr
    for log in SOURCES.parents[1].glob("build/cuda-*/*.log"):
        spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log.read_text())
        assert len(spilled) >= 2 * 20 and set(spilled) == {("0", "0")}, log


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_on_a_device(name, dtype):
    rng = np.random.default_rng(2)
    for n in (1, 1000, 40_000, 3_000_001):
        x = tensor_of(draw(name, n, rng), dtype)
        device, oracle = x.cuda(), Oracle(x)
        for k in (1, 100, 10_000, n // 2):
            for view in (device, torch.stack([device, device], 1)[:, 1]):
                found = extremes(view, k, 7, backend="cuda")
                assert found.largest.values.is_cuda
                for end, order, count in ((found.largest, oracle.falling, k), (found.smallest, oracle.rising, 7)):
                    assert end.indices.tolist() == order[:count].tolist()
                    assert bits(end.values.cpu()) == bits(x[torch.from_numpy(order[:count].copy())])
        rows = torch.stack([device, device.flip(0)])
        found, expected = extremes_rows(rows, 50, 5, backend="cuda"), extremes_rows(rows.cpu(), 50, 5, backend="torch")
        assert torch.equal(found.largest.indices.cpu(), expected.largest.indices)
        assert torch.equal(found.smallest.indices.cpu(), expected.smallest.indices)


@pytest.mark.gpu
def test_more_elements_than_an_int32_counts():
    n = 2**31 + 12_345
    if torch.cuda.mem_get_info()[0] < 3 * n:
        pytest.skip("too little device memory")
    x = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    x[-3:] = torch.tensor([3.0, -1.0, float("nan")], device="cuda", dtype=torch.bfloat16)
    found = extremes(x, 2, 2, backend="cuda")
    assert found.largest.indices.tolist() == [n - 3, 0] and found.smallest.indices.tolist() == [n - 2, 0]
    assert found.n_nan == 1
