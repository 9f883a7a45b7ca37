"""From JSON to pictures: what takes how long beside what, and the curves of the series, for docs/performance.md.

Two versions of matplotlib write other bytes for the same picture, so no test compares bytes. Instead every picture
carries two digests: of the figures that it was drawn from, and of its own text. `stale` names the pictures that show
other figures than the JSON has and those that were changed after they were drawn.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuronllm.common.errors import InputError

from .conditions import busy, grouped, place, where
from .units import seconds, verdict

PREFIX = "performance-"  # of the files in the folder that are ours, to be written and taken away
FOLDER = "images"  # beside the page
GREY, BLUE = "#9a9a9a", "#1f6fb4"
SETTINGS = {"svg.hashsalt": "neuronllm", "svg.fonttype": "none", "font.size": 9, "axes.axisbelow": True}
DIGEST = "sha256 of the figures: "
DRAWING, BLANK = "sha256 of the drawing: ", "0" * 64  # of the text with BLANK for the digest
MOST = 20  # pairs of bars in a picture
TABLES = ("end_to_end",)  # suites without bars: parts of a whole
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
    found = []
    drawable = [result for result in results if _suite(result) not in TABLES and _compared(result)]
    for name, here in grouped(drawable, lambda r: f"{_suite(r)}-{r['device']}-{r['threads']}").items():
        if sum(len(_compared(result)) for result in here) <= MOST:
            found.append(_bars(name, _suite(here[0]), here))
            continue
        for benchmark, mine in grouped(here, lambda r: r["benchmark"]).items():
            one = f"{benchmark.replace('.', '-')}-{here[0]['device']}-{here[0]['threads']}"
            parts = _parts(mine)
            for number, part in enumerate(parts):
                of = f" ({number + 1} of {len(parts)})" if number or len(parts) > 1 else ""
                found.append(_bars(one + (f"-{number + 1}" if number else ""), benchmark + of, part))
    return found + [picture for result in results for picture in _curves(result)]


def _parts(results: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Results in their order, as many together as a picture takes."""
    parts: list[list[dict[str, Any]]] = [[]]
    for result in results:
        if parts[-1] and sum(len(_compared(r)) for r in [*parts[-1], result]) > MOST:
            parts.append([])
        parts[-1].append(result)
    return parts


def _suite(result: dict[str, Any]) -> str:
    return str(result["benchmark"].split(".")[0])


def _bars(name: str, what: str, results: Sequence[dict[str, Any]]) -> Picture:
    alone = len({result["shape"] for result in results}) == 1
    bars = tuple(_pair(result, view, alone) for result in results for view in _compared(result))
    return Picture(name, f"{what}: ours beside baselines, {place(results[0])}", bars=bars)


def _compared(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [view for view in result["views"] if view["view"] == "comparison" and view["of"] == "time"]


def _pair(result: dict[str, Any], view: dict[str, Any], alone: bool) -> dict[str, Any]:
    sides = [result["sides"][view[name]] for name in ("baseline", "ours")]
    times = [[side[key] for key in ("p20", "median", "p80")] for side in sides]
    what = (view["what"] if alone else f"{result['shape']}: {view['what']}") + (
        ", busy machine" if busy(result) else ""
    )
    other, mine = (" (1 run)" if len(side["times"]) == 1 else "" for side in sides)
    return {
        "what": what,
        "against": f"{view['against']}{other}, a {result['unit']}" + (f"; ours{mine}" if mine else ""),
        "times": times,
        "verdict": verdict(view["ratio"], view["kind"], "time"),
    }


def _curves(result: dict[str, Any]) -> list[Picture]:
    """One picture for each size that series run over: lines over the same axis belong together."""
    series: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for view in result["views"]:
        if view["view"] == "series":
            series.setdefault((view["x"], view["flat"]), []).append(view)
    found = []
    for number, views in enumerate(series.values()):
        name = f"{result['benchmark']}-{result['shape']}-{result['device']}-{result['threads']}".replace(".", "-")
        keep = ("what", "points", "start", "slope", "power", "off", "x", "flat")
        curves = tuple({key: view[key] for key in keep} | {"unit": result["unit"]} for view in views)
        title = f"{result['title']}: {where(result)}"
        found.append(Picture(name + (f"-{number + 1}" if number else ""), title, curves=curves))
    return found


def links(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The lines of a page that show the pictures of some results, of every picture."""
    return [[f"![{picture.title}]({FOLDER}/{picture.file})", ""] for picture in pictures(results)]


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
        target, describe = io.StringIO(), f"{DIGEST}{picture.digest}; {DRAWING}{BLANK}"
        figure.savefig(target, format="svg", metadata={"Date": None, "Description": describe})
    text = "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"
    return text.replace(DRAWING + BLANK, DRAWING + hashlib.sha256(text.encode()).hexdigest())


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
    axes.set_xlabel("time, log scale\n(grey: baseline, blue: ours; thin lines: 20th to 80th percentile of the runs)")
    axes.grid(axis="x", lw=0.4)


def _draw_curves(figure: Any, axes: Any, picture: Picture) -> None:
    from matplotlib.ticker import LogLocator

    figure.set_size_inches(7, 3.6 + 0.2 * len(picture.curves))
    for curve in picture.curves:
        points, ys = zip(*curve["points"], strict=True)
        (line,) = axes.plot(points, ys, "o", ms=4, label=f"{curve['what']}: {_growth(curve)}")
        xs = [points[0] * (points[-1] / points[0]) ** (step / 50) for step in range(51)]  # a line bends on log axes
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
    figure.legend(
        loc="outside lower center",
        frameon=False,
        title="points: measured (medians); lines: fitted, start + slope x size",
    )


def _growth(curve: dict[str, Any]) -> str:
    if curve["off"] > BENT:
        return f"like {curve['x']} to the power of {curve['power']:.2f}"
    more = "less" if curve["slope"] < 0 else "more"
    return f"{seconds(abs(curve['slope']))} {more} for 1 more"


# ---- files ----


def write(results: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw what is missing, edited or shows other figures, and take away what belongs to no result any more."""
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
    """Names of the files that are missing, that show other figures, that were edited, or that belong to no result."""
    wanted = {picture.file: picture.digest for picture in pictures(results)}
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob(f"{PREFIX}*.svg")}
    wrong = [name for name, digest in wanted.items() if not _sound(there.get(name, ""), digest)]
    return sorted([*wrong, *(there.keys() - wanted.keys())])


def _sound(text: str, digest: str) -> bool:
    """Whether a file shows the figures of a digest, and all of it is as it was drawn."""
    found = re.search(DRAWING + "([0-9a-f]{64})", text)
    if found is None or DIGEST + digest not in text:
        return False
    blank = text.replace(found[0], DRAWING + BLANK, 1)
    return hashlib.sha256(blank.encode()).hexdigest() == found[1]
