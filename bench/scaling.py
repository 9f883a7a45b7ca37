"""Suite `scaling`: time against prompts, their length, layers, options, steps of the integral, and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import neuronllm as nl
from neuronllm.engine.quadrature import quadrature

from . import plain
from .fixture import OBJECTIVE, Bench
from .harness import Bar, Benchmark, Case, Check, Comparison, Failed, Series, Setup, Side, relative
from .record import ROOT
from .shapes import SHAPES, Shape, random_model

STEPS = (4, 8, 16, 32)
COUNTS = {"gradient": (16, 64, 256, 1024, 4096, 16_384), "ace": (16, 64, 256, 1024, 4096)}
LENGTHS, LAYERS, OPTIONS = (64, 128, 256, 512, 1024, 2048), (2, 4, 8, 16), (2, 4, 8, 16, 26)
FEW, MORE = 8, 40  # questions of the two runs whose difference leaves the start-up out


def steps(setup: Setup) -> Case:
    """Time of integrated gradients against the number of steps."""
    count = 4
    bench = Bench(setup, prompts=count, dense=True)

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
    few = min(COUNTS["gradient"])
    bench = Bench(setup, prompts=few, dense=True)

    def whole(prompts: list[nl.Prompt], method: str, backend: str = "fast") -> Tensor:
        return nl.attribute(
            bench.model, None, prompts, method, positions="answer", backend=backend, progress=False
        ).values

    def check() -> list[Check]:
        """The mean that a run keeps is that of plain gradients; ACE is what the reference engine makes of it."""
        asked = bench.prompts(1, few)
        rows = plain.gradient(bench.plain, *bench.tensors(1, few), batch=8)
        difference = relative(whole(asked, "gradient"), rows.double().mean(0))
        contrast = relative(whole(asked, "ace"), whole(asked, "ace", "reference"))
        return [
            Check("mean of grad x act: relative difference", difference, 1e-4),
            Check("ace: relative difference from the reference", contrast, 1e-4),
        ]

    bench.case.check = check
    for method, counts in COUNTS.items():
        run = partial(whole, method=method)
        sides = [bench.ours(f"{method}, {n}", run, n, times=5 if n < 100 else 1) for n in counts]
        points = [(float(n), side.name) for n, side in zip(counts, sides, strict=True)]
        bench.case.sides += sides
        bench.case.views.append(Series(f"{method}, all of nl.attribute, against prompts", "prompts", points, flat=True))
        if method == "gradient":
            bench.case.peaks += [side.name for side in sides]
    bench.case.settings = bench.settings(prompts=COUNTS["gradient"])
    return bench.case


def tokens(setup: Setup) -> Case:
    """Time of a few prompts against their length."""
    first = _variant(setup, 4, tokens=LENGTHS[0])
    benches = {LENGTHS[0]: first} | {n: _variant(setup, 4, first, tokens=n) for n in LENGTHS[1:]}
    return _grown(benches, "tokens a prompt")


def layers(setup: Setup) -> Case:
    """Time of a batch of prompts against the layers of the model."""
    config = SHAPES[setup.shape].config
    return _grown({n: _variant(setup, config=config | {"num_hidden_layers": n}) for n in LAYERS}, "layers")


def options(setup: Setup) -> Case:
    """Time of a batch of prompts against the options of a question."""
    first = _variant(setup, options=OPTIONS[0])
    benches = {OPTIONS[0]: first} | {n: _variant(setup, None, first, options=n) for n in OPTIONS[1:]}
    each = {"gradients of every option": lambda bench, prompts: bench.engine.option_gradients(prompts)}
    case, last = _grown(benches, "options", each), benches[OPTIONS[-1]]
    others = case.check

    def check() -> list[Check]:
        """The gradient of the objective is a sum of those of the options' scores."""
        ids, choices, answers = last.tensors(1, 1)
        shares = plain.inference(last.plain, ids, 1).gather(1, choices).softmax(-1)
        slopes = functional.one_hot(answers, OPTIONS[-1]) - shares
        found = (slopes[..., None].cpu() * last.engine.option_gradients(last.prompts(1, 1)).cpu()).sum(1)
        right = plain.gradient(last.plain, ids, choices, answers, batch=1).cpu()
        return [*others(), Check("gradients of every option: relative difference", relative(found, right), 1e-4)]

    case.check = check
    return case


def _variant(setup: Setup, prompts: int | None = None, beside: Bench | None = None, **changed: Any) -> Bench:
    return Bench(setup, prompts, shape=replace(SHAPES[setup.shape], **changed), beside=beside, dense=True)


