"""A CUDA device that is not there: tensors that say cuda:0, with their numbers in the memory of the CPU.

To C++ they are meta tensors, which autograd and the dispatcher take in any build of torch; to Python, which is what the
library is written in, they are on cuda:0. Inside `pretended()` every operation is looked at before it runs: tensors of
both devices must not meet, but where CUDA lets them; what makes a host wait for a device is counted; and memory may be
limited. So code that has never seen a GPU can be tried for tensors left on the wrong device. It says nothing of CUDA's
own kernels, nor of time.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
NAME, CAPABILITY = "NVIDIA Pretend", (9, 0)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
WAITS = {  # what the host waits for, beside copies between the devices
    aten._local_scalar_dense.default: "item",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten._unique2.default: "unique",
    aten.masked_select.default: "masked_select",
}


class Device:
    """What is known of the device while it is pretended."""

    def __init__(self, memory: int = 2**40) -> None:
        self.memory, self.held, self.highest = memory, 0, 0
        self.waits: Counter[str] = Counter()
        self.tensors: Counter[int] = Counter()  # by the address of their memory
        self.ran: Counter[str] = Counter()  # operators

    def take(self, tensor: Pretend) -> None:
        storage = tensor.inner.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        new = 0 if self.tensors[place] else size
        if self.held + new > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        self.held += new
        self.tensors[place] += 1
        self.highest = max(self.highest, self.held)
        weakref.finalize(tensor, self.give, place, size)

    def give(self, place: int, size: int) -> None:
        self.tensors[place] -= 1
        if not self.tensors[place]:
            self.held -= size


class Pretend(Tensor):
    """A tensor on the pretended device; `inner` holds its numbers."""

    inner: Tensor
    device_: Device | None = None
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretend:
        assert type(inner) is Tensor and inner.device.type == "cpu" and not inner.requires_grad
        form = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = Tensor._make_wrapper_subclass(cls, inner.shape, device="meta", **form)
        made.inner = inner
        if cls.device_ is not None:
            cls.device_.take(made)
        return made

    device = property(lambda self: torch.device("cuda:0"))
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, new: Pretend) -> None:
        Tensor.data.__set__(self, new)
        self.inner = new.inner

    def __getitem__(self, index: Any) -> Tensor:
        return Tensor.__getitem__(self, _without_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        Tensor.__setitem__(self, _without_lists(index), value)

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first (pretended)")
        return self.detach().cpu().numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made = Pretend(self.inner.clone())
        memo[id(self)] = nn.Parameter(made, self.requires_grad) if isinstance(self, nn.Parameter) else made
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Pretend({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, cls.device_ or Device())


class _Watching(TorchDispatchMode):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.device)


def _without_lists(index: Any) -> Any:
    """Lists in an index as tensors on the CPU, which are seen to be copied; C++ would copy them out of sight."""
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts)
    return parts if isinstance(index, tuple) else parts[0]


def _run(func: Any, args: Any, kwargs: Any, device: Device) -> Any:
    if func.namespace == "neuronllm":  # what an operator of ours does is looked at one by one
        with _Watching(device):
            return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
    if _composite(func):
        with _Watching(device):  # an operator of ours called it, which runs below autograd
            return func.decompose(*args, **kwargs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, Pretend)]
    assert not any(x.is_meta for x in tensors), f"{func}: a tensor without numbers"
    target = kwargs.get("device")
    there = bool(here) if target is None else torch.device(target).type in ("cuda", "meta")
    if not here and not there:
        return func(*args, **kwargs)
    device.ran[str(func)] += 1
    crossing = func in (aten._to_copy.default, aten.copy_.default)
    if crossing and (there != bool(here) or 0 < len(here) < len(tensors)):
        device.waits["to cuda" if not isinstance(tensors[-1], Pretend) else "to cpu"] += 1
    elif here and not crossing:
        _check(func, tensors, here, device)
    if func in WAITS and here:
        device.waits[WAITS[func]] += 1
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map_only(Pretend, lambda x: x.inner, (args, kwargs))
    if func is aten.mm.dtype:  # there is none on a CPU
        out = torch.mm(*(x.to(inner_args[2]) for x in inner_args[:2]))
    elif func is aten.histc.default:  # transformers counts whole numbers with it, which CUDA takes
        out = func(inner_args[0].float(), *inner_args[1:], **inner_kwargs).to(inner_args[0].dtype)
    else:
        out = func(*inner_args, **inner_kwargs)
    if func is aten.copy_.default:
        return args[0]
    if not there:
        return out
    out = tree_map_only(Tensor, Pretend, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if here else out


@cache
def _composite(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def _check(func: Any, tensors: list[Tensor], here: list[Pretend], device: Device) -> None:
    """Raise where CUDA would: whatever is on the CPU must be one number of a pointwise function, or an index."""
    strangers = [x for x in tensors if not isinstance(x, Pretend)]
    if func in INDEXING:
        if any(x.dtype in (torch.bool, torch.uint8) for x in tensors[1:]):
            device.waits["mask"] += 1
        device.waits["to cuda"] += len([x for x in strangers if x.ndim])
        wrong = not isinstance(tensors[0], Pretend)
    else:
        alone = torch.Tag.pointwise in func.tags or func in (aten.where.self, aten.masked_fill.Tensor)
        written = func._schema.is_mutable and not isinstance(tensors[0], Pretend)
        wrong = written or any(x.ndim or not alone for x in strangers)
    if wrong:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, found cuda:0 {tuple(here[0].shape)} "
            f"and cpu {[tuple(x.shape) for x in strangers]}"
        )


def placed(model: Any) -> Any:
    """The model with all parameters and buffers on the pretended device, as `.to("cuda")` would place them."""
    moved: dict[int, Tensor] = {}

    def move(x: Tensor) -> Tensor:
        if id(x) not in moved:
            there = Pretend(x.detach())
            moved[id(x)] = nn.Parameter(there, x.requires_grad) if isinstance(x, nn.Parameter) else there
        return moved[id(x)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                held[name] = None if tensor is None else move(tensor)
    return model


@contextmanager
def pretended(memory: int = 2**40) -> Iterator[Device]:
    """While the context lasts torch has a CUDA device, of so many bytes."""
    device = Device(memory)
    limits: dict[str, Any] = {
        "is_available": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": lambda *_: nullcontext(),
        "get_device_name": lambda *_: NAME,
        "get_device_capability": lambda *_: CAPABILITY,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: device.ran.update(["empty_cache"]),
        "memory_allocated": lambda *_: device.held,
        "memory_reserved": lambda *_: device.held,
        "mem_get_info": lambda *_: (device.memory - device.held, device.memory),
        "max_memory_allocated": lambda *_: device.highest,
        "reset_peak_memory_stats": lambda *_: setattr(device, "highest", device.held),
    }
    with mock.patch.multiple(torch.cuda, **limits), mock.patch.object(Pretend, "device_", device):
        lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device="cuda") is seen to be a copy
        try:
            with _Watching(device):
                yield device
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts)


def mend_interpreter() -> None:
    """Mends triton 3.6, whose interpreter takes int() of an array of one element, which NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor_type: Any, scope: Any) -> None:
        patch(tensor_type, scope)
        scope.set_attr(tensor_type, "__index__", lambda self: int(np.asarray(self.handle.data).squeeze()))

    interpreter._patch_lang_tensor = patched
