"""From JSON to text: the lines that a run prints, and the page docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neuronllm.tables import markdown_table

HEAD = """# Performance

This page is generated: `python -m bench report` writes it from the files in `bench/results/`, and a test fails when it
says anything else. How the figures come about stands in `bench/README.md`: results are checked before they are timed,
both sides of a ratio run in turn in one process, and every repetition is in the JSON.

Times are medians, with the 20th and 80th percentile behind. Memory is the peak above the loaded model.
"""


def seconds(value: float) -> str:
    """A time with three digits and a fitting unit.

    >>> seconds(15.32), seconds(0.0901), seconds(0.00023)
    ('15.3 s', '90.1 ms', '230 us')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:.0f} {unit}"
    return f"{value / 1e-9:.3g} ns"


def size(value: float) -> str:
    """Bytes in MiB or GiB.

    >>> size(3 * 2**30), size(2**20)
    ('3.00 GiB', '1.0 MiB')
    """
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def ratio(value: float) -> str:
    return f"{value:.0f}x" if value >= 20 else f"{value:.2f}x"


def bar(view: dict[str, Any]) -> str:
    """The bar of a view and whether it was met."""
    wanted = view["bar"]
    if not wanted:
        return ""
    what = seconds(wanted["value"]) if view["view"] == "limit" else f"{wanted['value']:g}x"
    return f"{wanted['sign'].replace('>=', '≥').replace('<=', '≤')} {what}, {'met' if view['met'] else 'not met'}"


def spread(side: dict[str, Any]) -> str:
    return f"{seconds(side['median'])} ({seconds(side['p20'])} to {seconds(side['p80'])})"


def figure(side: dict[str, Any], of: str, unit: str) -> str:
    return size(side["peak"]) if of == "peak" else f"{spread(side)} a {unit}"


def row(result: dict[str, Any], view: dict[str, Any]) -> list[str]:
    """What, where, baseline, ours, ratio, bar."""
    sides, unit = result["sides"], result["unit"]
    if view["view"] == "limit":
        return [view["what"], "", figure(sides[view["ours"]], "time", unit), seconds(view["seconds"]), bar(view)]
    found = [figure(sides[view[name]], view["of"], unit) for name in ("baseline", "ours")]
    kind = " faster" if view["kind"] == "speed-up" else " of it"
    return [view["what"], *found, ratio(view["ratio"]) + kind, bar(view)]


def where(result: dict[str, Any]) -> str:
    place = result["machine"]["gpu"] or f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    return f"{result['shape']}, {place}"


def series_rows(result: dict[str, Any], view: dict[str, Any]) -> list[list[str]]:
    names = [name for _, name in view["sides"]]
    return [
        [
            f"{x:g}",
            seconds(y),
            f"{result['sides'][name]['peak'] / 2**20:.1f} MiB" if "peak" in result["sides"][name] else "",
        ]
        for (x, y), name in zip(view["points"], names, strict=True)
    ]


def as_text(result: dict[str, Any]) -> str:
    """What a run prints."""
    lines = [f"== {result['benchmark']} ({result['title']}): {where(result)}"]
    lines += [f"   checked: {c['what']} {c['value']:.2g} (limit {c['limit']:.2g})" for c in result["checks"]]
    for name, pilot in result["pilots"].items():
        tried = ", ".join(f"{key} {seconds(value)}" for key, value in pilot["per_unit"].items())
        lines.append(f"   {name}: {pilot['chosen']} chosen of {tried}")
    for name, side in result["sides"].items():
        parts = [f"{spread(side)} a {result['unit']}, {len(side['times'])} runs"] if "median" in side else []
        parts += [f"peak {size(side['peak'])}"] if "peak" in side else []
        lines.append(f"   {name}: {'; '.join(parts)}")
    for view in result["views"]:
        if view["view"] == "series":
            lines.append(f"   -> {view['what']}: {series_line(view)}")
        else:
            cells = row(result, view)
            lines.append(f"   -> {cells[0]}: {'; '.join(cell for cell in cells[-2:] if cell)}")
    lines += [f"   {'; '.join(cells)}" for cells in fact_rows(result)]
    return "\n".join(lines)


def series_line(view: dict[str, Any]) -> str:
    points = ", ".join(f"{x:g}: {seconds(y)}" for x, y in view["points"])
    return f"{points}; {series_summary(view)}" + (f"; {bar(view)}" if view["bar"] else "")


def series_summary(view: dict[str, Any]) -> str:
    if view["flat"]:
        return f"largest over smallest {view['spread']:.2f}x"
    return f"{seconds(max(view['slope'], 0))} for each more, off a straight line by {view['off']:.1%} at most"


def page(results: Sequence[dict[str, Any]]) -> str:
    """docs/performance.md."""
    lines = [HEAD]
    if not results:
        lines.append("No results have been committed yet.\n")
    for suite in sorted({result["benchmark"].split(".")[0] for result in results}):
        here = [result for result in results if result["benchmark"].split(".")[0] == suite]
        lines += [f"## {suite}", ""]
        rows = [[where(r), *row(r, v)] for r in here for v in r["views"] if v["view"] != "series"]
        if rows:
            lines += [*markdown_table(["where", "what", "baseline", "ours", "ratio", "bar"], rows), ""]
        for result in here:
            lines += _series(result)
            lines += _facts(result)
        lines += _conditions(here)
    return "\n".join(lines)


def _series(result: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for view in (v for v in result["views"] if v["view"] == "series"):
        table = markdown_table(
            [view["x"], "time" if not view["flat"] else f"time a {result['unit']}", "peak"], series_rows(result, view)
        )
        lines += [f"{view['what']} ({where(result)}); {series_summary(view)}:", "", *table, ""]
    return lines


def _facts(result: dict[str, Any]) -> list[str]:
    rows = fact_rows(result)
    if not rows:
        return []
    return [f"{result['title']} ({where(result)}):", "", *markdown_table([*result["facts"]["columns"]], rows), ""]


def fact_rows(result: dict[str, Any]) -> list[list[str]]:
    """The further figures of a result as text, each by the kind of its column; n/a where there is none."""
    shown = {"text": str, "size": size, "ratio": ratio}
    kinds = result["facts"].get("columns", {}).values()
    rows = result["facts"].get("rows", [])
    return [["n/a" if x is None else shown[kind](x) for x, kind in zip(row, kinds, strict=True)] for row in rows]


def _conditions(results: Sequence[dict[str, Any]]) -> list[str]:
    """How each was measured: settings, checks, machine, versions, commit."""
    lines = ["How it was measured:", ""]
    for result in results:
        m, v, c = result["machine"], result["versions"], result["commit"]
        checks = "; ".join(f"{x['what']} {x['value']:.1e}" for x in result["checks"])
        tree = f"commit {(c['id'] or 'unknown')[:12]}{' with changes' if c['dirty'] else ''}"
        lines.append(
            f"- `{result['benchmark']}`, {where(result)}: {result['settings'].get('model', '')}; "
            f"{result['settings'].get('tokens', '')} tokens. Checked: {checks}. {'. '.join(result['notes'])}. "
            f"{m['cpu']}, {m['cores']} cores, {m['ram_gib']} GiB{', ' + m['gpu'] if m['gpu'] else ''}; "
            f"torch {v['torch']}, transformers {v['transformers']}; {tree}; {result['date']}; "
            f"load {result['load']['before']:.1f} to {result['load']['after']:.1f}."
        )
    return [*lines, ""]
