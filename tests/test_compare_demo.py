"""`nl.compare` on the bundled model: killed at any moment it ends with the same bytes, which its page shows."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

import neuronllm as nl
from neuronllm.comparing.budget import Budget
from tests.killing import forked

pytestmark = pytest.mark.slow

TINY = Budget(
    search=8, expensive=4, validation=6, test=12, elsewhere=6, judged=1, effects=3200, controls=2, curve_controls=1
)
SIDES = ("search", "validation", "test")
TASKS = {task: [nl.demo_task(task, side) for side in SIDES] for task in ("facts", "ordering")}
ASKED = {"edits": ["enhance"], "k": 4, "template": "plain", "budget": TINY, "progress": False}
KILLS = 10


@pytest.fixture(scope="module")
def demo():
    return nl.load_model("demo")


@pytest.fixture(scope="module")
def made(demo, tmp_path_factory):
    return nl.compare(*demo, TASKS, ["gradient", "random"], output=tmp_path_factory.mktemp("made") / "whole", **ASKED)


def test_killed_at_random_moments(demo, made, tmp_path) -> None:
    """kill -9 after a while that is drawn by a seed; --resume goes on, and is killed itself every other time."""

    def work(output: Path, resume: bool = False):
        return lambda: nl.compare(*demo, TASKS, ["gradient", "random"], output=output, resume=resume, **ASKED)

    whole, generator, start = (made.folder / "comparison.json").read_bytes(), random.Random(0), time.perf_counter()
    assert forked(work(tmp_path / "timed")) == 0
    seconds, killed = time.perf_counter() - start, 0
    for number in range(KILLS):
        output, resume = tmp_path / str(number // 2), number % 2 == 1
        killed += forked(work(output, resume), generator.uniform(0, seconds / 2)) == -signal.SIGKILL
        if resume:
            assert forked(work(output, resume=True)) == 0
            assert (output / "comparison.json").read_bytes() == whole
            assert {path.name for path in output.iterdir()} == {path.name for path in made.folder.iterdir()}
    assert killed
