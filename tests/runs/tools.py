"""What a run can keep, and helpers for looking at what it left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuronllm.methods import METHODS
from tests.checks import Fuse

KEEPS = ("mean", "topk", "all")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def in_window(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Let something happen in the window of that number, before its scores are there."""
    count, before = iter(range(10**9)), {name: METHODS[name].score for name in ("ace", "gradient")}

    def acting(score: Any) -> Any:
        def act_and_score(*args: Any) -> Any:
            if next(count) == number:
                act()
            return score(*args)

        return act_and_score

    try:
        for name, score in before.items():
            METHODS[name].score = acting(score)
        yield
    finally:
        for name, score in before.items():
            METHODS[name].score = score


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fail() -> None:
    raise Fuse
