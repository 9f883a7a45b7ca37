"""The flags of `python -m bench`, and what is wrong with them, found before anything is built or measured."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from neuronllm.common.errors import InputError

PEAK = "peak"  # the command by which a run measures a side's memory in a process of its own
SEEDS = 2**32
THREADS = 64  # more, on a machine of fewer cores, is a slip of the hand


class Parser(argparse.ArgumentParser):
    """Bad flags get one line too; --help shows the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help lists the flags)\n")


def parser(prog: str) -> argparse.ArgumentParser:
    """The flags of every command.

    >>> parser("bench").parse_args(["run", "quick", "--threads", "1", "2"]).threads
    [1, 2]
    """
    whole = Parser(prog=prog, description="Benchmarks: checked first, then timed.")
    commands = whole.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the benchmarks, by suite")
    run = commands.add_parser("run", help="run benchmarks, suites, quick or all")
    run.add_argument("names", nargs="+", metavar="NAME")
    run.add_argument(
        "--threads", nargs="+", type=int, help="numbers of threads, one by one (default: the benchmark's own)"
    )
    run.add_argument(
        "--shape", nargs="+", help="models (bench/shapes.py) or arrays by name (default: the benchmark's own)"
    )
    run.add_argument(
        "--rounds",
        type=int,
        help="rounds of timing, quick sides run several times in each (default: the benchmark's own)",
    )
    run.add_argument("--no-peaks", action="store_true", help="leave peak memory out")
    report = commands.add_parser("report", help="write the pages of docs/ from the JSON files")
    report.add_argument("--check", action="store_true", help="only say whether they are up to date")
    report.add_argument(
        "--input", type=Path, metavar="FOLDER", help="print the pages of JSON in another folder, write nothing"
    )
    peak = commands.add_parser(PEAK, help="peak memory of one side, as a run measures it")
    peak.add_argument("name")
    peak.add_argument("side")
    peak.add_argument("--threads", type=int, default=1)
    peak.add_argument("--shape", default="small")
    for command in (run, peak):
        command.add_argument("--device", default="cpu", help="cpu or cuda")
        command.add_argument("--seed", type=int, default=0)
    default = Path(".benchmarks")  # ignored by git: results are committed on purpose only
    run.add_argument("--output", type=Path, default=default, help="folder for the JSON files (default: .benchmarks)")
    return whole


def check_numbers(threads: Sequence[int], seed: int, rounds: int | None = None) -> None:
    """Refuse numbers that mean nothing.

    >>> check_numbers([1, 2], seed=0, rounds=3)
    """
    for name, count in [("threads", n) for n in threads] + ([] if rounds is None else [("rounds", rounds)]):
        if count < 1:
            raise InputError(f"--{name} {count}: give a number of at least 1")
    most = max(THREADS, os.cpu_count() or 1)
    if max(threads, default=1) > most:
        raise InputError(f"--threads {max(threads)}: give at most {most}")
    if not 0 <= seed < SEEDS:
        raise InputError(f"--seed {seed}: give a number from 0 to {SEEDS - 1}")


def check_device(device: str) -> None:
    """Refuse what is no device, and one that is not here.

    >>> check_device("cpu")
    """
    import torch

    kind, colon, index = device.partition(":")
    if device != "cpu" and (kind != "cuda" or bool(colon) != index.isdecimal()):
        raise InputError(f"--device {device}: give cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise InputError(f"--device {device}: torch finds {found or 'no'} CUDA device{'s' if found > 1 else ''} here")


def check_output(folder: Path) -> None:
    """Make the folder and see that a file can be written there: a run must not find out at its end.

    >>> check_output(Path("."))
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror or str(error)
        raise InputError(f"--output {folder}: {reason}; give a folder that can be written to") from error
