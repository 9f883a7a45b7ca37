#!/usr/bin/env python3
"""Tries every decoder family of transformers and writes what became of it: docs/models.json and docs/models.md.

    python tools/families.py                       all families, about 5 minutes on one core
    python tools/families.py --jobs 4              the same, four at a time
    python tools/families.py falcon mpt            only these, and nothing is written
    python tools/families.py --check               exit code 1 where something is not as models.json says
    python tools/families.py --page                the page again, of the JSON as it is

Each family is built tiny with random weights (family_configs.py) and scored by the fast engine and by the reference, in
a process of its own, so that one that crashes or hangs costs nothing but its own verdict. The exit code is 1 where a
family ended in anything but scores or one line that says why not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from family_configs import MULTIMODAL, VOCABULARY, names, tiny
from family_mechanisms import mechanism
from family_page import page

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS, PAGE = DOCS / "models.json", DOCS / "models.md"
SECONDS, WAIT = 60, 900  # of computing and on the clock: a family that takes longer hangs
NEURONS = 32  # that are really switched off
EXACT = {"float64": 1e-9, "float32": 1e-4}  # how far the engines may differ
STEP, DERIVED = 1e-4, 1e-4  # of finite differences, and how far a gradient may differ from them
LASTING = ("verdict", "why", "dtype")  # of a family, what another run finds again
# Imported before the processes part, so that none imports it again.
SHARED = ("neuronllm.attribution.driver", "neuronllm.engine.fast", "neuronllm.engine.reference")
SHARED += ("transformers.models.llama.modeling_llama", "transformers.models.mixtral.modeling_mixtral")


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="families.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="config.model_type (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="families at a time")
    parser.add_argument("--check", action="store_true", help="write nothing, compare with what was written")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    args = parser.parse_args(given)
    known = [*names(), *MULTIMODAL]
    if unknown := sorted({*args.families} - {*known}):
        parser.error(f"{unknown[0]}: no such family")
    found = [] if args.page else list(survey(args.families or known, args.jobs))
    if args.check:
        return int(differing(found))
    if found and not args.families:
        RESULTS.write_text(json.dumps(versions() | {"families": found}, indent=1) + "\n", encoding="utf-8")
    if not args.families:
        PAGE.write_text(page(written()), encoding="utf-8")
    return int(any(family["verdict"] == "defect" for family in found))


def written() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def differing(found: Sequence[dict[str, Any]]) -> bool:
    """Whether a verdict is another one than was written down; says which."""
    then = {family["family"]: family for family in written()["families"]}
    others = [now for now in found if any(now[part] != then[now["family"]][part] for part in LASTING)]
    for now in others:
        was = then[now["family"]]
        print(f"{now['family']}: {[now[part] for part in LASTING]} was {[was[part] for part in LASTING]}")
    return bool(others)


def versions() -> dict[str, str]:
    import torch
    import transformers

    return {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}


def survey(families: Sequence[str], jobs: int = 1) -> Iterator[dict[str, Any]]:
    """What became of every family, in order."""
    import importlib

    import torch

    torch.set_num_threads(1)  # threads do not survive the fork
    for module in SHARED:
        importlib.import_module(module)
    with ThreadPoolExecutor(jobs) as pool:
        for found in pool.map(in_a_process_of_its_own, families):
            print("{family:28} {verdict:10} {reason}".format(**found), file=sys.stderr, flush=True)
            yield found


def in_a_process_of_its_own(family: str) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_tried, args=(family, there), daemon=True)
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv() if here.poll(WAIT) else _defect(f"no end after {WAIT} seconds")
    except EOFError:
        process.join()
        found = _defect(f"the process died (exit code {process.exitcode})")
    process.kill()
    process.join()
    return {"family": family} | found


def _tried(family: str, connection: Connection) -> None:
    import logging
    import warnings

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    connection.send(tried(family))


def tried(family: str) -> dict[str, Any]:
    """The verdict on a family: its reason, and how far its scores were from what they should be."""
    from neuronllm.common.errors import InputError

    try:
        model = tiny(family)
    except Exception as error:  # noqa: BLE001  it is the family's own code
        return _verdict("not built", _line(error))
    some = prompts()
    try:
        found = scored(model, some)
    except InputError as error:
        found = _verdict("refused", str(error))
    except Exception as error:  # noqa: BLE001  what it is that is written down
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = _defect(f"{_line(error)} ({Path(where.filename).name}:{where.lineno})")
    return found | {"class": type(model).__name__, "why": mechanism(model, found["verdict"], found["reason"])}


def scored(model: Any, some: Sequence[Any]) -> dict[str, Any]:
    """Both engines on the same prompts, in float64 where the family computes in it."""
    import torch

    import neuronllm as nl
    from neuronllm.engine.fast import FastEngine
    from neuronllm.engine.reference import ReferenceEngine

    nl.attribute(model, None, some[:1], "gradient", progress=False)
    for dtype in (torch.float64, torch.float32):
        name, own = str(dtype).removeprefix("torch."), dtype if dtype == torch.float64 else None
        try:
            with ReferenceEngine(model, dtype=own) as judge:
                judged = {label: call(judge, some) for label, call in CALLS.items()}
                slope = difference(_by_differences(judge, some), judged["gradient"][:, _some(judge)]) if own else None
        except RuntimeError:  # an operation that there is only in float32
            if own is None:
                raise
            continue
        with FastEngine(model, dtype=own) as fast:
            reason = fast.unusable(some)
            if slope is not None and not slope <= DERIVED:  # nor may it be NaN
                return _defect(f"the reference's gradient is off by {slope:.1e}")
            if reason is not None:
                return _verdict("reference", reason, slope, name)
            differences = {label: difference(call(fast, some), judged[label]) for label, call in CALLS.items()}
        worst = max(differences, key=lambda label: differences[label])
        if differences[worst] <= EXACT[name]:
            return _verdict("fast", "", differences[worst], name)
    return _defect(f"{worst}: the engines differ by {differences[worst]:.1e} in {name}")


CALLS: dict[str, Any] = {
    "gradient": lambda engine, prompts: engine.gradients(prompts, "logp_options"),
    "gradient everywhere": lambda engine, prompts: engine.gradients(prompts, "logp_options", positions="all"),
    "integrated gradients": lambda engine, prompts: engine.integrate(prompts, "logp_options", *_points()),
    "exact": lambda engine, prompts: engine.effects(prompts, "logp_options", ids=_some(engine)),
}


def _some(engine: Any) -> Any:
    """Neurons of all layers."""
    import torch

    return torch.linspace(0, engine.anatomy.n_neurons - 1, NEURONS).long()


def _points() -> Any:
    from neuronllm.engine.quadrature import quadrature

    return quadrature("gauss", 3)


def _by_differences(engine: Any, prompts: Sequence[Any]) -> Any:
    """The gradient once more, from what happens when neurons are turned a little."""
    ids = _some(engine)
    up, down = (engine.effects(prompts, "logp_options", ids=ids, factor=1 + sign * STEP) for sign in (-1, 1))
    return (up - down) / (2 * STEP)


def prompts() -> list[Any]:
    """Short ones of different lengths, two that start alike, and one with answers of several tokens."""
    import torch

    import neuronllm as nl

    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(3, VOCABULARY, (40,), generator=generator).tolist()
    letters = [[3 + 2 * k] for k in range(3)]
    texts = [[[5, 6]], [[5, 7, 8]], [[9]]]
    return [
        nl.Prompt(tokens[:5], letters, 0),
        nl.Prompt(tokens[5:19], letters, 1),
        nl.Prompt(tokens[5:17] + tokens[30:33], letters, 2),
        nl.Prompt(tokens[20:29], texts, 1),
    ]


def difference(found: Any, right: Any) -> float:
    """Of the prompt where it is largest, beside its scores."""
    found, right = found.double(), right.double()
    return float(((found - right).norm(dim=1) / right.norm(dim=1)).max())


def _verdict(verdict: str, reason: str, difference: float | None = None, dtype: str | None = None) -> dict[str, Any]:
    rounded = None if difference is None else float(f"{difference:.0e}")
    return {"verdict": verdict, "reason": reason, "why": reason, "difference": rounded, "dtype": dtype}


def _defect(reason: str) -> dict[str, Any]:
    return _verdict("defect", reason)


def _line(error: Exception) -> str:
    words = " ".join(str(error).split()).partition(". ")[0]  # some go on with advice
    return f"{type(error).__name__}: {words}"


if __name__ == "__main__":
    sys.exit(main())
