"""The k largest and smallest of arrays on disk, also of such as are larger than memory.

Arrays of .npy and safetensors files are read in pieces of 64 MB into two buffers in turn: while one is selected from,
the other is filled. (Were the file mapped into memory instead, every page that was read would count as ours.)
"""

from __future__ import annotations

import itertools
import json
import math
import os
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..common.errors import InputError
from ..common.warning import warn
from . import Stream
from .results import FLOATS, Extremes, printable

PIECE = 1 << 26
SAFETENSORS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
NAMES = {name: dtype for dtype, name in FLOATS.items()}
LONGEST_HEADER = 100_000_000  # of a safetensors file, as its own library has it
NAMED = 20  # tensors that one line of a warning names
NPY_VERSIONS = ((1, 0), (2, 0), (3, 0))
# What NumPy raises for headers that are none: it parses them as Python, and again by tokens if that fails.
UNREADABLE = (
    *(ValueError, TypeError, KeyError, EOFError, OverflowError),
    *(SyntaxError, tokenize.TokenError, RecursionError, MemoryError),
)


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
        index, place = int(index), []
        for side in self.shape if self.order == "F" else reversed(self.shape):
            index, i = divmod(index, side)
            place.append(i)
        return tuple(place if self.order == "F" else reversed(place))


def parts_of(path: str | os.PathLike[str], tensor: str | None = None) -> list[Part]:
    """The floating-point arrays of a .npy or safetensors file, or the named one of them.

    A warning names the tensors of other types, which are skipped.
    """
    path = Path(path)
    with _readable(path):
        if path.is_dir():
            raise InputError(f"{path}: this is a folder, name a .safetensors or .npy file in it")
        if not path.is_file():
            raise InputError(f"{path}: {'is not a regular file' if path.exists() else 'no such file'}")
        if path.suffix == ".npy":
            if tensor is not None:
                raise InputError(f"{path}: a .npy file holds one array without a name, leave out tensor={tensor!r}")
            return [_npy(path)]
        if path.suffix == ".safetensors":
            return _safetensors(path, tensor)
    raise InputError(f"{path}: give a .safetensors or .npy file")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or type(error).__name__}") from error


def _npy(path: Path) -> Part:
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            if version not in NPY_VERSIONS:
                number = ".".join(map(str, version))
                raise InputError(f"{path}: .npy format version {number} is not known, save it again with numpy.save")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of headers that NumPy cannot read at once
                shape, is_fortran, dtype = read(file)
        except InputError:
            raise
        except UNREADABLE as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"{path}: not a .npy file ({why}), write it again") from error
        offset = file.tell()
    if not all(_is_count(side) for side in shape):
        raise InputError(f"{path}: not a .npy file (shape {shape}), write it again")
    if dtype.name not in NAMES or not dtype.isnative:
        raise InputError(f"{path}: holds {dtype}, give float16, float32 or float64 in this machine's byte order")
    part = Part(path, None, NAMES[dtype.name], shape, "F" if is_fortran else "C", offset)
    if offset + part.size * dtype.itemsize > path.stat().st_size:
        raise InputError(f"{path}: ends before its data do, write it again")
    return part


def _safetensors(path: Path, tensor: str | None) -> list[Part]:
    entries, start = _header(path)
    if tensor is not None and tensor not in entries:
        names = ", ".join(map(printable, sorted(entries))) or "none"
        raise InputError(f"{path}: no tensor {tensor!r} there, it has {names}")
    wanted = entries if tensor is None else {tensor: entries[tensor]}
    parts = [
        Part(path, name, SAFETENSORS[entry.kind], entry.shape, "C", start + entry.begin)
        for name, entry in sorted(wanted.items(), key=lambda item: item[1].begin)
        if entry.kind in SAFETENSORS
    ]
    if not parts:
        kinds = ", ".join(sorted({printable(entry.kind) for entry in wanted.values()})) or "no tensors"
        raise InputError(f"{path}: holds {kinds}, give floats ({', '.join(SAFETENSORS)})")
    skipped = [f"{name}: {entry.kind}" for name, entry in wanted.items() if entry.kind not in SAFETENSORS]
    if skipped:
        names = ", ".join(map(printable, skipped[:NAMED])) + (
            f" and {len(skipped) - NAMED} more" * (len(skipped) > NAMED)
        )
        warn(f"{path}: skipped {names} (read are {', '.join(SAFETENSORS)})")
    return parts


class _Entry(NamedTuple):
    """What the header of a safetensors file says of a tensor; bytes count from the end of the header."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _header(path: Path) -> tuple[dict[str, _Entry], int]:
    """The tensors of a safetensors file, and where its header ends."""

    def wrong(why: str) -> InputError:
        return InputError(f"{path}: not a safetensors file ({why}), write it again")

    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise wrong("its header is longer than the file")
        if length > LONGEST_HEADER:
            raise wrong(f"its header is longer than {LONGEST_HEADER} bytes")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong("its header is no JSON") from error
    if not isinstance(header, dict):
        raise wrong("its header is no JSON object")
    header.pop("__metadata__", None)
    entries = {}
    for name, given in header.items():
        entry = _entry(given)
        if isinstance(entry, str):
            raise wrong(f"tensor {name!r}: {entry}")
        if entry.end > size - 8 - length:
            raise InputError(f"{path}: ends before the data of tensor {name!r} do, write it again")
        entries[name] = entry
    places = sorted((entry.begin, entry.end, name) for name, entry in entries.items())
    for (_, end, name), (begin, _, after) in itertools.pairwise([(0, 0, ""), *places, (size - 8 - length, 0, "")]):
        if begin < end:
            raise wrong(f"tensors {name!r} and {after!r} overlap")
        if begin > end:
            raise wrong(f"bytes {end} to {begin} of its data belong to no tensor")
    return entries, 8 + length


def _entry(given: Any) -> _Entry | str:
    """One tensor of a header, or what is wrong with it."""
    if not isinstance(given, dict):
        return "its entry is no JSON object"
    kind, shape, offsets = given.get("dtype"), given.get("shape"), given.get("data_offsets")
    if not isinstance(kind, str):
        return "its dtype is no text"
    if not isinstance(shape, list) or not all(_is_count(side) for side in shape):
        return "its shape is no list of whole numbers, 0 or more"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        return "its data_offsets are no two whole numbers, 0 or more"
    begin, end = offsets
    if begin > end:
        return f"its data_offsets go backwards, from {begin} to {end}"
    if kind in SAFETENSORS and end - begin != math.prod(shape) * SAFETENSORS[kind].itemsize:
        return f"its data_offsets span {end - begin} bytes, its shape {math.prod(shape) * SAFETENSORS[kind].itemsize}"
    return _Entry(kind, tuple(shape), begin, end)


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


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
    with _readable(part.path), open(part.path, "rb", buffering=0) as file:
        file.seek(part.offset + first)
        while len(view):
            got = file.readinto(view)
            if not got:
                raise InputError(f"{part.path}: ended while it was read")
            view = view[got:]
