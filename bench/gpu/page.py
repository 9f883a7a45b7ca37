"""docs/gpu.md, made of the committed results of runs on a GPU: what was measured where, and what was not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .folder import PASSED, newest, results
from .stages import STAGES, Stage
from .worker import ROOT

RUNS = ROOT / "bench" / "results" / "gpu"
PAGE = ROOT / "docs" / "gpu.md"
HOW = """# On a GPU

One command checks and measures everything that needs a GPU, in order of worth, within a budget of minutes:

```bash
python tools/gpu_hour.py --minutes 8 --out gpu-run       # or: make gpu
python tools/gpu_hour.py --minutes 8 --resume gpu-run    # later: goes on behind what passed
```

Nothing needs to be installed where torch, transformers and triton are there, and for the build pybind11, ninja and a
C++ compiler: the program runs from a clone, and building the extension in place is its second stage.

Each stage runs in a process of its own with a time limit, and each of its cases is written down as it ends, so that a
crash, a hang or a full memory costs one case. A stage that does not fit into what is left of the budget is named and
skipped. Exit code 0: nothing failed; 1: a stage failed. `--only` and `--from` choose stages.

What is left behind, to be taken from a machine that is given back: `results.jsonl` (a line a stage), `report.txt` (the
same for people), `failures.txt` (of every failed case the traceback, tensors, registers and spills of the kernels, the
elements that differ, and a loud rerun of the case alone), `log.txt`, and `block_sizes.json`, which
`python -m bench.tuning --apply` puts into the kernels' tables. To show a run here: copy `results.jsonl` to
`bench/results/gpu/NAME.jsonl`, then `python tools/gpu_hour.py --page`.

`python tools/gpu_hour.py --pretend --minutes 3` tries the whole program out without a GPU, at toy sizes. What it times
means nothing, and is not shown here.

## Stages

How long each is thought to take on an H200, and how that was estimated before any was seen:
"""
NOTHING = """Nothing: no run on a GPU is committed. The Triton kernels were interpreted and compiled ahead of time, the
CUDA selection was emulated and compiled, the engine ran on a pretended device; none of that is a GPU."""


def estimates(stages: Sequence[Stage]) -> list[str]:
    """One line a stage: name, title, seconds, how they were estimated.

    >>> len(estimates(STAGES)) == len(STAGES) + 1
    True
    """
    lines = [f"{stage.name:<16} {stage.title}; {stage.estimate}" for stage in stages]
    return [*lines, f"{'all':<16} {sum(stage.estimate.seconds for stage in stages):.0f} s"]


def text() -> str:
    rows = [f"| {s.name} | {s.title} | {s.estimate.seconds:.0f} s | {s.estimate.how} |" for s in STAGES]
    table = ["| stage | what | time | estimated from |", "| --- | --- | --- | --- |", *rows]
    runs = sorted(RUNS.glob("*.jsonl"))
    found = [line for path in runs for line in _run(path)] if runs else [NOTHING]
    return "\n".join([HOW, *table, "", "## Measured", "", *found, ""])


def _run(path: Path) -> list[str]:
    lines = [line for line in newest(results(path)) if not line.get("pretended")]
    facts = _facts(lines)
    where = facts.get("line", "an unnamed GPU")
    commit = facts.get("commit", {})
    when = f", commit {(commit.get('id') or 'unknown')[:12]}{' with changes' if commit.get('dirty') else ''}"
    head = [f"### {path.stem}", "", f"{where}{when}.", "", "| stage | verdict | time | figures |"]
    rows = [f"| {x['stage']} | {x['verdict']} | {x['seconds']:.0f} s | {_told(x)} |" for x in lines]
    return [*head, "| --- | --- | --- | --- |", *rows, ""]


def _facts(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    cases = [case for line in lines if line["stage"] == "machine" for case in line.get("cases", [])]
    return next((dict(case["figures"]) for case in cases if case["case"] == "facts" and "figures" in case), {})


def _told(line: dict[str, Any]) -> str:
    cases = line.get("cases", [])
    figures = [case["figures"]["line"] for case in cases if case.get("figures", {}).get("line")]
    failed = [f"**{case['case']}: {case.get('why', 'failed')}**" for case in cases if case["verdict"] not in
              (PASSED, "skipped")]  # fmt: skip
    good = sum(case["verdict"] == PASSED for case in cases)
    parts = [*failed, *figures] or [line.get("why") or f"{good} of {len(cases)} cases passed"]
    return "; ".join(parts).replace("|", "\\|").replace("\n", " ")
