"""Chooses block sizes for the GPU at hand and writes them into kernels/<op>/configs.json.

    python -m bench.tuning                       every op, at the shapes of Llama-2-7B
    python -m bench.tuning glu_score --shape llama-3.1-8b --try
    python -m bench.tuning --apply FILE          writes what `tools/gpu_hour.py` found on another machine

Candidates are timed in an order that is the same every time, those of the table first, the others shuffled, as long as
the time lasts. One that is the fastest so far must then give the right result (the check of bench/kernels.py) to be
kept. At the end the kernel with its new sizes is compared with eager PyTorch and with torch.compile on the same inputs:
only where it beats both in all its benchmarks is the GPU noted under "wins", and backend="auto" takes the kernel there.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from neuronllm.common.env import triton_found
from neuronllm.common.errors import InputError
from neuronllm.kernels.launch import config, forced, table

from .arguments import Parser
from .harness import Setup, clocked
from .kernels import WORKS, Work, checks
from .record import ROOT
from .shapes import SHAPES

Sizes = dict[str, int]
INTERPRETER = "the interpreter"  # in the place of a GPU
CANDIDATES: dict[str, dict[str, tuple[int, ...]]] = {
    "glu_score": {
        "rows": (8, 16, 32),
        "columns": (64, 128, 256),
        "chunk": (32, 64, 128),
        "num_warps": (4, 8),
        "num_stages": (2,),
    },
    "score_gemm": {
        "rows": (64, 128),
        "columns": (64, 128, 256),
        "depth": (32, 64),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4),
    },
    "contrastive_ce": {"elements": (1024, 2048, 4096, 8192), "num_warps": (2, 4, 8), "num_stages": (2,)},
    "branch_attention": {
        "tile": (16, 32, 64, 128),
        "tokens": (32, 64, 128),
        "num_warps": (4, 8),
        "num_stages": (1, 2, 3),
    },
}


def keys(op: str, shape: Any) -> list[str]:
    """Which entries of configs.json the benchmarks of an op use at a shape."""
    if op == "contrastive_ce":
        return ["options"]
    if op == "branch_attention":
        width = shape.config.get("head_dim") or shape.config["hidden_size"] // shape.config["num_attention_heads"]
        padded = max(64, 1 << (width - 1).bit_length())
        return [str(padded), f"backward {padded}"]
    return [str(shape.dtype).removeprefix("torch.")]


def candidates(op: str, first: Sizes, few: bool) -> Iterator[Sizes]:
    """The sizes in use, then all others, shuffled: what a limit of time cuts off is a fair sample."""
    names, values = zip(*CANDIDATES[op].items(), strict=True)
    found = [dict(zip(names, choice, strict=True)) for choice in itertools.product(*values)]
    random.Random(0).shuffle(found)
    others = [sizes for sizes in found if sizes != first]
    return iter([first, *others][: 2 if few else None])


def seconds(call: Callable[[], Any], few: bool) -> float:
    """The median of some runs of ten calls, after one to warm up."""
    device, times = ("cuda", 10) if torch.cuda.is_available() else ("cpu", 1 if few else 10)
    call()
    return statistics.median(clocked(call, times, device) for _ in range(1 if few else 9))


def refused() -> tuple[type[Exception], ...]:
    """What a candidate may fail with: too much shared memory or too many registers, or a compiler that gives up."""
    from triton import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    return CompilationError, OutOfResources, PTXASError


def tune(
    op: str, works: list[Work], setup: Setup, few: bool, limit: float = float("inf")
) -> tuple[dict[str, Sizes], dict[str, int]]:
    """The best sizes for every key that the op's benchmarks use, and how many candidates were tried for each."""
    best: dict[str, Sizes] = {}
    tried: dict[str, int] = {}
    given = [inputs_of(work, setup) for work in works]
    wanted = keys(op, SHAPES[setup.shape])
    for key in wanted:
        fastest, end = float("inf"), time.monotonic() + limit / len(wanted)
        for sizes in candidates(op, config(ROOT / "kernels" / op, key, torch.device(setup.device)), few):
            if tried.get(key) and time.monotonic() > end:
                break
            tried[key] = tried.get(key, 0) + 1
            try:
                with forced(best | {key: sizes}):
                    took = sum(seconds(lambda w=w, x=x: w.ours(*x), few) for w, x in zip(works, given, strict=True))
                    if took >= fastest:
                        continue
                    right = all(check.fine for w, x in zip(works, given, strict=True) for check in checks(x, w))
            except (RuntimeError, *refused()) as error:
                if "CUDA error" in str(error):  # the device answers no more
                    raise
                print(f"{op} {key} {sizes}: {type(error).__name__}", flush=True)
                continue
            print(f"{op} {key} {sizes}: {took:.3e} s{'' if right else ', WRONG'}", flush=True)
            if right:
                fastest, best[key] = took, sizes
    return best, tried


