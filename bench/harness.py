"""How a benchmark runs.

A benchmark builds a `Case`: the sides to be compared (callables) and the views of their figures (comparisons with a
bar, series with a slope). `run_case` then

1. checks the results against the plain ones, and raises `WrongResult` without timing anything if they differ;
2. tries the candidates of every `Choice` (batch sizes of a baseline) and keeps the fastest, so that no baseline is
   timed at a size that a competent user would not choose;
3. warms up and times all sides in turn, A B A B ..., in one process, on other inputs in every turn;
4. measures the peak memory of each side in a process of its own.

The ratio of a comparison comes from the medians of the same run.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch


class WrongResult(RuntimeError):
    """Ours differs from the plain result: there is nothing to time."""


class CannotRun(RuntimeError):
    """This machine lacks what it takes: nothing is timed and nothing is written."""


class Failed(RuntimeError):
    """A process that measures ended in an error: nothing is written, and what comes next still runs."""


@dataclass(frozen=True)
class Setup:
    """On what a benchmark runs: everything that is needed to build the same case again in another process."""

    device: str = "cpu"
    threads: int = 1
    shape: str = "small"
    rounds: int | None = None  # None: the case's own number
    seed: int = 0


@dataclass(frozen=True)
class Side:
    """Something to time: `run(*inputs(turn))`, of which the making of the inputs is not timed.

    `work` is how many units (prompts, neurons) one run does, a fraction where it is a sample of one; times are quoted
    per unit. `times` is how often it runs in a round, `every` 3 lets it run in every third round only. With `own_clock`
    run returns the seconds itself. `reads` is how many bytes a run has to read, where that is what bounds it.
    """

    name: str
    inputs: Callable[[int], tuple[Any, ...]]
    run: Callable[..., Any]
    work: float = 1
    times: int = 1
    every: int = 1
    own_clock: bool = False
    reads: int = 0


@dataclass(frozen=True)
class Choice:
    """A side with a free setting: each candidate is piloted, the fastest per unit of work is the one that is timed.

    `whole` makes the side to be timed of the fastest candidate, where the pilot had less to do.
    """

    name: str
    candidates: Sequence[Side]
    whole: Callable[[Side], Side] = lambda side: side


@dataclass(frozen=True)
class Bar:
    """What a ratio should reach: Bar(">=", 60)."""

    sign: str
    value: float

    def met(self, ratio: float) -> bool:
        return ratio >= self.value if self.sign == ">=" else ratio <= self.value


@dataclass(frozen=True)
class Comparison:
    """Two sides beside each other. kind "speed-up" is baseline / ours, "cost" is ours / baseline.

    `what` names ours and `against` the baseline for readers. `of` says what is compared: "time" per unit of work, or
    "peak" memory.
    """

    what: str
    against: str
    baseline: str
    ours: str
    kind: str = "speed-up"
    of: str = "time"
    bar: Bar | None = None


@dataclass(frozen=True)
class Series:
    """Time of several sides against a size. A line is fitted to whole times; `flat` shows times per unit of work."""

    what: str
    x: str
    sides: Sequence[tuple[float, str]]
    flat: bool = False
    bar: Bar | None = None  # on the largest time per unit over the smallest, with `flat`


@dataclass(frozen=True)
class Limit:
    """A side by itself, with a bar on the seconds of `units` units of its work."""

    what: str
    ours: str
    units: int
    bar: Bar


View = Comparison | Series | Limit


@dataclass(frozen=True)
class Check:
    """A comparison of results, made before anything is timed: fine while value <= limit (>= with at_least)."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def fine(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit  # False for NaN