Run = Callable[[Bench, list[nl.Prompt]], Tensor]


def _grown(benches: dict[int, Bench], x: str, more: dict[str, Run] | None = None) -> Case:
    """Inference, gradients and integrated gradients (and more) of the same prompts, at every size of x."""
    smallest, *_, largest = benches
    first = benches[smallest]
    case, count = first.case, first.count
    case.sides, case.check, case.views = [], partial(_grown_checks, benches, x), []
    rule = quadrature("midpoint", 16)
    runs: dict[str, Run] = {
        "grad x act": lambda bench, prompts: bench.engine.gradients(prompts, OBJECTIVE),
        "IG, 16 steps": lambda bench, prompts: bench.engine.integrate(prompts, OBJECTIVE, *rule),
    }
    sides: dict[str, list[Side]] = {
        "inference": [b.inference(f"inference, {n}", count, count) for n, b in benches.items()]
    }
    for name, run in (runs | (more or {})).items():
        sides[name] = [b.ours(f"{name}, {n}", partial(run, b), count) for n, b in benches.items()]
    for bench in benches.values():
        if bench.case is not case:  # of another model: closed with the first
            case.stack.push(bench.case.stack.pop_all())
    for name, some in sides.items():
        case.sides += some
        points = [(float(n), side.name) for n, side in zip(benches, some, strict=True)]
        case.views.append(Series(f"{name}, {count} prompts, against {x}", x, points))
    for n in (smallest, largest):
        for name in list(sides)[1:]:
            what = f"{name}, {n:,} {x}"
            case.views.append(Comparison(what, "inference", f"inference, {n}", f"{name}, {n}", "cost"))
    case.settings = first.settings(**{"sizes": list(benches), "of": x})
    case.notes = [f"Inference: no_grad, sdpa, logits of the last position, no cache, {count} prompts in a batch"]
    return case


def _grown_checks(benches: dict[int, Bench], x: str) -> list[Check]:
    """Gradients at every size; integrated gradients, which are dear by hand, at the smallest."""
    checks = []
    for n, bench in benches.items():

        def by_engine(prompts: list[nl.Prompt], engine: Any = None, bench: Bench = bench) -> Tensor:
            return (engine or bench.engine).gradients(prompts, OBJECTIVE)

        by_hand = partial(plain.gradient, bench.plain, batch=1)
        checks += bench.agreement(f"grad x act, {n} {x}", by_engine, by_hand, count=1)
    smallest = min(benches)
    bench = benches[smallest]

    def integrated(prompts: list[nl.Prompt], engine: Any = None) -> Tensor:
        return (engine or bench.engine).integrate(prompts, OBJECTIVE, *quadrature("midpoint", 4))

    by_hand = partial(plain.integrated_gradients, bench.plain, steps=4)
    return checks + bench.agreement(f"IG, {smallest} {x}", integrated, by_hand, count=1)


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
        command = [
            sys.executable,
            "-m",
            *(launcher if processes > 1 else ["neuronllm"]),
            "attribute",
            "--quiet",
            "--overwrite",
            "--method",
            "ace",
        ]
        command += ["--model", str(folder / "model"), "--questions", str(file), "--output", str(folder / output)]
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise Failed(f"{' '.join(command)}:\n{done.stderr}")
        return seconds

    def difference(turn: int, processes: int) -> float:
        place = f"{processes}-{turn}"
        longer = attribute(processes, MORE, f"more-{place}", turn)
        seconds = longer - attribute(processes, FEW, f"few-{place}", turn)
        if seconds <= 0:
            raise Failed(f"{MORE} questions took no longer than {FEW}: the model is too small to be timed so")
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


SMALL = {"cpu": ("small",), "cuda": ("llama-2-7b",)}
NARROW = {"cpu": ("narrow",), "cuda": ("small",)}  # small enough for thousands of prompts
BENCHMARKS = [
    Benchmark("scaling.steps", "time against steps", steps, SMALL),
    Benchmark("scaling.prompts", "time against prompts", prompts, NARROW, quick=False),
    Benchmark("scaling.tokens", "time against the length of prompts", tokens, SMALL, quick=False),
    Benchmark("scaling.layers", "time against layers", layers, NARROW, quick=False),
    Benchmark("scaling.options", "time against options", options, NARROW, quick=False),
    Benchmark("scaling.ranks", "several processes", ranks, {"cpu": ("small",)}, quick=False),
]
