"""Stage: block sizes for this GPU, found within a share of the time for each op, and written to block_sizes.json.

`python -m bench.tuning --apply block_sizes.json` puts them into kernels/<op>/configs.json.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch

from bench.harness import Setup
from bench.kernels import WORKS
from bench.tuning import Entry, tune, verdict

from .worker import Case, Setting

SECONDS = 25.0  # an op
FILE = "block_sizes.json"


def cases(setting: Setting) -> list[Case]:
    return [Case(op, lambda op=op: tuned(op, setting)) for op in WORKS]


def tuned(op: str, setting: Setting) -> dict[str, Any]:
    few = bool(setting.pretend)
    setup = Setup(setting.device, 1, "toy" if few else "llama-2-7b")
    name = "the interpreter" if few else torch.cuda.get_device_name()
    works = [work(setup) for work in WORKS[op]]
    best, tried = tune(op, works, setup, few, 2.0 if few else SECONDS)
    keep(setting, Entry(op, name, best, False, "not compared with torch yet"))  # which may take long, or fail
    wins, told = verdict(works, setup, best, few)
    keep(setting, Entry(op, name, best, wins, told))
    return {"tried": tried, "best": best, "wins": wins, "line": f"{op} {'wins' if wins else 'does not win'} ({told})"}


def keep(setting: Setting, entry: Entry) -> None:
    path = setting.scratch(FILE)
    entries = json.loads(path.read_text("utf-8")) if path.exists() else []
    entries = [old for old in entries if old["op"] != entry.op] + [dataclasses.asdict(entry)]
    path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
