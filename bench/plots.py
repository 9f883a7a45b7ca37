"""From JSON to pictures: what takes how long beside what, and the curves of the series, for docs/performance.md.

Two versions of matplotlib write other bytes for the same picture, so no test compares bytes. Instead every picture
carries the digest of the figures that it was drawn from, and `stale` names those that show others than the JSON has.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuronllm.errors import InputError

from .units import ratio, seconds

PREFIX = "performance-"  # of the files in the folder that are ours, to be written and taken away
FOLDER = "images"  # beside the page
GREY, BLUE = "#9a9a9a", "#1f6fb4"
SETTINGS = {"svg.hashsalt": "neuronllm", "svg.fonttype": "none", "font.size": 9, "axes.axisbelow": True}
DIGEST = "sha256 of the figures: "
BENT = 0.25  # points further from the fitted line than this lie on no line


@dataclass(frozen=True)
class Picture:
    """What is drawn. Bars: pairs of a baseline and ours; curves: points and their fitted line."""

    name: str
    title: str
    bars: tuple[dict[str, Any], ...] = ()
    curves: tuple[dict[str, Any], ...] = ()

    @property
    def file(self) -> str:
        return f"{PREFIX}{self.name}.svg"

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


# ---- what is drawn ----


def pictures(results: Sequence[dict[str, Any]]) -> list[Picture]:
    """Bars for every suite and place it ran at, curves for every result with series."""
    places: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for result in results:
        suite = result["benchmark"].split(".")[0]
        places.setdefault((suite, result["device"], result["threads"]), []).append(result)
    found = []
    for (suite, device, threads), here in places.items():
        bars = tuple(_pair(r, v, alone=len({r["shape"] for r in here}) == 1) for r in here for v in _compared(r))
        if bars:
            gpu = here[0]["machine"]["gpu"]
            where = gpu or f"{threads} thread{'s' if threads > 1 else ''}"
            title = f"{suite}: ours beside baselines, {where}"
            found.append(Picture(f"{suite}-{device}-{threads}", title, bars=bars))
    return found + [picture for result in results for picture in _curves(result)]


def _compared(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [view for view in result["views"] if view["view"] == "comparison" and view["of"] == "time"]


def _pair(result: dict[str, Any], view: dict[str, Any], alone: bool) -> dict[str, Any]:
    times = [[result["sides"][view[name]][key] for key in ("p20", "median", "p80")] for name in ("baseline", "ours")]
    what = view["what"] if alone else f"{result['shape']}: {view['what']}"
    verdict = ratio(view["ratio"]) + (" faster" if view["kind"] == "speed-up" else " the time")
    return {"what": what, "against": f"{view['against']}, a {result['unit']}", "times": times, "verdict": verdict}


def _curves(result: dict[str, Any]) -> list[Picture]:
    """One picture for each size that series run over: lines over the same axis belong together."""
    series: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for view in result["views"]:
        if view["view"] == "series":
            series.setdefault((view["x"], view["flat"]), []).append(view)
    found = []
    for number, views in enumerate(series.values()):
        place = f"{result['benchmark']}-{result['shape']}-{result['device']}-{result['threads']}".replace(".", "-")
        gpu = result["machine"]["gpu"]
        where = gpu or f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
        keep = ("what", "points", "start", "slope", "power", "off", "x", "flat")
        curves = tuple({key: view[key] for key in keep} | {"unit": result["unit"]} for view in views)
        title = f"{result['title']}: {result['shape']}, {where}"
        found.append(Picture(place + (f"-{number + 1}" if number else ""), title, curves=curves))
    return found


def links(results: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of a page that show the pictures of some results."""
    return [line for picture in pictures(results) for line in (f"![{picture.title}]({FOLDER}/{picture.file})", "")]


# ---- drawing ----


def drawn(picture: Picture) -> str:
    """The picture as SVG: the same figures give the same bytes, on any day."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("the pictures of the report need matplotlib: pip install 'neuronllm[viz]'") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(picture.title, fontsize=10)
        (_draw_bars if picture.bars else _draw_curves)(figure, axes, picture)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Description": DIGEST + picture.digest})
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"


def _draw_bars(figure: Any, axes: Any, picture: Picture) -> None:
    figure.set_size_inches(8, 0.9 + 0.52 * len(picture.bars))
    for row, bar in enumerate(picture.bars):
        for (low, middle, high), shift, color in zip(bar["times"], (-0.19, 0.19), (GREY, BLUE), strict=True):
            ends = [[middle - low], [high - middle]]
            axes.barh(row + shift, middle, 0.36, color=color, xerr=ends, error_kw={"lw": 0.8, "ecolor": "0.25"})
        longest = max(high for _, _, high in bar["times"])
        axes.annotate(bar["verdict"], (longest, row), (6, 0), textcoords="offset points", va="center")
    times = [t for bar in picture.bars for side in bar["times"] for t in side]
    start = 10.0 ** math.floor(math.log10(min(times) / 1.5))
    axes.set(xscale="log", xlim=(start, max(times) * (max(times) / start) ** 0.3))  # room for the verdicts
    axes.xaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_yticks(range(len(picture.bars)), [f"{bar['what']}\nagainst {bar['against']}" for bar in picture.bars])
    axes.set_ylim(len(picture.bars) - 0.4, -0.6)
    axes.set_xlabel("time, logarithmic (grey: baseline, blue: ours; thin lines: 20th to 80th percentile)")
    axes.grid(axis="x", lw=0.4)


def _draw_curves(figure: Any, axes: Any, picture: Picture) -> None:
    from matplotlib.ticker import LogLocator

    figure.set_size_inches(7, 3.6 + 0.2 * len(picture.curves))
    for curve in picture.curves:
        xs, ys = zip(*curve["points"], strict=True)
        (line,) = axes.plot(xs, ys, "o", ms=4, label=f"{curve['what']}: {_growth(curve)}")
        fitted = [(curve["start"] + curve["slope"] * x) / (x if curve["flat"] else 1) for x in xs]
        if curve["off"] <= BENT:
            axes.plot(xs, fitted, "-", lw=1, color=line.get_color())
    first = picture.curves[0]
    sizes = sorted({x for curve in picture.curves for x, _ in curve["points"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{x:,g}" for x in sizes])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.tick_params("x", which="minor", bottom=False)
    axes.set(xlabel=first["x"], ylabel=f"time a {first['unit']}" if first["flat"] else "time")
    axes.grid(lw=0.4)
    figure.legend(loc="outside lower center", frameon=False, title="points: measured; lines: start + slope x size")


def _growth(curve: dict[str, Any]) -> str:
    if curve["off"] > BENT:
        return f"like {curve['x']} to the power of {curve['power']:.2f}"
    more = "less" if curve["slope"] < 0 else "more"
    return f"{seconds(abs(curve['slope']))} {more} for 1 more"


# ---- files ----


def write(results: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw what is missing or shows other figures, and take away what belongs to no result any more."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {picture.file: picture for picture in pictures(results)}
    changed = []
    for name in stale(results, folder):
        path, temporary = folder / name, folder / f".{name}.tmp"
        if name in wanted:
            temporary.write_text(drawn(wanted[name]), encoding="utf-8")
            temporary.replace(path)
        else:
            path.unlink()
        changed.append(path)
    return changed


def stale(results: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """Names of the files that are missing, that show other figures than the results have, or that belong to none."""
    wanted = {picture.file: picture.digest for picture in pictures(results)}
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob(f"{PREFIX}*.svg")}
    wrong = [name for name, digest in wanted.items() if DIGEST + digest not in there.get(name, "")]
    return sorted([*wrong, *(there.keys() - wanted.keys())])
