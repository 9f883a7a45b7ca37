"""The k largest and smallest of arrays on disk, also of such as are larger than memory.

Arrays of .npy and safetensors files are read in pieces of 64 MB into two buffers in turn: while one is selected from,
the other is filled. (Were the file mapped into memory instead, every page that was read would count as ours.)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import InputError
from . import Stream
from .results import FLOATS, Extremes

PIECE = 1 << 26
SAFETENSORS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
NAMES = {name: dtype for dtype, name in FLOATS.items()}


class Part(NamedTuple):
    """An array in a file."""

    path: Path
    tensor: str | None  # of a safetensors file
    dtype: torch.dtype
    shape: tuple[int, ...]
    order: str  # "C" or "F": how indices count
    offset: int  # bytes from the start of the file

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def where(self, index: int) -> tuple[int, ...]:
        """The place in the array of an element by its number in the file."""
        return tuple(int(i) for i in np.unravel_index(index, self.shape, order=self.order))  # type: ignore[call-overload]


def parts_of(path: str | os.PathLike[str], tensor: str | None = None) -> list[Part]:
    """The floating-point arrays of a .npy or safetensors file, or the named one of them."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".npy":
        if tensor is not None:
            raise InputError(f"{path}: a .npy file holds one array without a name, leave out tensor={tensor!r}")
        return [_npy(path)]
    if path.suffix == ".safetensors":
        return _safetensors(path, tensor)
    raise InputError(f"{path}: give a .safetensors or .npy file")


def _npy(path: Path) -> Part:
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
        except (ValueError, EOFError) as error:
            raise InputError(f"{path}: not a .npy file ({str(error).splitlines()[0]})") from error
        offset = file.tell()
    if dtype.name not in NAMES or not dtype.isnative:
        raise InputError(f"{path}: holds {dtype}, give float16, float32 or float64 in this machine's byte order")
    part = Part(path, None, NAMES[dtype.name], shape, "F" if is_fortran else "C", offset)
    return _whole(part, dtype.itemsize)


def _safetensors(path: Path, tensor: str | None) -> list[Part]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise InputError(f"{path}: not a safetensors file (its header is longer than the file)")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            arrays = {
                name: (entry["dtype"], tuple(map(int, entry["shape"])), 8 + length + int(entry["data_offsets"][0]))
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a safetensors file ({type(error).__name__} in its header)") from error
    if tensor is not None and tensor not in arrays:
        raise InputError(f"{path}: no tensor {tensor!r} there, it has {', '.join(sorted(arrays)) or 'none'}")
    wanted = arrays if tensor is None else {tensor: arrays[tensor]}
    parts = [
        _whole(Part(path, name, SAFETENSORS[kind], shape, "C", offset), SAFETENSORS[kind].itemsize)
        for name, (kind, shape, offset) in sorted(wanted.items(), key=lambda item: item[1][2])
        if kind in SAFETENSORS
    ]
    if not parts:
        kinds = ", ".join(sorted({kind for kind, _, _ in wanted.values()})) or "no tensors"
        raise InputError(f"{path}: holds {kinds}, give floats ({', '.join(SAFETENSORS)})")
    return parts


def _whole(part: Part, itemsize: int) -> Part:
    if part.offset + part.size * itemsize > part.path.stat().st_size:
        raise InputError(f"{part.path}: ends before its data do, write it again")
    return part


class Found(NamedTuple):
    """Extremes over several parts; indices count through all of them, `locate` tells a part and a place in it."""

    extremes: Extremes
    parts: Sequence[Part]

    def locate(self, index: int) -> tuple[Part, tuple[int, ...]]:
        for part in self.parts:
            if index < part.size:
                return part, part.where(index)
            index -= part.size
        raise IndexError(index)


def extremes_of_files(
    parts: Sequence[Part],
    largest: int = 0,
    smallest: int = 0,
    *,
    threads: int | None = None,
    backend: str = "auto",
    progress: bool = False,
) -> Found:
    """Both ends of all arrays together, in the order in which they are given. Needs 128 MB, however large they are.

    >>> found = extremes_of_files(parts_of("scores.safetensors", "per_prompt"), largest=100)    # doctest: +SKIP
    >>> found.locate(found.extremes.largest.indices[0])                                         # doctest: +SKIP
    """
    dtypes = {part.dtype for part in parts}
    if len(dtypes) != 1:
        raise InputError(
            f"give arrays of one dtype, not of {', '.join(sorted(FLOATS[dtype] for dtype in dtypes)) or 'none'}: "
            "name the tensor, or select from one after the other"
        )
    (dtype,) = dtypes
    stream = Stream((largest, smallest), dtype, threads=threads, backend=backend)
    total = sum(part.size for part in parts)
    from tqdm.auto import tqdm

    with tqdm(total=total * dtype.itemsize, unit="B", unit_scale=True, disable=not progress) as bar:
        base = 0
        for piece in _pieces(parts):
            stream.push(piece, base)
            base += len(piece)
            bar.update(len(piece) * dtype.itemsize)
    return Found(stream.result(), parts)


def _pieces(parts: Sequence[Part]) -> Iterator[torch.Tensor]:
    """The elements of all parts, a piece at a time; a piece is overwritten after the next one was asked for."""
    spans = [
        (part, first, min(PIECE, part.size * part.dtype.itemsize - first))
        for part in parts
        for first in range(0, part.size * part.dtype.itemsize, PIECE)
    ]
    largest = max((size for _, _, size in spans), default=0)
    buffers = [np.empty(largest, dtype=np.uint8) for _ in range(min(2, len(spans)))]
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = [reader.submit(_read, span, buffers[i]) for i, span in enumerate(spans[:1])]
        for number, (part, _, size) in enumerate(spans):
            ahead[number].result()
            if number + 1 < len(spans):  # the other buffer was selected from: its turn is over
                ahead.append(reader.submit(_read, spans[number + 1], buffers[(number + 1) % 2]))
            yield torch.from_numpy(buffers[number % 2][:size]).view(part.dtype)


def _read(span: tuple[Part, int, int], buffer: np.ndarray[Any, Any]) -> None:
    part, first, size = span
    view = buffer.data[:size]
    with open(part.path, "rb", buffering=0) as file:
        file.seek(part.offset + first)
        while len(view):
            got = file.readinto(view)
            if not got:
                raise InputError(f"{part.path}: ended while it was read")
            view = view[got:]
