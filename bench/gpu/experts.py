"""Stage: the engine at the shape of Qwen3-30B-A3B, where memory allows."""

from __future__ import annotations

import torch

from bench.shapes import SHAPES

from .engine import Models, listed
from .estimates import parameters
from .worker import Case, Setting, Skipped

SHAPE, ROUNDS, ROOM = "qwen3-30b-a3b", 2, 30 * 2**30


def cases(setting: Setting) -> list[Case]:
    models = Models(setting, SHAPE, ROUNDS)
    first, *rest = listed(models, judged=["gradient"])  # experts one by one take the judge too long for more

    def make() -> dict[str, object]:
        needed = 2 * parameters(SHAPES[SHAPE].config)["all"] + ROOM
        free, _ = torch.cuda.mem_get_info()
        if not setting.pretend and free < needed:
            raise Skipped(f"the device has {free / 2**30:.0f} GiB free, {needed / 2**30:.0f} are needed")
        return models.make()

    return [Case(first.name, make), *rest]
