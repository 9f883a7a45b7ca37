"""From JSON to text: the lines that a run prints, and the page docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from neuronllm.common.tables import markdown_table, show

from . import plots
from .conditions import conditions, grouped, missing, where
from .units import ratio, runs, seconds, size, verdict

HEAD = """# Performance

This page is generated: `python -m bench report` writes it from the files in `bench/results/`, and a test fails when it
says anything else. How the figures come about stands in `bench/README.md`: results are checked before they are timed,
both sides of a ratio run in turn in one process, and every repetition is in the JSON.

The columns of the tables of ratios:

- **where**: the model or array that it ran on, and the threads or the GPU. "Busy machine" is said where others were at
  work as it began (a load above 1.1 for each core): take such times with care.
- **work**, **against**: what of ours is measured, and what beside.
- **takes**, **ours takes**: what the other side takes, and what ours does. Times are medians of the runs, whose number
  stands behind; in brackets are the 20th and the 80th percentile, between neighbours where runs are few. One run has no
  spread. Memory is the peak above the loaded model.
- **ratio**: "2.00x faster" and "less memory" are the other figure over ours, "0.90x the speed" the same where ours is
  the slower one; "the time" and "the memory" are ours over the other. In a row without another side stands the time of
  all the work that its bar is about.
- **bar**: what the ratio or the time should reach, and whether it did.

