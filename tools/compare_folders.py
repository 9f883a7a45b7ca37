"""The half of compare_commits.py that compares what the probe wrote in two trees: tensors by their bits, JSON by value.

A difference is a number where both sides have a finite number of one type; everything else that is not the same (an
entry that is gone, another shape or type, a text, NaN against a number) is a difference that no tolerance accepts.
Entries that the base does not have changed nothing; they are counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

# Names of fields that say when, by what and how wide a result was computed, and nothing about it.
IGNORED = {"neuronllm", "transformers", "transformers_version", "torch", "versions", "commit", "threads", "seconds"}
REASON = "engine_reason"


@dataclass(frozen=True)
class Difference:
    """`absolute` and `relative` are None where it is not one of numbers. `exact`: of whole numbers, never accepted."""

    where: str
    what: str
    absolute: float | None = None
    relative: float | None = None
    exact: bool = False

    def accepted(self, tolerance: float) -> bool:
        return tolerance > 0 and not self.exact and self.relative is not None and self.relative <= tolerance


@dataclass(frozen=True)
class Outcome:
    """One line of the result."""

    group: str
    values: int
    fine: bool
    text: str
    notes: tuple[str, ...] = ()


def compare_folders(base: Path, head: Path, groups: Sequence[str], tolerance: float = 0.0) -> list[Outcome]:
    return [compare_group(base, head, group, tolerance) for group in groups]


def compare_group(base: Path, head: Path, group: str, tolerance: float = 0.0) -> Outcome:
    found = {}
    for label, folder in (("base", base), ("head", head)):
        if not (folder / f"{group}.json").is_file():
            return Outcome(group, 0, False, f"FAILED in {label}: nothing was written")
        found[label] = json.loads((folder / f"{group}.json").read_text("utf-8"))
        if found[label]["error"] is not None:
            return Outcome(group, 0, False, f"FAILED in {label}: {_short(found[label]['error'])}")
    unknown = set(found["base"]["unknown"]) | set(found["head"]["unknown"])
    notes = [f"{label} does not know {name}: left out" for label in found for name in found[label]["unknown"]]
    sides = []
    for label, folder in (("base", base), ("head", head)):
        tensors = load_file(folder / f"{group}.safetensors")
        plain = dict(flattened(found[label]["data"])) if found[label]["data"] else {}
        refused = {f"refused/{key}": "refused" for key in found[label]["refused"]}
        sides.append(tuple(_without(part, unknown) for part in (tensors, plain, refused)))
    return _outcome(group, sides[0], sides[1], tolerance, tuple(notes))


def _outcome(
    group: str, base: tuple[Any, ...], head: tuple[Any, ...], tolerance: float, notes: tuple[str, ...]
) -> Outcome:
    differences = [found for one, other in zip(base, head, strict=True) for found in differing(one, other)]
    values = sum(tensor.numel() for tensor in base[0].values()) + len(base[1])
    if not values and not differences:
        return Outcome(group, 0, False, "FAILED: there was nothing to compare", notes)
    new = sum(len(other.keys() - one.keys()) for one, other in zip(base, head, strict=True))
    if new:
        notes = (*notes, f"{group}: {new} entries are new in head")
    if not differences:
        return Outcome(group, values, True, "equal", notes)
    fine = all(difference.accepted(tolerance) for difference in differences)
    entries = sum(len(part) for part in base)
    text = f"{'within the tolerance' if fine else 'DIFFERS'}: {described(differences, entries)}"
    return Outcome(group, values, fine, text, notes)


def _without(entries: dict[str, Any], methods: set[str]) -> dict[str, Any]:
    """Without what belongs to methods that one of the commits does not have."""

    def of(key: str) -> str:
        return key.removeprefix("refused/").split("/")[0]

    return {key: value for key, value in entries.items() if of(key) not in methods}


def flattened(plain: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of plain data under their paths. An empty list or dictionary is a leaf: it may become a full one."""
    if isinstance(plain, dict) and plain:
        for key, value in plain.items():
            if key == REASON:  # the words of an error, which name what was tried first; that there is one counts
                yield f"{path}/{key}", value is not None
            elif key not in IGNORED:
                yield from flattened(value, f"{path}/{key}" if path else key)
    elif isinstance(plain, list) and plain:
        for number, value in enumerate(plain):
            yield from flattened(value, f"{path}/{number}")
    else:
        yield path, plain


