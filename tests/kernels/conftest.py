"""The kernels themselves run here: interpreted in a process of its own (tests/test_kernels.py starts it), or on a GPU.

TRITON_INTERPRET counts when triton is imported, and a process that interprets cannot compile. So without it these tests
are for `make test-gpu`; without a GPU they are not collected.
"""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
AHEAD_OF_TIME = os.environ.get("NEURONLLM_TEST_LANE", "").startswith("ahead of time")

collect_ignore_glob = []
if not AHEAD_OF_TIME:
    collect_ignore_glob += ["test_ahead_of_time.py"]
if AHEAD_OF_TIME or not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore_glob += ["test_[!a]*.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not INTERPRETED and not AHEAD_OF_TIME:
        for item in items:
            if "tests/kernels" in item.nodeid:
                item.add_marker(pytest.mark.gpu)
