"""Suite `scaling`: time against steps of the integral, against the number of prompts, against processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.engine.quadrature import quadrature

from . import plain
from .fixture import OBJECTIVE, Bench
from .harness import Bar, Benchmark, Case, Check, Comparison, Series, Setup, Side, relative
from .record import ROOT
from .shapes import SHAPES, Shape, random_model

STEPS = (4, 8, 16, 32)
COUNTS = (16, 64, 256, 1024, 4096)
FEW, MORE = 8, 40  # questions of the two runs whose difference leaves the start-up out


def steps(setup: Setup) -> Case:
    """Time of integrated gradients against the number of steps."""
    count = 4
    bench = Bench(setup, prompts=count)

    def ours(prompts: list[nl.Prompt], n: int = 16, engine: Any = None) -> Tensor:
        return (engine or bench.engine).integrate(prompts, OBJECTIVE, *quadrature("midpoint", n))

    def by_hand(ids: Tensor, options: Tensor, answers: Tensor) -> Tensor:
        return plain.integrated_gradients(bench.plain, ids, options, answers, STEPS[0])

    def check() -> list[Check]:
        return bench.agreement("IG", partial(_swapped, partial(ours, n=STEPS[0])), by_hand, count=1)

    sides = [bench.ours(f"{n} steps", partial(ours, n=n), count, times=2) for n in STEPS]
    bench.case.sides, bench.case.check = [*sides], check
    points = [(float(n), side.name) for n, side in zip(STEPS, sides, strict=True)]
    bench.case.views = [Series(f"IG of all neurons, {count} prompts, against steps", "steps", points)]
    bench.case.settings = bench.settings(steps=STEPS)
    return bench.case


def _swapped(run: Any, prompts: list[nl.Prompt], engine: Any = None) -> Tensor:
    return run(prompts, engine=engine)


def prompts(setup: Setup) -> Case:
    """Time a prompt of whole runs that keep the mean, against the number of prompts; peak memory beside it."""
    bench = Bench(setup, prompts=COUNTS[0])

    def whole(prompts: list[nl.Prompt], method: str) -> Tensor:
        return nl.attribute(bench.model, None, prompts, method, progress=False).values

    def check() -> list[Check]:
        """The mean that a run keeps is that of plain gradients."""
        rows = plain.gradient(bench.plain, *bench.tensors(1, COUNTS[0]), batch=8)
        found = whole(bench.prompts(1, COUNTS[0]), "gradient")
        return [Check("mean of grad x act: relative difference", relative(found, rows.double().mean(0)), 1e-4)]

    bench.case.check = check
    for method in ("gradient", "ace"):
        run = partial(whole, method=method)
        sides = [bench.ours(f"{method}, {n}", run, n, times=5 if n < 100 else 1) for n in COUNTS]
        points = [(float(n), side.name) for n, side in zip(COUNTS, sides, strict=True)]
        bench.case.sides += sides
        bench.case.views.append(Series(f"{method}, all of nl.attribute, against prompts", "prompts", points, flat=True))
        if method == "gradient":
            bench.case.peaks += [side.name for side in sides]
    bench.case.settings = bench.settings(prompts=COUNTS)
    return bench.case


def ranks(setup: Setup) -> Case:
    """Questions per second of two processes beside one, one thread each.

    Every measurement is the difference of a longer and a shorter run, so that starting up is not in it.
    """
    shape = SHAPES[setup.shape]
    case = Case(sides=[], check=list, views=[])
    folder = Path(case.stack.enter_context(tempfile.TemporaryDirectory()))
    write_model(shape, folder / "model", setup.seed)

    def attribute(processes: int, questions: int, output: str, seed: int) -> float:
        """Seconds of a run of the command line."""
        file = folder / "questions.jsonl"
        write_questions(file, questions, shape, seed)
        launcher = ["torch.distributed.run", "--nproc-per-node", str(processes), "-m", "neuronllm"]
        command = [sys.executable, "-m", *(launcher if processes > 1 else ["neuronllm"]), "attribute", "--quiet"]
        command += ["--model", str(folder / "model"), "--questions", str(file), "--output", str(folder / output)]
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        return seconds

    def difference(turn: int, processes: int) -> float:
        place = f"{processes}-{turn}"
        longer = attribute(processes, MORE, f"more-{place}", turn)
        seconds = longer - attribute(processes, FEW, f"few-{place}", turn)
        if seconds <= 0:
            raise RuntimeError(f"{MORE} questions took no longer than {FEW}: the model is too small to be timed so")
        return seconds

    def check() -> list[Check]:
        values = []
        for processes in (1, 2):
            attribute(processes, FEW, f"check-{processes}", 0)
            values.append(nl.Scores.load(folder / f"check-{processes}").values)
        return [Check("two processes: relative difference from one", relative(values[1], values[0]), 1e-6)]

    for processes, name in ((1, "one process"), (2, "two processes")):
        run = partial(difference, processes=processes)
        case.sides.append(Side(name, lambda turn: (turn + 1,), run, work=MORE - FEW, own_clock=True))
    bar = Bar(">=", 1.7)
    case.views = [
        Comparison("ace, two processes of one thread each", "one process", "one process", "two processes", bar=bar)
    ]
    case.check, case.unit = check, "question"
    case.settings = {"model": str(shape), "questions": [FEW, MORE]}
    case.notes = ["Each time is that of a longer run less that of a shorter one, so that starting up is left out"]
    return case


def write_model(shape: Shape, folder: Path, seed: int) -> None:
    """A random model with a tokenizer of words, as `--model` takes it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = ["<pad>", "<unk>", *"ABCDEFGH", ".", ":", "?", ",", "Question", "Answer", "answer", "the", "question"]
    names = known + [f"w{n}" for n in range(shape.config["vocab_size"] - len(known))]
    words = models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    random_model(shape, seed=seed).save_pretrained(folder)


def write_questions(file: Path, count: int, shape: Shape, seed: int) -> None:
    """Questions of random words, about as long as the shape's prompts when they are rendered."""
    draw = torch.Generator().manual_seed(seed)
    a_choice = max(1, shape.tokens // 12)

    def words(length: int) -> str:
        return " ".join(
            f"w{n}" for n in torch.randint(shape.config["vocab_size"] // 2, (length,), generator=draw).tolist()
        )

    lines = []
    for n in range(count):
        choices = [f"{words(a_choice)} w{k}" for k in range(4)]
        answer = int(torch.randint(4, (1,), generator=draw))
        asked = {"id": str(n), "question": words(shape.tokens // 2), "choices": choices, "answer": answer}
        lines.append(json.dumps(asked) + "\n")
    file.write_text("".join(lines), encoding="utf-8")


BENCHMARKS = [
    Benchmark("scaling.steps", "time against steps", steps, {"cpu": ("small",), "cuda": ("llama-2-7b",)}),
    Benchmark(
        "scaling.prompts", "time against prompts", prompts, {"cpu": ("narrow",), "cuda": ("small",)}, quick=False
    ),
    Benchmark("scaling.ranks", "several processes", ranks, {"cpu": ("small",)}, quick=False),
]
