"""The micro-benchmarks and the scaling cases give right results; how fast they are is no test's business."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # a run of pytest-benchmark

ROOT = Path(__file__).resolve().parents[1]


def test_every_micro_benchmark_is_right_and_the_test_suite_takes_none() -> None:
    pytest.importorskip("neuronllm._select")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "bench/micro.py", "--benchmark-disable"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert re.search(r"^15 passed", done.stdout, re.MULTILINE), done.stdout + done.stderr
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'testpaths = ["tests"]' in settings and "python_files" not in settings  # micro.py is no test_*.py either


@pytest.mark.parametrize(
    ("name", "sizes", "runs"),
    [("tokens", (8, 12, 20), 3), ("layers", (1, 2, 3), 3), ("options", (2, 5, 26), 4)],
)
def test_times_are_followed_over_sizes(name: str, sizes: tuple[int, ...], runs: int, monkeypatch: Any) -> None:
    sys.path.append(str(ROOT))
    try:
        scaling, harness = (importlib.import_module(f"bench.{module}") for module in ("scaling", "harness"))
    finally:
        sys.path.remove(str(ROOT))
    monkeypatch.setattr(scaling, {"tokens": "LENGTHS"}.get(name, name.upper()), sizes)
    setup = harness.Setup(shape="toy", rounds=1)
    case = getattr(scaling, name)(setup)
    with case.stack:
        result = harness.run_case(case, setup, lambda side: {})
    assert all(check["value"] <= check["limit"] for check in result["checks"])
    assert len(result["checks"]) == len(sizes) + 1 + (name == "options")
    series = [view for view in result["views"] if view["view"] == "series"]
    assert len(series) == runs and all([x for x, _ in view["points"]] == list(sizes) for view in series)
    assert len(result["views"]) == runs + 2 * (runs - 1)  # beside inference at the smallest and the largest size
