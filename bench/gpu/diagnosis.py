"""All that is known where a case fails, as text: nobody can look at the machine afterwards."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ELEMENTS, WORST = 8, 4  # that differ, and are shown
CODE = 40_000  # characters of compiled code, in a rerun with detail


def describe(error: BaseException, detail: bool = False) -> str:
    """The traceback, the tensors of every frame of ours, the kernels that were compiled."""
    parts = ["".join(traceback.format_exception(error)).rstrip(), *_notes(error)]
    parts += ["Tensors, from the outermost frame of ours:", *_tensors(error.__traceback__)]
    parts += ["Kernels compiled in this process:", *_kernels(detail)]
    return "\n".join(parts)


def _notes(error: BaseException) -> list[str]:
    """What compilers put beside the message, which a traceback does not show."""
    streams = [getattr(error, name, None) for name in ("stdout", "stderr", "output")]
    return [str(text)[-20_000:] for text in streams if text]


def _tensors(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(ROOT) or "site-packages" in path.parts:
            continue
        found = [f"    {name}: {text}" for name, value in frame.f_locals.items() for text in _of(value)]
        if found:
            yield f"  {path.relative_to(ROOT)}, {frame.f_code.co_name}"
            yield from found


def _of(value: Any, depth: int = 2) -> Iterator[str]:
    """The tensors in a value, those in lists, tuples and dictionaries too."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        yield tensor(value)
    elif depth and isinstance(value, dict):
        yield from (f"[{key!r}] {text}" for key, one in list(value.items())[:20] for text in _of(one, depth - 1))
    elif depth and isinstance(value, (list, tuple)):
        yield from (f"[{n}] {text}" for n, one in enumerate(value[:20]) for text in _of(one, depth - 1))


def tensor(x: Any) -> str:
    """Shape, strides, type and place; not its numbers, which a broken device would not give.

    >>> import torch
    >>> tensor(torch.zeros(2, 3).T)
    'torch.float32 (3, 2), strides (1, 3), on cpu'
    """
    return f"{x.dtype} {tuple(x.shape)}, strides {tuple(x.stride())}, on {x.device}"


def differences(found: Any, right: Any, allowed: float = 0.0) -> str:
    """How many elements differ by more than is allowed, where all of them lie, the first and the worst of them.

    >>> import torch
    >>> print(differences(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 5.0, float("nan")])))
    2 of 3 elements differ by more than 0, between (1,) and (2,)
      at (1,): 2.0, should be 5.0
      at (2,): 3.0, should be nan
    """
    found, right = found.detach().cpu(), right.detach().cpu()
    if found.shape != right.shape:
        return f"shape {tuple(found.shape)}, should be {tuple(right.shape)}"
    off = (found.double() - right.double()).abs().nan_to_num(float("inf"))
    off = off.masked_fill((found == right) | (found.isnan() & right.isnan()), 0)
    unlike = off > allowed
    places = unlike.nonzero()
    if not len(places):
        return f"no element differs by more than {allowed:g}"
    box = f"between {tuple(places.amin(0).tolist())} and {tuple(places.amax(0).tolist())}"
    worst = off[unlike].topk(min(WORST, len(places))).indices
    shown = dict.fromkeys(map(tuple, [*places[:ELEMENTS].tolist(), *places[worst].tolist()]))
    lines = [f"  at {place}: {found[place].item()}, should be {right[place].item()}" for place in shown]
    return "\n".join([f"{len(places)} of {found.numel()} elements differ by more than {allowed:g}, {box}", *lines])


def _kernels(detail: bool) -> Iterator[str]:
    """Registers, spills, shared memory and options of every Triton kernel of ours that was compiled here."""
    if "triton" not in sys.modules:
        return
    for name in sorted(name for name in sys.modules if name.startswith("neuronllm.kernels.")):
        for kernel in compiled(importlib.import_module(name)):
            facts = {key: getattr(kernel, key, None) for key in ("n_regs", "n_spills")}
            kept = ("num_warps", "num_stages", "shared", "num_ctas")
            facts |= {key: getattr(kernel.metadata, key, None) for key in kept}
            yield f"  {getattr(kernel, 'name', name)}: {facts}"
            if detail:
                yield str(kernel.asm.get("ttgir", ""))[:CODE]
                yield str(kernel.asm.get("ptx", ""))[:CODE]


def compiled(module: Any) -> Iterator[Any]:
    """What the Triton functions of a module were compiled to in this process; an interpreter compiles nothing."""
    for function in list(vars(module).values()):
        for cache in getattr(function, "device_caches", {}).values():
            entries = cache[0] if isinstance(cache, tuple) else cache
            yield from (kernel for kernel in entries.values() if hasattr(kernel, "metadata"))
