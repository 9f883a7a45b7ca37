"""python -m bench list | run NAME... | report, also as neuronllm bench ..."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuronllm.cli import set_waiting
from neuronllm.errors import InputError

set_waiting()  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PEAK = "peak"  # the command by which a run measures a side's memory in a process of its own


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench") -> int:
    args = _parser(prog).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    try:
        return {"list": _list, "run": _run, "report": _report, PEAK: _peak}[args.command](args)
    except InputError as error:
        print(f"{prog} {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Benchmarks: checked first, then timed.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the benchmarks, by suite")
    run = commands.add_parser("run", help="run benchmarks, suites, quick or all")
    run.add_argument("names", nargs="+", metavar="NAME")
    run.add_argument(
        "--threads", nargs="+", type=int, help="numbers of threads, one by one (default: the benchmark's own)"
    )
    run.add_argument("--shape", nargs="+", help="models by name, see bench/shapes.py (default: the benchmark's own)")
    run.add_argument("--rounds", type=int, help="rounds of timing (default: the benchmark's own)")
    run.add_argument("--no-peaks", action="store_true", help="leave peak memory out")
    report = commands.add_parser("report", help="write the pages of docs/ from the JSON files")
    report.add_argument("--check", action="store_true", help="only say whether they are up to date")
    peak = commands.add_parser(PEAK)
    peak.add_argument("name")
    peak.add_argument("side")
    peak.add_argument("--threads", type=int, default=1)
    peak.add_argument("--shape", default="small")
    for command in (run, peak):
        command.add_argument("--device", default="cpu", help="cpu or cuda")
        command.add_argument("--seed", type=int, default=0)
    default = Path(".benchmarks")  # ignored by git: results are committed on purpose only
    run.add_argument("--output", type=Path, default=default, help="folder for the JSON files (default: .benchmarks)")
    return parser


def _list(args: argparse.Namespace) -> int:
    from .suites import ALL

    for bench in ALL.values():
        shapes = "; ".join(f"{device}: {', '.join(names)}" for device, names in bench.shapes.items())
        print(f"{bench.name:<24} {bench.title}{'' if bench.quick else ' (not in quick)'}  [{shapes}]")
    return 0


def _run(args: argparse.Namespace) -> int:
    from .harness import CannotRun, Setup, WrongResult
    from .record import file_name, write
    from .report import as_text
    from .suites import check_shapes, chosen

    check_shapes(args.shape or ())
    failed = 0
    for bench in chosen(args.names):
        for shape in args.shape or bench.shapes.get(args.device.split(":")[0], ()):
            for threads in args.threads or bench.threads:
                setup = Setup(args.device, threads, shape, args.rounds, args.seed)
                try:
                    result = _measured(bench, setup, peaks=not args.no_peaks)
                except WrongResult as error:
                    print(f"{bench.name}, {shape}, {threads} threads: {error}", file=sys.stderr)
                    failed += 1
                    continue
                except CannotRun as error:
                    print(f"{bench.name}: left out, {error}", file=sys.stderr)
                    continue
                write(args.output, file_name(bench.name, setup), result)
                print(as_text(result), flush=True)
    return 1 if failed else 0


def _measured(bench: Any, setup: Any, peaks: bool = True) -> dict[str, Any]:
    import torch

    from .harness import run_case
    from .record import ROOT, commit, stamp

    torch.set_num_threads(setup.threads)
    load, head = os.getloadavg()[0], commit()  # before a long run, during which the tree may move on
    case = bench.build(setup)
    if not peaks:
        case.peaks = []

    def peak_of(side: str) -> dict[str, int]:
        options = [f"--{name}={getattr(setup, name)}" for name in ("threads", "shape", "device", "seed")]
        command = [sys.executable, "-m", "bench", PEAK, bench.name, side, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        return dict(json.loads(done.stdout.splitlines()[-1]))

    with case.stack:
        figures = run_case(case, setup, peak_of)
    return stamp(bench, setup, load, head) | figures


def _peak(args: argparse.Namespace) -> int:
    import torch

    from neuronllm.engine.memory import peak_memory

    from .harness import Choice, Setup
    from .suites import ALL

    torch.set_num_threads(args.threads)
    setup = Setup(args.device, args.threads, args.shape, None, args.seed)
    case = ALL[args.name].build(setup)
    with case.stack:
        (side,) = (side for side in case.sides if side.name == args.side)
        if isinstance(side, Choice):
            raise SystemExit(f"bench: {side.name} is a choice of several sides, name one of them")
        inputs = side.inputs(0)
        found = {"peak": peak_memory(lambda: side.run(*inputs), args.device)}
    print(json.dumps(found))
    return 0


def _report(args: argparse.Namespace) -> int:
    from . import plots
    from .record import RESULTS, ROOT, read
    from .suites import PAGES

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


if __name__ == "__main__":
    sys.exit(main())