def differing(base: dict[str, Any], head: dict[str, Any]) -> Iterator[Difference]:
    """At most one difference an entry: its largest."""
    for key in sorted(base.keys() | head.keys()):
        if key not in head:
            yield Difference(key, "is missing in head")
        elif key not in base:
            continue
        elif isinstance(base[key], Tensor):
            yield from _of_tensors(key, base[key], head[key])
        else:
            yield from _of_leaves(key, base[key], head[key])


def _of_tensors(key: str, base: Tensor, head: Tensor) -> Iterator[Difference]:
    if base.dtype != head.dtype or base.shape != head.shape:
        shapes = [f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" for tensor in (base, head)]
        yield Difference(key, f"{shapes[0]} against {shapes[1]}")
        return
    one, other = base.reshape(-1), head.reshape(-1)
    if torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
        return
    bytes_each = one.element_size()
    places = (one.view(torch.uint8) != other.view(torch.uint8)).reshape(-1, bytes_each).any(1)
    wide, wide_other = one.double(), other.double()
    both = wide.isfinite() & wide_other.isfinite()
    if bool((places & ~both).any()):  # NaN or infinite on one side, or a NaN of other bits
        worst = int((places & ~both).nonzero()[0])
        yield Difference(f"{key}[{worst}]", f"{wide[worst]:.9g} against {wide_other[worst]:.9g}")
        return
    gaps = torch.where(places, (wide - wide_other).abs(), -1.0)
    worst = int(gaps.argmax())
    largest = max(float(side[both].abs().max()) for side in (wide, wide_other))
    what = f"{wide[worst]:.9g} against {wide_other[worst]:.9g}"
    yield _of_numbers(f"{key}[{worst}]", what, float(gaps[worst]), largest, not base.is_floating_point())


def _of_leaves(key: str, base: Any, head: Any) -> Iterator[Difference]:
    """JSON keeps a float to the bit, and -0.0, and NaN, which equals itself here."""
    if type(base) is type(head) and repr(base) == repr(head):
        return
    what = f"{_short(base)} against {_short(head)}"
    numbers = type(base) is type(head) and isinstance(base, (int, float)) and not isinstance(base, bool)
    if numbers and math.isfinite(base) and math.isfinite(head):
        yield _of_numbers(key, what, abs(base - head), max(abs(base), abs(head)), isinstance(base, int))
    else:
        yield Difference(key, what)


def _of_numbers(where: str, what: str, absolute: float, largest: float, exact: bool) -> Difference:
    # 0 against -0 differ by nothing, and are not the same bits.
    return Difference(where, what, absolute, absolute / largest if largest else 0.0, exact)


def described(differences: Sequence[Difference], entries: int) -> str:
    """The largest absolute and relative difference and where they are, and the first one that is not of numbers."""
    parts = [f"{len(differences)} of {entries} entries"]
    numbers = [difference for difference in differences if difference.absolute is not None]
    if numbers:
        absolute = max(numbers, key=lambda difference: difference.absolute or 0.0)
        relative = max(numbers, key=lambda difference: difference.relative or 0.0)
        parts.append(f"absolute {absolute.absolute:.3g} at {absolute.where} ({absolute.what})")
        parts.append(f"relative {relative.relative:.3g} at {relative.where} ({relative.what})")
    others = [difference for difference in differences if difference.absolute is None]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        parts.append(f"{others[0].where}: {others[0].what}{more}")
    return "; ".join(parts)


def _short(value: Any) -> str:
    line = " ".join(repr(value).split())
    return line if len(line) <= 80 else line[:77] + "..."