@dataclass
class Case:
    sides: list[Side | Choice]
    check: Callable[[], list[Check]]
    views: list[View]
    unit: str = "prompt"
    rounds: int = 3
    timed: bool = True
    peaks: list[str] = field(default_factory=list)  # sides whose peak memory is measured
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: Callable[[dict[str, int]], dict[str, Any]] | None = None  # further figures, given the measured peaks
    stack: ExitStack = field(default_factory=ExitStack)  # closed when the case is done

    def let_go(self) -> None:
        """Close and forget what was timed, so that the processes that measure memory have the device to themselves."""
        self.stack.close()
        self.sides, self.check = [], list
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Benchmark:
    name: str  # suite.name
    title: str
    build: Callable[[Setup], Case]
    shapes: dict[str, tuple[str, ...]]  # device -> shapes it runs at there unless told otherwise
    quick: bool = True
    threads: tuple[int, ...] = (1,)  # numbers of threads it runs at unless told otherwise

    @property
    def suite(self) -> str:
        return self.name.split(".")[0]


FIRST = 2  # turn that is timed: those before it belong to pilots, checks and warming up


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def clock(side: Side, turn: int, device: str) -> float:
    """Seconds of one run. The work of a GPU counts whole: it is waited for on both ends."""
    inputs = side.inputs(turn)
    gc.collect()
    synchronize(device)
    start = time.perf_counter()
    result = side.run(*inputs)
    synchronize(device)
    seconds = time.perf_counter() - start
    return float(result) if side.own_clock else seconds


def clocked(call: Callable[[], Any], times: int, device: str) -> float:
    """Seconds of one call, of some in a row that are waited for together: launches alone do not count then.

    >>> clocked(lambda: None, 10, "cpu") < 1
    True
    """
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / times


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile of a few values, between neighbours where it falls between.

    >>> quantile([1.0, 2.0, 4.0], 0.5), quantile([1.0, 2.0], 0.25)
    (2.0, 1.25)
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(times: Sequence[float], side: Side) -> dict[str, Any]:
    """Figures of a side; median, p20 and p80 are per unit of work, times are of whole runs, rate is bytes a second."""
    each = [t / side.work for t in times]
    figures = {"median": statistics.median(each), "p20": quantile(each, 0.2), "p80": quantile(each, 0.8)}
    rate = {"reads": side.reads, "rate": side.reads / statistics.median(times)} if side.reads else {}
    return {"work": side.work, "times": list(times)} | figures | rate


def relative(found: torch.Tensor, right: torch.Tensor) -> float:
    """Norm of the difference over the norm, in float64, the worst row of a batch.

    >>> relative(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    1.0
    """
    found, right = (x.double().cpu().reshape(-1, x.shape[-1]) for x in (found, right))
    return float(((found - right).norm(dim=-1) / right.norm(dim=-1)).max())


def choose(choice: Choice, device: str, turns: int = 2) -> tuple[Side, dict[str, Any]]:
    """The fastest candidate per unit of work, and what each took at best."""
    times: dict[str, list[float]] = {side.name: [] for side in choice.candidates}
    for turn in range(turns):
        for side in choice.candidates:
            times[side.name].append(clock(side, turn, device))
    each = {side.name: min(times[side.name]) / side.work for side in choice.candidates}
    best = min(choice.candidates, key=lambda side: each[side.name])
    return replace(choice.whole(best), name=choice.name), {"chosen": best.name, "per_unit": each}


def interleave(sides: Sequence[Side], rounds: int, device: str) -> dict[str, list[float]]:
    """Times of every side. Every round runs all of them, so that a slow minute of the machine meets all alike."""
    for side in sides:
        if side.times > 1 or not device.startswith("cpu"):  # on a CPU the check has warmed dear sides
            side.run(*side.inputs(0))
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(rounds):
        order = sides[::-1] if number % 4 in (1, 2) else sides  # of every second round both ways too
        turns = max((side.times for side in order), default=0)
        for turn in range(turns):
            for side in order:
                if number % side.every == 0 and turn < side.times:
                    times[side.name].append(clock(side, FIRST + number * side.times + turn, device))
    return times


