"""Stages that end badly, for tests/test_gpu_hour.py: the modules that a worker of bench/gpu is given."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch

from bench.gpu.worker import Case, Setting, Skipped, Wrong


def cases(setting: Setting) -> list[Case]:
    found = [
        Case("first", lambda: {"line": "first ran"}),
        Case("wrong", wrong),
        Case("full", full),
        Case("hangs", lambda: time.sleep(600)),
        Case("crashes", lambda: os.kill(os.getpid(), signal.SIGSEGV)),
        Case("absent", absent),
        Case("facts", wrong),
        Case("last", lambda: {"line": "last ran", "number": 7}),
    ]
    wanted = os.environ.get("NEURONLLM_TEST_CASES", "").split()
    return [case for case in found if case.name in wanted]


def wrong() -> None:
    found, right = torch.tensor([[1.0, 2.0]]).T, torch.tensor([[1.0], [3.0]])
    from bench.gpu.diagnosis import differences

    raise Wrong(f"two results differ\n{differences(found, right)}")


def full() -> Any:
    return torch.empty(2**60, dtype=torch.uint8)


def absent() -> None:
    raise Skipped("there is no such thing here")
