"""Stage: the engine at the shape of Qwen3-30B-A3B, where memory allows."""

from __future__ import annotations

from bench.shapes import SHAPES

from .engine import Models, listed
from .estimates import parameters
from .worker import Case, Setting

SHAPE, ROUNDS, ROOM = "qwen3-30b-a3b", 2, 30 * 2**30


def cases(setting: Setting) -> list[Case]:
    room = 2 * parameters(SHAPES[SHAPE].config)["all"] + ROOM
    return listed(Models(setting, SHAPE, ROUNDS, room), judged=["gradient"])  # the judge takes its time with experts