def line(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Least squares with relative weights: time = start + slope * x; `off` is the largest relative deviation.

    >>> fit = line([(1, 3.0), (2, 5.0), (4, 9.0)]); round(fit["slope"], 9), round(fit["start"], 9)
    (2.0, 1.0)
    """
    x, y = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
    design = torch.stack([torch.ones_like(x), x], 1) / y[:, None]
    start, slope = torch.linalg.lstsq(design, torch.ones_like(y)[:, None]).solution[:, 0].tolist()
    logs = torch.stack([torch.ones_like(x), x.log()], 1)
    power = torch.linalg.lstsq(logs, y.log()[:, None]).solution[1].item()
    return {"start": start, "slope": slope, "power": power, "off": float(((start + slope * x) / y - 1).abs().max())}


def seen(view: View, sides: dict[str, Any]) -> dict[str, Any] | None:
    """The figures of a view; None where a side of it did not run here."""
    if isinstance(view, Series):
        return followed(view, sides)
    if isinstance(view, Limit):
        seconds = sides[view.ours]["median"] * view.units
        return {"view": "limit"} | asdict(view) | {"seconds": seconds, "met": view.bar.met(seconds)}
    key = "median" if view.of == "time" else "peak"
    if all(key in sides.get(name, {}) for name in (view.baseline, view.ours)):
        return compared(view, sides, key)
    return None


def compared(view: Comparison, sides: dict[str, Any], key: str) -> dict[str, Any]:
    base, ours = sides[view.baseline][key], sides[view.ours][key]
    ratio = base / ours if view.kind == "speed-up" else ours / base
    found = asdict(view) | {"ratio": ratio, "met": view.bar.met(ratio) if view.bar else None}
    return {"view": "comparison"} | found


def followed(view: Series, sides: dict[str, Any]) -> dict[str, Any]:
    whole = [(x, sides[name]["median"] * sides[name]["work"]) for x, name in view.sides]
    points = [(x, sides[name]["median"]) for x, name in view.sides] if view.flat else whole
    spread = max(y for _, y in points) / min(y for _, y in points)
    found = asdict(view) | {"points": points, "spread": spread} | line(whole)
    return {"view": "series"} | found | {"met": view.bar.met(spread) if view.bar else None}


def checked(case: Case) -> list[dict[str, Any]]:
    checks = case.check()
    wrong = [check for check in checks if not check.fine]
    if wrong:
        text = "; ".join(f"{c.what}: {c.value:.2e}, limit {c.limit:.2e}" for c in wrong)
        raise WrongResult(f"not timed, the results are wrong: {text}")
    return [asdict(check) for check in checks]


def timed(case: Case, setup: Setup) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of every side by name, and of the pilots."""
    found, pilots, sides = {}, {}, []
    for side in case.sides:
        if isinstance(side, Choice):
            side, pilots[side.name] = choose(side, setup.device)
        sides.append(side)
    times = interleave(sides, setup.rounds or case.rounds, setup.device)
    for side in sides:
        found[side.name] = summary(times[side.name], side)
    return found, pilots


def run_case(
    case: Case, setup: Setup, peak_of: Callable[[str], dict[str, int]], tell: Callable[[str], None] = lambda step: None
) -> dict[str, Any]:
    """The figures of a case. `peak_of` measures the peak memory of a side, in a process of its own; {} if it failed.

    `tell` hears what begins, behind the check.
    """
    checks = checked(case)
    if case.timed and case.sides:
        tell("timing")
    found, pilots = timed(case, setup) if case.timed else ({}, {})
    case.let_go()
    for name in case.peaks:
        tell(f"memory of {name}")
        if peak := peak_of(name):
            found.setdefault(name, {}).update(peak)
    views = [figures for view in case.views if (figures := seen(view, found)) is not None]
    if case.facts:
        tell("further figures")
    peaks = {name: side["peak"] for name, side in found.items() if "peak" in side}
    facts = case.facts(peaks) if case.facts else {}
    if not found and not facts:
        raise Failed("nothing could be measured")
    return {
        "unit": case.unit,
        "settings": case.settings,
        "notes": case.notes,
        "checks": checks,
        "pilots": pilots,
        "sides": found,
        "views": views,
        "facts": facts,
    }
