"""Runs that are killed with SIGKILL and taken up again: `python -m tests.killing 20` does it at 20 random moments.

The run happens in a forked process, which has torch and the model at once. It is killed after a while (`delay`), or in
front of its n-th change of the disk (`step`).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from neuronllm.engine.base import Engine
from neuronllm.runs import checkpoint
from tests.checks import quiz
from tests.tiny import tiny

DISK = [(os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "replace"), (os, "unlink")]
METHOD = {"mean": "ace", "topk": "gradient", "all": "gradient"}


def run(
    model: Any,
    output: Path,
    keep: str = "all",
    questions: int = 8,
    every: int = 4,
    prompts: Sequence[Prompt] = (),
    **more: Any,
) -> nl.Scores:
    """A short run with many windows, parts and states, on letters where no prompts are given."""
    before, checkpoint.EVERY = checkpoint.EVERY, every
    at_once, Engine.at_once = Engine.at_once, property(lambda engine: 2)
    options = {"steps": 2} if METHOD[keep] == "ace" else {}
    try:
        return nl.attribute(
            model,
            None,
            prompts or quiz(questions),
            METHOD[keep],
            positions="answer",
            keep=keep,
            k=3,
            batch_size=2,
            progress=False,
            output=output,
            **options,
            **more,
        )
    finally:
        checkpoint.EVERY, Engine.at_once = before, at_once


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def forked(work: Callable[[], object], delay: float | None = None) -> int:
    """Do the work in a process of its own, kill it after `delay` seconds; its exit code."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    if delay is not None:
        time.sleep(delay)
        child.kill()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def changes(work: Callable[[], object]) -> int:
    """How often the work changes the disk."""
    left = multiprocessing.Value("i", 10**6)
    assert forked(_dying(left, work)) == 0
    return 10**6 - left.value


def dying_at(step: int, work: Callable[[], object]) -> Callable[[], object]:
    """The work, killed in front of its change of the disk number `step`."""
    return _dying(multiprocessing.Value("i", step), work)


def _dying(left: Any, work: Callable[[], object]) -> Callable[[], object]:

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def call_or_die(*args: Any, **keywords: Any) -> Any:
            left.value -= 1
            if left.value < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **keywords)

        return call_or_die

    def work_or_die() -> object:
        for module, name in DISK:
            setattr(module, name, counted(getattr(module, name)))
        return work()

    return work_or_die


def main(kills: int) -> None:
    torch.set_num_threads(1)  # a forked process has no other threads, and would wait for them
    model, generator = tiny("llama"), random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        run(model, Path(folder) / "first", questions=1)  # whatever is loaded at first use, the forked find loaded
        whole = Path(folder) / "whole" / "scores"
        start = time.perf_counter()
        assert forked(lambda: run(model, whole, questions=24)) == 0
        seconds, killed = time.perf_counter() - start, 0
        for number in range(kills):
            output = Path(folder) / f"{number}" / "scores"
            delay = generator.uniform(0, seconds)
            killed += forked(lambda output=output: run(model, output, questions=24), delay) == -signal.SIGKILL
            found = sorted(str(path.relative_to(output.parent)) for path in output.parent.rglob("*"))
            assert forked(lambda output=output: run(model, output, questions=24, resume=True)) == 0
            assert content(output.parent) == content(whole.parent), delay
            print(f"killed after {delay:.3f} s with {len(found)} files there: resumed, all bytes equal", flush=True)
        print(f"{kills} runs, {killed} killed before their end, {len(content(whole.parent))} files each")


if __name__ == "__main__":
    main(int(sys.argv[1]))
