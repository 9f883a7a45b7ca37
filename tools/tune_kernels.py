#!/usr/bin/env python3
"""Chooses block sizes for the GPU at hand and writes them into kernels/<op>/configs.json.

    python tools/tune_kernels.py                       every op, at the shapes of Llama-2-7B
    python tools/tune_kernels.py glu_score --shape llama-3.1-8b --try

Every candidate must first give the right result (the check of bench/kernels.py), then the fastest is kept. At the end
the kernel with its new sizes is compared with eager PyTorch and with torch.compile on the same inputs: only where it
beats both in all its benchmarks is the GPU noted under "wins", and backend="auto" takes the kernel there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from bench.harness import Setup  # noqa: E402
from bench.kernels import WORKS, Work, checks  # noqa: E402
from bench.shapes import SHAPES  # noqa: E402
from neuronllm.common.env import triton_found  # noqa: E402
from neuronllm.kernels.launch import forced, table  # noqa: E402

Sizes = dict[str, int]
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


def candidates(op: str, few: bool) -> Iterator[Sizes]:
    names, values = zip(*CANDIDATES[op].items(), strict=True)
    found = [dict(zip(names, choice, strict=True)) for choice in itertools.product(*values)]
    return iter(found[:2] if few else found)


def seconds(call: Callable[[], Any], few: bool) -> float:
    """The median of some runs, each waited for."""
    times = []
    for turn in range(2 if few else 30):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(1 if few else 10):
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if turn:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def refused() -> tuple[type[Exception], ...]:
    """What a candidate may fail with: too much shared memory or too many registers, or a compiler that gives up."""
    from triton import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    return CompilationError, OutOfResources, PTXASError


def tune(op: str, works: list[Work], setup: Setup, few: bool) -> dict[str, Sizes]:
    """The best sizes for every key that the op's benchmarks use."""
    best: dict[str, Sizes] = {}
    given = [inputs_of(work, setup) for work in works]
    for key in keys(op, SHAPES[setup.shape]):
        fastest = float("inf")
        for sizes in candidates(op, few):
            try:
                with forced(best | {key: sizes}):
                    if not all(check.fine for w, x in zip(works, given, strict=True) for check in checks(x, w)):
                        print(f"{op} {key} {sizes}: wrong", flush=True)
                        continue
                    took = sum(seconds(lambda w=w, x=x: w.ours(*x), few) for w, x in zip(works, given, strict=True))
            except refused() as error:
                print(f"{op} {key} {sizes}: {type(error).__name__}", flush=True)
                continue
            if took < fastest:
                fastest, best[key] = took, sizes
                print(f"{op} {key} {sizes}: {took:.3e} s", flush=True)
    return best


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


def write(op: str, device: str, best: dict[str, Sizes], wins: bool, text: str) -> None:
    path = ROOT / "kernels" / op / "configs.json"
    entries = dict(table(path.parent))
    entries[device] = entries.get(device, {}) | best
    entries["wins"] = {k: v for k, v in entries["wins"].items() if k != device} | ({device: text} if wins else {})
    blocks = [f' "{name}": {_block(block)}' for name, block in entries.items()]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")
    temporary.replace(path)


def _block(block: dict[str, Any]) -> str:
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in block.items()]
    return "{\n" + ",\n".join(lines) + "\n }" if lines else "{}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"{', '.join(WORKS)} (default: all)")
    parser.add_argument("--shape", default="llama-2-7b", help="a model of bench/shapes.py")
    parser.add_argument("--try", dest="dry", action="store_true", help="print, write nothing")
    parser.add_argument("--few", action="store_true", help="two candidates, timed once: to try the tool out")
    args = parser.parse_args()
    unknown = set(args.ops) - WORKS.keys() or {args.shape} - SHAPES.keys()
    found, reason = triton_found()
    interpreted = args.few and found and _interpreted()
    if unknown or not found or not (torch.cuda.is_available() or interpreted):
        print(
            f"tune_kernels: {f'unknown: {unknown}' if unknown else reason if not found else 'there is no CUDA device'}"
        )
        return 2
    device = "cpu" if interpreted else "cuda"
    name = "the interpreter" if interpreted else torch.cuda.get_device_name()
    setup = Setup(device, 1, args.shape)
    for op in args.ops or WORKS:
        works = [work(setup) for work in WORKS[op]]
        best = tune(op, works, setup, args.few)
        wins, text = verdict(works, setup, best, args.few)
        print(f"{op} on {name}: {'wins' if wins else 'does not win'}, {text}; {best}", flush=True)
        if not args.dry and not interpreted:
            write(op, name, best, wins, text)
    return 0


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


if __name__ == "__main__":
    sys.exit(main())
