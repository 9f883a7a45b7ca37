"""Stage: pytest -m gpu, the tests that need a CUDA device; without one they are collected and skipped."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

from .worker import ROOT, Case, Setting, Skipped, Wrong

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
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-200_000:], done.stderr[-20_000:], flush=True)
    last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "").strip("= ")
    if done.returncode not in (0, NO_TESTS):
        raise Wrong(f"{last}\n{done.stdout[-60_000:]}")
    return {"summary": last, "line": last}
