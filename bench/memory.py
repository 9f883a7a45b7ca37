"""Peak memory of a call.

On CUDA it is what PyTorch's allocator counted. On a CPU it is the same thing: the sum of what torch allocated and freed,
in the order in which it did, as its profiler records it; exact to the byte and the same in every run. (The resident set
is neither: malloc keeps what was freed, pages come in late, and a model that was loaded leaves room behind.) Scratch
space inside libraries, such as the packing buffers of a matrix product, is not counted.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch


def peak_memory(call: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """Bytes that `call` held at its highest point, above what was held when it began.

    >>> peak_memory(lambda: torch.zeros(1000).add(1).sum()) >= 8000
    True
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    return _peak(profiler)


def _peak(profiler: Any) -> int:
    events = profiler.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = highest = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        highest = max(highest, held)
    return highest
