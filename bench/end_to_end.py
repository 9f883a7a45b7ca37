"""Suite `end_to_end`: from a file of questions to a saved neuron set, by stage, so that the next bottleneck shows.

Every run is a process of its own, as from the command line: `neuronllm attribute`, then `neuronllm find` (stages.py).
What the process took beside its stages is starting: Python, the imports, and leaving.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import neuronllm as nl

from . import plain
from .fixture import bar_for
from .harness import Bar, Benchmark, Case, Check, Comparison, Failed, Limit, Setup, Side, View, relative
from .record import ROOT
from .scaling import write_model, write_questions
from .shapes import SHAPES
from .stages import REST, STAGES

COUNT = 1000
FEW = 16  # questions of the run that is checked
FOUND = 100  # neurons of each role that `neuronllm find` chooses
WHOLE, STARTING = "whole run", "starting"
BESIDE = ("tokenising", "aggregation", "selection", "writing")
TOGETHER = "tokenising, aggregation, selection and writing"


def attribute(setup: Setup) -> Case:
    """Wall time of many questions, one prompt each, by stage."""
    shape, case = SHAPES[setup.shape], Case(sides=[], check=list, views=[], unit="question", rounds=1)
    folder = Path(case.stack.enter_context(tempfile.TemporaryDirectory()))
    write_model(shape, folder / "model", setup.seed)
    runs: dict[int, dict[str, float]] = {}

    @cache
    def measured(turn: int) -> dict[str, float]:
        file, seed = folder / f"{turn}.jsonl", setup.seed + 1 + turn
        write_questions(file, COUNT, shape, seed)
        runs[turn] = _run(folder / "model", file, folder / f"run-{turn}", setup)
        return runs[turn]

    def check() -> list[Check]:
        file = folder / "few.jsonl"
        write_questions(file, FEW, shape, setup.seed)
        _run(folder / "model", file, folder / "few", setup)
        return _checked(folder / "model", file, folder / "few", case)

    def facts(peaks: dict[str, int]) -> dict[str, Any]:
        middle = {name: statistics.median(run[name] for run in runs.values()) for name in next(iter(runs.values()))}
        rows = [[name, middle[name], middle[name] / COUNT, middle[name] / middle[WHOLE]] for name in middle]
        return {"columns": {"stage": "text", "takes": "time", "a question": "time", "share": "share"}, "rows": rows}

    for name in (WHOLE, STARTING, *STAGES, REST, TOGETHER):
        side = Side(name, lambda turn: (turn,), lambda turn, name=name: measured(turn)[name], COUNT, own_clock=True)
        case.sides.append(side)
    case.views = views(setup)
    case.check, case.facts = check, facts
    case.settings = {"model": str(shape), "questions": COUNT, "method": "gradient", "orders": "none"}
    case.notes = [
        f"{COUNT} questions of one prompt from a file, method gradient, to the {FOUND} best and worst neurons saved",
        "Hashing: the weights and the prompts, so that a run is only taken up again with the same",
    ]
    return case


def views(setup: Setup) -> list[View]:
    """What goes on beside the scoring: its share of the whole, and its time a question."""
    share, each = (bar_for(setup, {"small": Bar("<=", value)}) for value in (0.15, 0.003))
    found: list[View] = [Comparison(TOGETHER, "the whole run", WHOLE, TOGETHER, "cost", bar=share)]
    return [*found, Limit(f"{TOGETHER} of a question", TOGETHER, 1, each)] if each else found


def _run(model: Path, questions: Path, folder: Path, setup: Setup) -> dict[str, float]:
    """Seconds of a run in a process of its own, whole and by stage."""
    command = [sys.executable, "-m", "bench.stages", str(model), str(questions), str(folder)]
    command += ["--device-map", setup.device] if setup.device != "cpu" else []
    settings = {"OMP_NUM_THREADS": str(setup.threads), "PYTHONPATH": str(ROOT)}
    folder.mkdir()
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    whole = time.perf_counter() - start
    if done.returncode:
        raise Failed(f"{' '.join(command)}:\n{done.stderr}")
    return by_stage(whole, json.loads(done.stdout.splitlines()[-1]))


def by_stage(whole: float, stages: dict[str, float]) -> dict[str, float]:
    """The whole, what of it is in no stage, the stages, and those beside the scoring together."""
    together = sum(stages[name] for name in BESIDE)
    return {WHOLE: whole, STARTING: whole - sum(stages.values())} | stages | {TOGETHER: together}


def _checked(model: Path, questions: Path, folder: Path, case: Case) -> list[Check]:
    """The saved scores against plain gradients, the saved set against a full sort."""
    loaded, tokenizer = nl.load_model(model)
    prompts = nl.render(tokenizer, nl.load_questions(questions), "none")
    case.settings["tokens"] = len(prompts[0].input_ids)
    rows = plain.gradient(loaded, *plain.tensors(prompts, "cpu"), batch=4)
    values, mean = nl.Scores.load(folder / "scores").values, rows.double().mean(0)
    found = nl.NeuronSet.from_pretrained(folder / "neurons").ids.tolist()
    order = values.argsort(stable=True).tolist()
    right = [n for n in order[::-1] if values[n] > 0][:FOUND] + [n for n in order if values[n] < 0][:FOUND]
    return [
        Check("grad x act: relative difference from the plain way", relative(values, mean), 1e-4),
        Check("neurons that a full sort chooses otherwise", float(len(set(found) ^ set(right))), 0),
    ]


BENCHMARKS = [
    Benchmark(
        "end_to_end.attribute",
        "from a file of questions to a saved neuron set",
        attribute,
        {"cpu": ("small",), "cuda": ("small",)},
        quick=False,
    )
]
