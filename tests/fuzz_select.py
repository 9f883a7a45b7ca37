"""Random arrays against the oracle, as long as one likes: `make fuzz`, or `python -m tests.fuzz_select --seconds 300`.

First every size from 0 to 1,100 of every distribution and dtype, once on some instruction set; then raw bytes read as
floats by hypothesis, which shrinks what fails to the smallest array that still does.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from neuronllm.common import env
from neuronllm.select import Stream, extremes, extremes_rows
from tests.selection import DISTRIBUTIONS, DTYPES, Oracle, draw, tensor_of


def every_size(rng: np.random.Generator, sets: list[str], until: float) -> int:
    calls = 0
    for n in rng.permutation(1101).tolist():
        for name in DISTRIBUTIONS:
            for dtype in DTYPES:
                x = tensor_of(draw(name, n, rng), dtype)
                oracle = Oracle(x)
                os.environ["NEURONLLM_SELECT_ISA"] = sets[calls % len(sets)]
                for k in (0, 1, n // 3, max(0, n - 1), n, n + 7):
                    oracle.check(extremes(x, k, k // 2, backend="ext"), x, k, k // 2)
                    calls += 1
        if time.monotonic() > until:
            break
    return calls


def raw_bytes(until: float, sets: list[str], number: int) -> int:
    """One run of hypothesis; how many arrays it tried."""
    tried = 0

    @seed(number)
    @settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        content=st.binary(max_size=3000),
        times=st.integers(1, 50),
        dtype=st.sampled_from(DTYPES),
        counts=st.tuples(st.integers(0, 4000), st.integers(0, 4000)),
        step=st.integers(1, 3),
        threads=st.integers(1, 4),
        isa=st.sampled_from(sets),
        ordered=st.booleans(),
    )
    def check(content, times, dtype, counts, step, threads, isa, ordered) -> None:
        nonlocal tried
        if time.monotonic() > until:
            return
        tried += 1
        os.environ["NEURONLLM_SELECT_ISA"] = isa
        floats = getattr(torch, dtype)
        content = content[: len(content) // floats.itemsize * floats.itemsize]
        x = torch.frombuffer(bytearray(content * times), dtype=floats) if content else torch.zeros(0, dtype=floats)
        x = x[::step]
        largest, smallest = counts
        oracle = Oracle(x)
        found = extremes(x, largest, smallest, sorted=ordered, threads=threads, backend="ext")
        oracle.check(found, x, largest, smallest, sorted=ordered)
        stream = Stream((largest, smallest), floats, threads=threads)
        for begin in range(0, len(x), 777):
            stream.push(x[begin : begin + 777], begin)
        oracle.check(stream.result(), x, largest, smallest)
        rows = extremes_rows(x[None], largest, smallest, backend="ext")
        top = oracle.falling[:largest]
        assert rows.largest.indices[0, : len(top)].tolist() == top.tolist()

    check()
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    module, reason = env.extension()
    if module is None:
        raise SystemExit(reason)
    sets, end = module.instruction_sets(), time.monotonic() + args.seconds
    print(f"seed {args.seed}, {', '.join(sets)}", flush=True)
    calls = every_size(np.random.default_rng(args.seed), sets, time.monotonic() + args.seconds / 2)
    print(f"{calls} calls on sizes 0..1100: no difference", flush=True)
    tried, number = 0, args.seed
    while time.monotonic() < end:
        number += 1
        tried += raw_bytes(end, sets, number)
    print(f"{tried} arrays of raw bytes: no difference")


if __name__ == "__main__":
    main()
