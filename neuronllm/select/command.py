"""`neuronllm select FILE`: the largest and smallest numbers of a file, also of one that is larger than memory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import check_new_file, write_json
from .files import extremes_of_files, parts_of


def run(args: argparse.Namespace) -> None:
    """Select, print a table of both ends, and write it if asked to."""
    if args.largest == 0 and args.smallest == 0:
        raise InputError("give --largest K or --smallest K, or both")
    if args.output:
        check_new_file(args.output)
    report = select(args)
    if args.output:
        write_json(Path(args.output), report)
    for end in ("largest", "smallest"):
        if not report[end]:
            continue
        print(f"{end}:")
        for row in report[end]:
            place = ", ".join(map(str, row["index"]))
            print(f"  {row['value']:<14.8g} {row['tensor'] or row['file']}[{place}]")
    print(f"{report['n_valid']} numbers" + (f", {report['n_nan']} NaN left out" if report["n_nan"] else ""))


def select(args: argparse.Namespace) -> dict[str, Any]:
    """The result as plain data, ready for JSON."""
    parts = [part for path in args.files for part in parts_of(path, args.tensor)]
    found = extremes_of_files(parts, args.largest, args.smallest, threads=args.threads, progress=not args.quiet)
    report: dict[str, Any] = {"n_valid": found.extremes.n_valid, "n_nan": found.extremes.n_nan}
    for name, end in (("largest", found.extremes.largest), ("smallest", found.extremes.smallest)):
        rows = []
        for value, index in zip(end.values.tolist(), end.indices.tolist(), strict=True):
            part, place = found.locate(index)
            rows.append({"value": value, "file": str(part.path), "tensor": part.tensor, "index": list(place)})
        report[name] = rows
    return report
