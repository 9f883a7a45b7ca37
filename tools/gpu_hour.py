#!/usr/bin/env python3
"""Checks and measures everything on a GPU, in order of worth, within a budget of minutes.

    python tools/gpu_hour.py --minutes 6 --out DIR      as many stages as fit; results in DIR
    python tools/gpu_hour.py --minutes 6 --resume DIR   goes on where that run ended, in the same folder
    python tools/gpu_hour.py --list                     the stages, their estimated times and how those were estimated
    python tools/gpu_hour.py --pretend --minutes 3      tries the whole program out on a machine without a GPU
    python tools/gpu_hour.py --page                     writes docs/gpu.md from the results in bench/results/gpu

Exit code 0: nothing failed (what did not fit is named); 1: a stage failed; 2: bad arguments.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.arguments import Parser  # noqa: E402
from bench.gpu import page  # noqa: E402
from bench.gpu.folder import Folder  # noqa: E402
from bench.gpu.hour import run  # noqa: E402
from bench.gpu.stages import STAGES, Stage  # noqa: E402
from neuronllm.common.errors import InputError  # noqa: E402


def parser() -> argparse.ArgumentParser:
    found = Parser(prog="gpu_hour", description=(__doc__ or "").splitlines()[0])
    names = [stage.name for stage in STAGES]
    found.add_argument("--minutes", type=float, default=8.0, help="the whole budget (default: 8)")
    found.add_argument("--out", type=Path, metavar="DIR", help="folder for the results (default: a new one)")
    found.add_argument("--resume", type=Path, metavar="DIR", help="skip what passed in the run that wrote DIR")
    found.add_argument("--only", nargs="+", choices=names, metavar="STAGE", help="these stages")
    found.add_argument("--from", dest="start", choices=names, metavar="STAGE", help="this stage and those behind it")
    found.add_argument("--pretend", action="store_true", help="without a GPU: a pretended device, toy sizes")
    found.add_argument("--list", action="store_true", help="say what there is and what it is thought to take")
    found.add_argument("--page", action="store_true", help="write docs/gpu.md from the committed results")
    return found


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        if args.list:
            print("\n".join(page.estimates(STAGES)))
            return 0
        if args.page:
            page.PAGE.write_text(page.text(), encoding="utf-8")
            return 0
        if not 0 < args.minutes <= 600:
            raise InputError(f"--minutes {args.minutes:g}: give a number above 0, at most 600")
        out = args.out or args.resume or Path(".benchmarks") / f"gpu-{time.strftime('%Y%m%d-%H%M%S')}"
        stages = chosen(args.only, args.start)
        folder = Folder(out, args.resume, args.pretend)
        print(f"results in {out}", flush=True)
        for name in (
            "SIGINT",
            "SIGTERM",
            "SIGHUP",
        ):  # a background job ignores the first, a time limit sends the second
            signal.signal(getattr(signal, name), _stop)
        return run(stages, folder, args.minutes, args.pretend)
    except InputError as error:
        print(f"gpu_hour: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu_hour: interrupted; --resume goes on behind what passed", file=sys.stderr)
        return 130


def chosen(only: list[str] | None, start: str | None) -> list[Stage]:
    names = [stage.name for stage in STAGES]
    first = names.index(start) if start else 0
    found = [stage for stage in STAGES[first:] if not only or stage.name in only]
    if not found:
        raise InputError(f"--only, --from: no stage of {', '.join(only or [])} comes at or behind {start}")
    return found


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
