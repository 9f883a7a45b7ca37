"""How much memory work takes, found by doing a little of it, and how much there is."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch


def peak_memory(call: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """Bytes that `call` held at its highest point, above what was held when it began.

    On CUDA it is what PyTorch's allocator counted. On a CPU it is the same thing: the sum of what torch allocated and
    freed, in the order in which it did, as its profiler records it; exact to the byte and the same in every run. (The
    resident set is neither: malloc keeps what was freed, and pages come in late.) Scratch space inside libraries, such
    as the packing buffers of a matrix product, is not counted.

    >>> peak_memory(lambda: torch.zeros(1000).add(1).sum()) >= 8000
    True
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells standard error when it starts and stops
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    return _highest(profiler)


def _highest(profiler: Any) -> int:
    events = profiler.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = highest = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        highest = max(highest, held)
    return highest


def available(device: torch.device) -> int:
    """Bytes that new tensors may take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        with open("/proc/meminfo") as lines:
            found = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
    except OSError:
        found = None
    if found is not None:
        return found * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
