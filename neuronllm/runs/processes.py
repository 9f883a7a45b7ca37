"""Several processes share an attribution, as torch.distributed has them: under torchrun, or started by the caller.

Every process calls with the same arguments, takes a share of the questions, and ends with the same result. They speak
through a gloo group of their own, which carries plain bytes between CPUs whatever else they use between GPUs. It has
no deadline, because shares may take hours: a process that fails or dies closes its connections, and the others hear
that.
"""

from __future__ import annotations

import atexit
import heapq
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ..common.env import launched
from ..common.errors import InputError, PeerError, SharedError
from ..results.streaming import Streaming
from .provenance import check_same

M = TypeVar("M", bound=Streaming)
TIMEOUT = timedelta(days=30)


class Ranks:
    """The processes of this run and the number of this one; a single process is a group of one.

    >>> with Ranks.here() as ranks:
    ...     ranks.rank, ranks.size
    (0, 1)
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self._group = rank, size, group

    @classmethod
    @contextmanager
    def here(cls) -> Iterator[Ranks]:
        """Those of torch.distributed, which is started where a launcher asks for it."""
        _start()
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            yield cls()
            return
        group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        try:
            yield cls(dist.get_rank(), dist.get_world_size(), group)
        finally:
            dist.destroy_process_group(group)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, data: Any) -> list[Any]:
        """What every process gives, anything that JSON can say, in the order of the processes."""
        if self.size == 1:
            return [data]
        mine = torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _connected():
            dist.all_gather(sizes, torch.tensor([len(mine)]), group=self._group)
            longest = int(torch.cat(sizes).max())
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(texts, torch.nn.functional.pad(mine, (0, longest - len(mine))), group=self._group)
        pairs = zip(texts, sizes, strict=True)
        return [json.loads(bytes(text[: int(size)].tolist())) for text, size in pairs]

    def wait(self) -> None:
        """Until every process has come here."""
        self.gather(None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one process refuses in the body all refuse, with the same line: nobody is left waiting."""
        if self.size == 1:
            yield
            return
        refusal: InputError | None = None
        try:
            yield
        except InputError as error:
            refusal = error
        lines = [line for line in self.gather(None if refusal is None else str(refusal)) if line is not None]
        if lines:
            raise SharedError(lines[0]) from refusal

    def agree(self, settings: Callable[[], dict[str, Any]]) -> None:
        """Refuse where the processes were given something different; alone, nobody needs the settings."""
        if self.size == 1:
            return
        mine = json.loads(json.dumps(settings()))  # as the first one's come here: no tuples
        first = self.gather(mine)[0]
        with self.together():
            check_same(first, mine, "the processes must be given the same: the first one has")

    def send(self, tensor: Tensor, source: int) -> None:
        """Give every process the content that a tensor has in process `source`, in place."""
        if self.size > 1 and tensor.numel():
            flat = tensor.as_strided((tensor.numel(),), (1,))  # a single number may keep the stride of its column
            with _connected():
                dist.broadcast(flat.view(torch.uint8), group_src=source, group=self._group)

    def merge(self, mine: M, empty: Callable[[], M]) -> M:
        """What all processes gathered, merged in their order, so that all have the same to the bit."""
        if self.size == 1:
            return mine
        total = empty()
        for source in range(self.size):
            theirs = mine if source == self.rank else empty()
            for tensor in theirs.state().values():
                self.send(tensor, source)
            total.merge(theirs)
        return total

    def concatenate(self, mine: dict[str, Tensor]) -> dict[str, Tensor]:
        """The per-prompt scores of all processes, in the order of the processes."""
        if self.size == 1:
            return mine
        forms = {name: (str(tensor.dtype).removeprefix("torch."), *tensor.shape) for name, tensor in mine.items()}
        theirs = self.gather(forms)
        found: dict[str, Tensor] = {}
        # A process without a question has no scores; names, types and widths are known from one that has.
        for name, (kind, _, *width) in next((form for form in theirs if form), {}).items():
            tensors = []
            for source, form in enumerate(theirs):
                if name in form:
                    empty = torch.empty(form[name][1], *width, dtype=getattr(torch, kind))
                    tensor = mine[name].contiguous() if source == self.rank else empty
                    self.send(tensor, source)
                    tensors.append(tensor)
            found[name] = torch.cat(tensors)
        return found


def share_out(costs: Sequence[int], size: int) -> list[list[int]]:
    """The indices of `costs` in `size` shares of about equal cost, each in its original order.

    The most expensive goes first, to whoever has the least so far; the same costs always give the same shares.

    >>> share_out([5, 1, 1, 4, 1], 2)
    [[0, 2], [1, 3, 4]]
    """
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [(0, number) for number in range(size)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        load, number = heapq.heappop(loads)
        shares[number].append(index)
        heapq.heappush(loads, (load + costs[index], number))
    return [sorted(share) for share in shares]


def _start() -> None:
    if not dist.is_available() or dist.is_initialized() or not launched():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(_stop)


def _stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _connected() -> Iterator[None]:
    """Say what it means when a connection breaks."""
    try:
        yield
    except RuntimeError as error:  # gloo's word for a connection that another process closed
        raise PeerError(
            "another process failed or died: what is written goes on with resume=True (--resume)"
        ) from error
