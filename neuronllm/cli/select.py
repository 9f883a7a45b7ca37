"""`neuronllm select FILE`: the largest and smallest numbers of a file, also of one that is larger than memory."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.errors import InputError
from ..common.files import check_new_file, write_json
from ..select.files import Found, extremes_of_files, parts_of
from ..select.results import printable

PRINTED = 20  # rows of each end, where a file takes all of them
# NumPy's scalars print the shortest text that tells a number from its neighbours; NumPy has no bfloat16.
SHORTEST = {torch.float16: np.float16, torch.bfloat16: np.float32, torch.float32: np.float32}


def run(args: argparse.Namespace) -> None:
    """Select, print a table of both ends, and write it if asked to."""
    if args.largest == 0 and args.smallest == 0:
        raise InputError("give --largest K or --smallest K, or both")
    if args.output:
        check_new_file(args.output)
    found = select(args)
    report = as_plain(found)
    if args.output:
        write_json(Path(args.output), report)
    with _written():
        for line in _lines(found, report, args.output):
            print(printable(line, getattr(sys.stdout, "encoding", None) or "utf-8"))
        sys.stdout.flush()


@contextmanager
def _written() -> Iterator[None]:
    """One line where standard output takes no more; a pipe that nobody reads is the command line's own business."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again at its end
        raise InputError(f"standard output: cannot be written: {error.strerror or type(error).__name__}") from error


def _lines(found: Found, report: dict[str, Any], output: str | None) -> Iterator[str]:
    printed = PRINTED if output else None
    kind = SHORTEST.get(found.parts[0].dtype, np.float64)
    several = len({part.path for part in found.parts}) > 1
    for end in ("largest", "smallest"):
        if not report[end]:
            continue
        yield f"{end}:"
        for row in report[end][:printed]:
            array = " ".join([row["file"]] * (several or not row["tensor"]) + [row["tensor"] or ""]).rstrip()
            place = ", ".join(map(str, row["index"]))
            yield f"  {str(kind(row['value'])):<14} {array}[{place}]"
        if printed is not None and len(report[end]) > printed:
            yield f"  ... {len(report[end]) - printed} more in {output}"
    yield f"{report['n_valid']} numbers" + (f", {report['n_nan']} NaN left out" if report["n_nan"] else "")


def select(args: argparse.Namespace) -> Found:
    """Both ends of all the files that are named."""
    parts = [part for path in args.files for part in parts_of(path, args.tensor)]
    return extremes_of_files(parts, args.largest, args.smallest, threads=args.threads, progress=not args.quiet)


def as_plain(found: Found) -> dict[str, Any]:
    """The result as plain data, ready for JSON, which has no infinities: they are the texts "inf" and "-inf"."""
    report: dict[str, Any] = {"n_valid": found.extremes.n_valid, "n_nan": found.extremes.n_nan}
    for name, end in (("largest", found.extremes.largest), ("smallest", found.extremes.smallest)):
        rows = []
        for number, index in zip(end.values.tolist(), end.indices.tolist(), strict=True):
            part, place = found.locate(index)
            value = str(number) if math.isinf(number) else number
            rows.append({"value": value, "file": str(part.path), "tensor": part.tensor, "index": list(place)})
        report[name] = rows
    return report
