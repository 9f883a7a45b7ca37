"""The figures of the page as plain data for plotly.js: accuracy against how many neurons are edited, and the map.

Colours are names of the palette; the page puts in those of its theme. Every figure comes with words that say what is in
it, for those who do not see it.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

from .cells import decimals, digits
from .palette import LINES
from .tables import said_by

Facts = dict[str, Any]
MAP_VALUES = 300_000  # of all maps together; finer ones are drawn in wider bins
CLEAR = "rgba(0,0,0,0)"
DASHES = {"enhance": "solid", "degrade": "dash"}
AXIS = {"gridcolor": "--rule", "linecolor": "--rule", "zeroline": False, "tickcolor": "--rule", "ticks": "outside"}
AXIS |= {"automargin": True}


def _figure(name: str, group: str, alt: str, data: list[Facts], height: int, **layout: Any) -> Facts:
    """`height` is in pixels, without the legend at the bottom, which the page makes room for."""
    common = {
        "height": height,
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "--ink"},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "margin": {"l": 24, "r": 16, "t": 44, "b": 64},
        "hoverlabel": {"bgcolor": "--paper", "bordercolor": "--rule", "font": {"color": "--ink"}},
        "modebar": {"bgcolor": CLEAR, "color": "--muted", "activecolor": "--link"},
        "legend": {"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom", "maxheight": 1},
    }
    return {"name": name, "group": group, "alt": alt, "data": data, "layout": common | layout}


def titled(text: str) -> Facts:
    return {"text": text, "font": {"size": 13, "color": "--muted"}, "standoff": 8}


def words(text: str) -> str:
    """A name for plotly.js, which reads a few tags in text."""
    return html.escape(text, quote=False)


# --- accuracy against how many neurons are edited ---


def curve_figures(comparison: Facts) -> list[Facts]:
    """For each task all methods beside each other, then each by itself with its bands."""
    # no neurons is no edit, which has a line of its own, and no place on a logarithmic axis
    curves = [
        curve | {"points": [point for point in curve["points"] if point["k"] > 0]} for curve in comparison["curves"]
    ]
    return [figure for task in comparison["tasks"] for figure in _of_task(task, curves)]


def _of_task(task: Facts, curves: Sequence[Facts]) -> Iterator[Facts]:
    curves = [curve for curve in curves if curve["task"] == task["name"] and curve["points"]]
    methods = list(dict.fromkeys(curve["method"] for curve in curves))
    if len(methods) > 1:
        yield _curves("all methods", task, curves, methods)
    for method in methods:
        yield _curves(method, task, [curve for curve in curves if curve["method"] == method], methods)


def _curves(name: str, task: Facts, curves: Sequence[Facts], methods: list[str]) -> Facts:
    alone = len({curve["method"] for curve in curves}) == 1
    edits = list(dict.fromkeys(curve["edit"] for curve in curves))
    ks = sorted({point["k"] for curve in curves for point in curve["points"]})
    traces: list[Facts] = []
    for curve in curves:
        number = edits.index(curve["edit"]) if alone else methods.index(curve["method"])
        label = words(curve["edit"] if alone else f"{curve['method']}, {curve['edit']}")
        dash = "solid" if alone else DASHES.get(curve["edit"], "dot")
        traces += _traces(curve, label, f"--line-{number % LINES}", dash, bands=alone)
    levels = (("no edit", task["base"]["accuracy"], "dash"), ("chance", task["chance"], "dot"))
    traces += [_level(label, value, dash, ks) for label, value, dash in levels if value is not None]
    traces.sort(key=lambda trace: "fill" not in trace)  # bands behind lines
    ticks = {"tickvals": ks, "ticktext": [f"{k:,}" for k in ks]}
    x = AXIS | ticks | {"type": "log", "title": titled("neurons of each role")}
    y = AXIS | {"title": titled("accuracy"), "range": [0, 1.02], "tickformat": ".1f"}
    alt = f"Accuracy on {task['name']} against the number of edited neurons. " + " ".join(map(_said, curves))
    return _figure(name, task["name"], alt, traces, 420, xaxis=x, yaxis=y)


def _traces(curve: Facts, label: str, colour: str, dash: str, bands: bool) -> Iterator[Facts]:
    points = curve["points"]
    ks, values = [point["k"] for point in points], [point["accuracy"] for point in points]
    if bands:
        intervals = [(point["k"], point["interval"]) for point in points if point["interval"]]
        drawn = [(point["k"], point["controls"]["band"]) for point in points if point["controls"]]
        if intervals:
            yield _band(intervals, colour, 0.16) | {"legendgroup": label, "showlegend": False}
        if drawn:
            yield _band(drawn, "--muted", 0.16) | {"name": f"random sets, {label}", "showlegend": True}
    yield {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label,
        "legendgroup": label,
        "x": ks,
        "y": values,
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"color": colour, "size": 7},
        "hovertemplate": "k = %{x}: %{y:.3f}",
    }


def _band(ends: Sequence[tuple[float, Sequence[float]]], colour: str, opacity: float) -> Facts:
    """The area between the two ends of intervals; a single one is a bar of its own."""
    there = [(k, high) for k, (_, high) in ends]
    back = [(k, low) for k, (low, _) in reversed(ends)]
    x, y = zip(*there, *back, strict=True)
    line = {"width": 6 if len(ends) == 1 else 0, "color": colour}
    shape = {"mode": "lines", "fill": "toself", "fillcolor": colour, "line": line, "hoverinfo": "skip"}
    return {"type": "scatter", "x": x, "y": y, "opacity": opacity} | shape


def _level(label: str, value: float, dash: str, ks: Sequence[float]) -> Facts:
    line: Facts = {"color": "--muted", "width": 1, "dash": dash}
    ends = [ks[0], ks[-1]] if len(ks) > 1 else [ks[0] * 0.8, ks[0] * 1.25]
    hover = {"hoverinfo": "name+y", "name": label}
    return {"type": "scatter", "mode": "lines", "x": ends, "y": [value, value], "line": line} | hover


def _said(curve: Facts) -> str:
    points = ", ".join(f"{decimals(point['accuracy'])} at {point['k']}" for point in curve["points"])
    return f"{curve['method']}, {curve['edit']}: {points}."


# --- the map ---


def map_figures(comparison: Facts) -> list[Facts]:
    """Layers by neurons, as wide as all maps together allow, with a mark at every neuron that has a card."""
    maps = comparison["maps"]
    values = sum(len(row["values"]) for found in maps for row in found["rows"])
    wider = max(1, -(-values // MAP_VALUES))
    return [_map(found, comparison["cards"], wider) for found in maps]


def _map(found: Facts, cards: Sequence[Facts], wider: int) -> Facts:
    bin_, rows = found["bin"] * wider, found["rows"]
    lines = [coarser(row["values"], wider) for row in rows]
    width = max(map(len, lines), default=0)
    present = [abs(value) for line in lines for value in line if value is not None]
    limit = max(present, default=0.0) or 1.0
    where = "neuron %{x}" if bin_ == 1 else f"strongest of {bin_} neurons around %{{x:.0f}}"
    image = {
        "type": "heatmap",
        "z": [line + [None] * (width - len(line)) for line in lines],
        "y": [words(row["label"]) for row in rows],
        "x0": (bin_ - 1) / 2,
        "dx": bin_,
        "zmin": -limit,
        "zmax": limit,
        "zmid": 0,
        "colorscale": "--scale",
        "colorbar": _bar(limit),
        "hovertemplate": f"%{{y}}, {where}<br>%{{z:.3~g}}<extra></extra>",
    }
    marks = [_marks(found, role, cards) for role in ("good", "bad")]
    ticks = {"tickprefix": "neuron ", "showtickprefix": "first", "tickformat": ",d"}
    x = AXIS | ticks | {"range": [-0.5, width * bin_ - 0.5], "showgrid": False}
    y = AXIS | {"range": [len(rows) - 0.5, -0.5], "showgrid": False}
    alt = f"Map of the scores of {found['method']} on {found['task']}, {len(rows)} layers by neurons. " + _peaks(found)
    height = min(820, max(300, 150 + 18 * len(rows)))
    return _figure(found["method"], found["task"], alt, [image, *marks], xaxis=x, yaxis=y, height=height) | {
        "bin": bin_
    }


def _bar(limit: float) -> Facts:
    ticks = {"tickvals": [-limit, 0, limit], "ticktext": [digits(-limit), "0", digits(limit)]}
    place: Facts = {"orientation": "h", "x": 0.02, "xanchor": "left", "y": 1, "yanchor": "bottom"}
    return ticks | place | {"thickness": 8, "len": 0.5, "outlinewidth": 0, "ticks": ""}


def _marks(found: Facts, role: str, cards: Sequence[Facts]) -> Facts:
    """Where the neurons with a card are: a click there opens it."""
    labels = {(row["layer"], row["expert"]): words(row["label"]) for row in found["rows"]}
    mine = [
        (n, card)
        for n, card in enumerate(cards)
        if card["task"] == found["task"] and (card["layer"], card["expert"]) in labels
        if (said := said_by(card, found["method"])) and said["role"] == role
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{role}, with a card",
        "x": [card["index"] for _, card in mine],
        "y": [labels[card["layer"], card["expert"]] for _, card in mine],
        "customdata": [n for n, _ in mine],
        "marker": {
            "symbol": "triangle-up" if role == "good" else "triangle-down",
            "size": 9,
            "color": "--good" if role == "good" else "--bad",
            "line": {"color": "--paper", "width": 1},
        },
        "hovertemplate": f"%{{y}}, neuron %{{x}}<br>{role}: open the card<extra></extra>",
    }


def coarser(values: Sequence[float | None], times: int) -> list[float | None]:
    """So many bins together, each by its value that is largest whatever its sign, to three digits that count.

    >>> coarser([1.0, -2.0, 0.5, None, None], 2)
    [-2.0, 0.5, None]
    """
    groups = (values[start : start + times] for start in range(0, len(values), times))
    largest = (max((v for v in group if v is not None), key=abs, default=None) for group in groups)
    return [None if value is None else float(f"{value:.3g}") for value in largest]


def _peaks(found: Facts) -> str:
    """The row with the highest value and that with the lowest, in words."""
    ends = [(value, row["label"]) for row in found["rows"] for value in row["values"] if value is not None]
    if not ends:
        return "It is empty."
    high, low = max(ends), min(ends)
    return f"The highest is {digits(high[0])} in {high[1]}, the lowest {digits(low[0])} in {low[1]}."