The end of the page says what has not been measured.
"""


def bar(view: dict[str, Any]) -> str:
    """The bar of a view and whether it was met."""
    wanted = view["bar"]
    if not wanted:
        return ""
    what = seconds(wanted["value"]) if view["view"] == "limit" else f"{wanted['value']:g}x"
    return f"{wanted['sign'].replace('>=', '≥').replace('<=', '≤')} {what}, {'met' if view['met'] else 'not met'}"


def spread(side: dict[str, Any], unit: str) -> str:
    """Median, percentiles where there is more than one run, number of runs, bytes a second where they are known."""
    around = f" ({seconds(side['p20'])} to {seconds(side['p80'])})" if len(side["times"]) > 1 else ""
    rate = f", {side['rate'] / 1e9:.1f} GB/s" if "rate" in side else ""
    return f"{seconds(side['median'])}{around} a {unit}, {runs(side)}{rate}"


def figure(side: dict[str, Any], of: str, unit: str) -> str:
    """The memory of a side, or its time and, where it was measured, its memory too."""
    if of == "peak":
        return size(side["peak"])
    return spread(side, unit) + (f", {size(side['peak'])}" if "peak" in side else "")


def row(result: dict[str, Any], view: dict[str, Any]) -> list[str]:
    """Work, against what, figure of the baseline, figure of ours, ratio, bar."""
    sides, unit = result["sides"], result["unit"]
    if view["view"] == "limit":
        return [view["what"], "", "", figure(sides[view["ours"]], "time", unit), seconds(view["seconds"]), bar(view)]
    found = [figure(sides[view[name]], view["of"], unit) for name in ("baseline", "ours")]
    return [view["what"], view["against"], *found, verdict(view["ratio"], view["kind"], view["of"]), bar(view)]


def series_rows(result: dict[str, Any], view: dict[str, Any]) -> list[list[str]]:
    """Size, time and number of runs, and memory where it was measured."""
    rows = []
    for (x, y), (_, name) in zip(view["points"], view["sides"], strict=True):
        side = result["sides"][name]
        rows.append([f"{x:,g}", seconds(y), str(len(side["times"])), *([size(side["peak"])] if "peak" in side else [])])
    return rows


def as_text(result: dict[str, Any]) -> str:
    """What a run prints."""
    lines = [f"== {result['benchmark']} ({result['title']}): {where(result)}"]
    lines += [f"   checked: {c['what']} {c['value']:.2g} (limit {c['limit']:.2g})" for c in result["checks"]]
    for name, pilot in result["pilots"].items():
        tried = ", ".join(f"{key} {seconds(value)}" for key, value in pilot["per_unit"].items())
        lines.append(f"   {name}: {pilot['chosen']} chosen of {tried}")
    for name, side in result["sides"].items():
        parts = [spread(side, result["unit"])] if "median" in side else []
        parts += [f"peak {size(side['peak'])}"] if "peak" in side else []
        lines.append(f"   {name}: {'; '.join(parts)}")
    for view in result["views"]:
        if view["view"] == "series":
            lines.append(f"   -> {view['what']}: {series_line(view)}")
        else:
            cells = row(result, view)
            lines.append(
                f"   -> {cells[0]}{' against ' if cells[1] else ''}{cells[1]}: {'; '.join(filter(None, cells[-2:]))}"
            )
    lines += [f"   {'; '.join(cells)}" for cells in fact_rows(result)]
    return "\n".join(lines)


def series_line(view: dict[str, Any]) -> str:
    points = ", ".join(f"{x:g}: {seconds(y)}" for x, y in view["points"])
    return f"{points}; {series_summary(view)}" + (f"; {bar(view)}" if view["bar"] else "")


def series_summary(view: dict[str, Any]) -> str:
    """The fitted line, how far from it the points are, and how level times per unit are."""
    start = ("-" if view["start"] < 0 else "") + seconds(abs(view["start"]))
    slope = ("- " if view["slope"] < 0 else "+ ") + seconds(abs(view["slope"]))
    level = f"; the largest time a piece is {view['spread']:.2f}x the smallest" if view["flat"] else ""
    bent = f"; no line, rather like {view['x']} to the power of {view['power']:.2f}" if view["off"] > plots.BENT else ""
    return f"about {start} {slope} x {view['x']}, off by {view['off']:.1%} at most{bent}{level}"


def page(results: Sequence[dict[str, Any]]) -> str:
    """docs/performance.md, of all suites but that of leaderboard.py."""
    lines, everything = [HEAD], results
    results = [result for result in everything if not result["benchmark"].startswith("quality.")]
    lines += in_short(results) if results else ["No results have been committed yet.\n"]
    for suite in sorted({result["benchmark"].split(".")[0] for result in results}):
        here = [result for result in results if result["benchmark"].split(".")[0] == suite]
        first, *others = plots.links(here) or [[]]
        lines += [f"## {suite}", "", *first, "<details><summary>All figures</summary>", ""]
        lines += [line for picture in others for line in picture]
        rows = [[where(r), *row(r, v)] for r in here for v in r["views"] if v["view"] != "series"]
        if rows:
            lines += [*markdown_table(["where", "work", "against", "takes", "ours takes", "ratio", "bar"], rows), ""]
        for result in here:
            lines += _series(result)
            lines += _facts(result)
        lines += ["</details>", "", *conditions(here)]
    return "\n".join([*lines, *missing(everything, lambda suite: suite != "quality")])


def in_short(results: Sequence[dict[str, Any]]) -> list[str]:
    """How many bars were met, the first one of every benchmark, and all that were missed."""
    bars = [(result, view) for result in results for view in result["views"] if view["bar"]]
    first = {id(mine[0][1]) for mine in grouped(bars, lambda pair: str(pair[0]["benchmark"])).values()}
    told = [pair for pair in bars if id(pair[1]) in first or not pair[1]["met"]]
    met = sum(view["met"] for _, view in bars)
    count = f"{met} of {len(bars)} bars were met. The first one of every benchmark, and those that were not met:"
    return [
        "## In short",
        "",
        count,
        "",
        *markdown_table(["where", "work", "against", "ratio", "bar"], [*map(_short, told)]),
        "",
    ]


def _short(pair: tuple[dict[str, Any], dict[str, Any]]) -> list[str]:
    result, view = pair
    if view["view"] == "series":
        return [where(result), view["what"], "", series_summary(view), bar(view)]
    cells = row(result, view)
    return [where(result), *cells[:2], *cells[-2:]]


def _series(result: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for view in (v for v in result["views"] if v["view"] == "series"):
        columns = [view["x"], f"time a {result['unit']}" if view["flat"] else "time", "runs"]
        rows = series_rows(result, view)
        if len(rows[0]) > len(columns):
            columns.append("peak memory")
        lines += [f"{view['what']} ({where(result)}); {series_summary(view)}:", "", *markdown_table(columns, rows), ""]
    return lines


def _facts(result: dict[str, Any]) -> list[str]:
    rows = fact_rows(result)
    if not rows:
        return []
    return [f"{result['title']} ({where(result)}):", "", *markdown_table([*result["facts"]["columns"]], rows), ""]


def fact_rows(result: dict[str, Any]) -> list[list[str]]:
    """The further figures of a result as text, each by the kind of its column; n/a where there is none."""
    shown: dict[str, Callable[[Any], str]] = {"text": str, "size": size, "ratio": ratio}
    shown |= {"time": seconds, "share": "{:.1%}".format, "number": show}
    kinds = result["facts"].get("columns", {}).values()
    rows = result["facts"].get("rows", [])
    return [["n/a" if x is None else shown[kind](x) for x, kind in zip(row, kinds, strict=True)] for row in rows]
