"""Every launch of every configuration compiles for three GPUs, spills nothing, fits, and takes no more registers.

`registers.json` holds the most that the variants of a kernel took, by version of triton; NEURONLLM_RECORD=1 writes it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import triton

from tests.kernels.ahead import SHARED_MEMORY, TARGETS, compiling
from tests.kernels.launches import OPS

RECORD = Path(__file__).with_name("registers.json")
VERSION = ".".join(triton.__version__.split(".")[:2])


def recorded() -> dict[str, dict[str, int]]:
    return dict(json.loads(RECORD.read_text(encoding="utf-8"))) if RECORD.exists() else {}


WANTED = [name for name in TARGETS if name in os.environ["NEURONLLM_TEST_LANE"]] or list(TARGETS)


@pytest.mark.parametrize("target", WANTED)
@pytest.mark.parametrize("op", OPS)
def test_compiles(op: str, target: str) -> None:
    found: dict[str, int] = {}
    wrong = []
    with compiling(target) as compiled:
        for name, call in OPS[op]():
            before = len(compiled)
            call()
            for part in compiled[before:]:
                key = " ".join([op, target, part.kernel, *name.split()[:2]])
                found[key] = max(part.registers, found.get(key, 0))
                if part.spills or part.atomics or part.shared > SHARED_MEMORY[target]:
                    wrong.append(f"{target} {name}: {part}")
    assert found and not wrong, "\n".join(wrong)
    record = recorded()
    if os.environ.get("NEURONLLM_RECORD") == "1":
        record.setdefault(VERSION, {}).update(found)
        record[VERSION] = dict(sorted(record[VERSION].items()))
        versions = [
            f'"{version}": {{\n' + ",\n".join(f" {json.dumps(k)}: {v}" for k, v in keys.items()) + "\n}"
            for version, keys in sorted(record.items())
        ]
        RECORD.write_text("{\n" + ",\n".join(versions) + "\n}\n", encoding="utf-8")
        return
    if VERSION not in record:
        pytest.skip(f"no registers were recorded with triton {VERSION}")
    known = {key: value for key, value in record[VERSION].items() if key.startswith(f"{op} {target} ")}
    assert known.keys() == found.keys(), "record anew: NEURONLLM_RECORD=1"
    more = {k: (found[k], known[k]) for k in found if found[k] > 1.1 * known[k]}
    assert not more, f"registers found and recorded: {more}"
