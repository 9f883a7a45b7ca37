"""python -m bench list | run NAME... | report, also as neuronllm bench ..."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neuronllm.cli.main import set_waiting
from neuronllm.common.errors import InputError

from .arguments import PEAK, check_device, check_numbers, check_output, parser

if TYPE_CHECKING:
    from .harness import Benchmark, Setup

set_waiting()  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench") -> int:
    args = parser(prog).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    try:
        return {"list": _list, "run": _run, "report": _report, PEAK: _peak}[args.command](args)
    except InputError as error:
        print(f"{prog} {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def _list(args: argparse.Namespace) -> int:
    from .suites import ALL

    for bench in ALL.values():
        shapes = "; ".join(f"{device}: {', '.join(names)}" for device, names in bench.shapes.items())
        print(f"{bench.name:<24} {bench.title}{'' if bench.quick else ' (not in quick)'}  [{shapes}]")
    return 0


def _run(args: argparse.Namespace) -> int:
    from .harness import CannotRun, Failed, WrongResult
    from .record import file_name, write
    from .report import as_text
    from .suites import check_shapes, chosen

    benches = chosen(args.names)
    check_numbers(args.threads or (), args.seed, args.rounds)
    check_device(args.device)
    check_shapes(benches, args.shape or ())
    check_output(args.output)
    planned, left = _planned(benches, args)
    done = wrong = failed = 0
    began = time.monotonic()
    for number, (bench, setup) in enumerate(planned, 1):
        name = f"{bench.name}, {setup.shape}, {setup.threads} thread{'s' if setup.threads > 1 else ''}"
        _tell(f"{name} ({number} of {len(planned)}): checking")
        try:
            result, lost = _measured(bench, setup, peaks=not args.no_peaks)
        except WrongResult as error:
            _tell(f"{name}: {error}")
            wrong += 1
            continue
        except CannotRun as error:
            _tell(f"{name}: left out, {error}")
            left += 1
            continue
        except Exception as error:  # noqa: BLE001 - whatever it is, the others still run
            _tell(f"{name}: failed, {str(error) or type(error).__name__}")
            if not isinstance(error, (Failed, InputError, MemoryError)):  # a mistake of the benchmark, or worse
                traceback.print_exc()
            failed += 1
            continue
        write(args.output, file_name(bench.name, setup), result)
        print(as_text(result), flush=True)
        done += 1
        failed += bool(lost)
    minutes = (time.monotonic() - began) / 60
    _tell(f"{done} measured, {left} left out, {wrong} wrong, {failed} failed; {minutes:.1f} minutes")
    return 1 if wrong or failed or not done else 0


def _tell(line: str) -> None:
    """How far a run is: beside what it finds, which goes to stdout."""
    print(line, file=sys.stderr, flush=True)


def _planned(benches: Sequence[Benchmark], args: argparse.Namespace) -> tuple[list[tuple[Benchmark, Setup]], int]:
    """What to run in which setup, and how many benchmarks have nothing to run on this device."""
    from .harness import Setup

    planned, left, kind = [], 0, args.device.split(":")[0]
    for bench in benches:
        there = bench.shapes.get(kind, ())
        shapes = args.shape or there
        if not shapes or (kind == "cuda" and not there):  # what is for a GPU can be tried on a CPU, not the other way
            _tell(f"{bench.name}: left out, runs on {' and '.join(bench.shapes)} only")
            left += 1
            continue
        for shape in dict.fromkeys(shapes):
            counts = bench.threads if kind == "cpu" else bench.threads[:1]  # a GPU is one place
            for threads in dict.fromkeys(args.threads or counts):
                planned.append((bench, Setup(args.device, threads, shape, args.rounds, args.seed)))
    return planned, left


def _measured(bench: Benchmark, setup: Setup, peaks: bool = True) -> tuple[dict[str, Any], list[str]]:
    """The result, and the sides whose peak memory should be in it and could not be measured."""
    import torch

    from .harness import CannotRun, run_case
    from .record import ROOT, stamp, start

    torch.set_num_threads(setup.threads)
    began = start()
    case = bench.build(setup)
    if not peaks:
        case.peaks = []
        if not case.timed and not case.facts:
            case.let_go()
            raise CannotRun("it measures nothing but peaks, which --no-peaks leaves out")
    lost: list[str] = []

    def peak_of(side: str) -> dict[str, int]:
        """What was timed is kept where this fails."""
        options = [f"--{name}={getattr(setup, name)}" for name in ("threads", "shape", "device", "seed")]
        command = [sys.executable, "-m", "bench", PEAK, bench.name, side, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            _tell(f"... memory of {side}: failed, {' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
            lost.append(side)
            case.notes.append(f"The memory of {side!r} could not be measured")
            return {}
        return dict(json.loads(done.stdout.splitlines()[-1]))

    try:
        figures = run_case(case, setup, peak_of, lambda step: _tell(f"... {step}"))
    finally:
        case.let_go()  # what comes next finds the device free
    return stamp(bench, setup, began) | figures, lost


def _peak(args: argparse.Namespace) -> int:
    import torch

    from neuronllm.engine.memory import peak_memory

    from .harness import CannotRun, Choice, Setup
    from .suites import check_shapes, one

    bench = one(args.name)
    check_numbers([args.threads], args.seed)
    check_device(args.device)
    check_shapes([bench], [args.shape])
    torch.set_num_threads(args.threads)
    try:
        case = bench.build(Setup(args.device, args.threads, args.shape, None, args.seed))
    except CannotRun as error:
        _tell(f"{bench.name}: left out, {error}")
        return 1
    with case.stack:
        sides = {side.name: side for side in case.sides if not isinstance(side, Choice)}  # a choice is several
        if args.side not in sides:
            raise InputError(f"no side called {args.side!r}; {bench.name} has {'; '.join(sides) or 'none'}")
        side = sides[args.side]
        inputs = side.inputs(0)
        if args.device != "cpu":  # libraries of a GPU keep workspace from their first call on
            side.run(*inputs)
        found = {"peak": peak_memory(lambda: side.run(*inputs), args.device)}
    print(json.dumps(found))
    return 0


def _report(args: argparse.Namespace) -> int:
    from . import plots
    from .pages import PAGES
    from .record import RESULTS, ROOT, read

    if args.input:
        return _printed(args)
    results, images = read(RESULTS), ROOT / "docs" / plots.FOLDER
    pages = {ROOT / "docs" / name: page(results) for name, page in PAGES.items()}
    if args.check:
        old = [path.name for path, text in pages.items() if not path.exists() or path.read_text("utf-8") != text]
        old += plots.stale(results, images)
        print(
            f"NOT what the JSON files say: {', '.join(old)}" if old else "the pages and their pictures are up to date"
        )
        return 1 if old else 0
    changed = plots.write(results, images)
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    names = " and ".join(f"docs/{path.name}" for path in pages)
    print(f"wrote {names}, {len(changed)} pictures in docs/{plots.FOLDER} changed")
    return 0


def _printed(args: argparse.Namespace) -> int:
    """The pages of other results than those of the documentation: on stdout, as no picture is drawn for them."""
    from .pages import PAGES
    from .record import read

    if args.check:
        raise InputError("--check is about the pages in docs/: leave --input out")
    if not args.input.is_dir():
        what = "it is a file" if args.input.exists() else "no such folder"
        raise InputError(f"--input {args.input}: {what}; give the folder that a run wrote JSON to")
    results = read(args.input)
    if not results:
        raise InputError(f"--input {args.input}: no JSON files there; give a folder that a run wrote to")
    print("\n".join(text for page in PAGES.values() if (text := page(results)) != page([])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
