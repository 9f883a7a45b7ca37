"""Stage: pytest -m gpu, the tests that need a CUDA device; without one they are collected and skipped."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from .worker import Case, Setting, Skipped, Wrong, ran

FILES = ("tests/kernels", "tests/test_select_cuda.py")
PROCESSES = 8
NO_TESTS = 5  # exit code of pytest where everything was deselected


def cases(setting: Setting) -> list[Case]:
    return [Case("pytest -m gpu", lambda: run(setting))]


def run(setting: Setting) -> dict[str, Any]:
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    # The options of pyproject.toml name what a bare machine may lack; these are what the tests need of them.
    options = ["-o", "minversion=0", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-ra", "-q"]
    if not setting.pretend and importlib.util.find_spec("xdist") is not None:
        options += ["-n", str(PROCESSES)]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *options, "--tb=short", "--maxfail=40", *FILES]
    code, printed = ran(command)
    last = next((line for line in reversed(printed.splitlines()) if line.strip()), "").strip("= ")
    if code not in (0, NO_TESTS):
        raise Wrong(f"{last}\n{printed}")
    return {"summary": last, "line": last}