def inputs_of(work: Work, setup: Setup) -> tuple[Any, ...]:
    torch.manual_seed(setup.seed)
    with torch.device(setup.device):
        return work.inputs()


def verdict(works: list[Work], setup: Setup, best: dict[str, Sizes], few: bool) -> tuple[bool, str]:
    """Whether the kernel beats eager PyTorch and torch.compile in every benchmark, and by how much at least."""
    ratios: dict[str, list[float]] = {"eager": [], "torch.compile": []}
    for work in works:
        given = inputs_of(work, setup)
        with forced(best):
            ours = seconds(lambda w=work, x=given: w.ours(*x), few)
        others = {"eager": work.eager} if few else {"eager": work.eager, "torch.compile": torch.compile(work.eager)}
        for name, call in others.items():
            ratios[name].append(seconds(lambda call=call, x=given: call(*x), few) / ours)
    lowest = {name: min(found) for name, found in ratios.items() if found}
    text = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in lowest.items())
    return all(ratio >= 1 for ratio in lowest.values()), f"at least {text} ({setup.shape}, torch {torch.__version__})"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What tuning found for an op on a device."""

    op: str
    device: str
    best: dict[str, Sizes]
    wins: bool
    text: str


def write(entry: Entry) -> None:
    path = ROOT / "kernels" / entry.op / "configs.json"
    entries = dict(table(path.parent))
    entries[entry.device] = entries.get(entry.device, {}) | entry.best
    others = {device: text for device, text in entries["wins"].items() if device != entry.device}
    entries["wins"] = others | ({entry.device: entry.text} if entry.wins else {})
    blocks = [f' "{name}": {_block(block)}' for name, block in entries.items()]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")
    temporary.replace(path)


def read(path: Path) -> list[Entry]:
    """The entries that a run on another machine left."""
    try:
        entries = [Entry(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--apply {path}: no block sizes there ({error}); give block_sizes.json of a run") from error
    if unknown := {entry.op for entry in entries} - WORKS.keys():
        raise InputError(f"--apply {path}: unknown ops {', '.join(sorted(unknown))}; known are {', '.join(WORKS)}")
    return entries


def _block(block: dict[str, Any]) -> str:
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in block.items()]
    return "{\n" + ",\n".join(lines) + "\n }" if lines else "{}"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.tuning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"{', '.join(WORKS)} (default: all)")
    parser.add_argument("--shape", default="llama-2-7b", help="a model of bench/shapes.py")
    parser.add_argument("--try", dest="dry", action="store_true", help="print, write nothing")
    parser.add_argument("--few", action="store_true", help="two candidates, timed once: to try the tool out")
    parser.add_argument("--apply", type=Path, metavar="FILE", help="write the block sizes of a run elsewhere")
    args = parser.parse_args(argv)
    try:
        for entry in read(args.apply) if args.apply else _found(args):
            print(
                f"{entry.op} on {entry.device}: {'wins' if entry.wins else 'does not win'}, {entry.text}; {entry.best}"
            )
            if not args.dry and entry.device != INTERPRETER:
                write(entry)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _found(args: argparse.Namespace) -> Iterator[Entry]:
    if unknown := set(args.ops) - WORKS.keys() or {args.shape} - SHAPES.keys():
        raise InputError(f"{', '.join(sorted(unknown))}: known are {', '.join([*WORKS, *SHAPES])}")
    found, reason = triton_found()
    interpreted = args.few and found and _interpreted()
    if not found or not (torch.cuda.is_available() or interpreted):
        raise InputError("there is no CUDA device to tune for" if found else reason)
    name = INTERPRETER if interpreted else torch.cuda.get_device_name()
    setup = Setup("cpu" if interpreted else "cuda", 1, args.shape)
    for op in args.ops or WORKS:
        works = [work(setup) for work in WORKS[op]]
        best, _ = tune(op, works, setup, args.few)
        yield Entry(op, name, best, *verdict(works, setup, best, args.few))


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


if __name__ == "__main__":
    sys.exit(main())
