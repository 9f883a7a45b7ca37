"""Pictures for a paper: matplotlib figures of scores, of neuron sets, and of accuracy against the number of neurons.

Figures stand by themselves: pyplot is not touched, nothing is shown or kept. `figure.savefig("name.pdf")` writes one.
matplotlib is an optional dependency: pip install 'neuronllm[viz]'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from ..model.anatomy import Anatomy
from .factors import ROLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 1200  # of a map, at most; wider layers are shown in bins
ENDS = 0.01  # the share of best and of worst neurons that is counted by layer
TALLEST = 11.0  # inches
COLORS = {"good": "tab:blue", "bad": "tab:red"}
LINES, MARKS = ("-", "--", ":", "-."), ("o", "s", "^", "v", "D", "P")


def require_matplotlib() -> None:
    """One clear line instead of a traceback, which might come at the end of a long run."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("pictures need matplotlib: pip install 'neuronllm[viz]'") from error


def scores_figure(anatomy: Anatomy, values: Tensor, title: str = "") -> Figure:
    """Layers by neurons, as numbered and sorted, and what lies in each layer; blue helps, red hurts.

    Where a layer is wider than the picture, neighbours share a bin, which shows the one of largest size.

    >>> scores_figure(anatomy, scores.values).savefig("scores.pdf")   # doctest: +SKIP
    """
    figure = _figure(9, 0.8 * len(anatomy.sites) + 2.4)
    panels = figure.subplots(2, 2, sharey=True, width_ratios=[5, 1])
    rows = anatomy.split(values.float().cpu())
    limit = float(values.abs().nan_to_num(0).max()) or 1.0
    lines = {"neuron": rows, "neurons of a layer, best first": [row.sort(descending=True).values for row in rows]}
    for axes, (label, shown) in zip(panels[:, 0], lines.items(), strict=True):
        image, size = _image(shown)
        extent = (-0.5, image.shape[1] * size - 0.5, len(rows) - 0.5, -0.5)
        style = {"aspect": "auto", "interpolation": "nearest", "cmap": "RdBu", "norm": _symlog(limit)}
        drawn = axes.imshow(image, extent=extent, **style)
        axes.set(xlabel=label, ylabel="layer")
    panels[0, 0].set_title(title)
    for axes, label, parts in zip(panels[:, 1], ("sum of scores", "best and worst 1 %"), _by_layer(rows), strict=True):
        for role, part in zip(ROLES, parts, strict=True):
            axes.barh(range(len(rows)), part, color=COLORS[role])
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_xlabel(label)
    _layer_ticks(panels[0, 0], [site.layer for site in anatomy.sites])
    figure.colorbar(drawn, ax=panels, label="hurts  |  helps")
    return figure


def neurons_figure(
    anatomy: Anatomy, ids: Tensor, role: np.ndarray, score: Tensor, factor: Tensor | None = None, title: str = ""
) -> Figure:
    """How many neurons of each role lie in each layer, and their factors, or where they have none their scores.

    >>> neurons_figure(anatomy, n.ids, n.role, n.score).savefig("neurons.pdf")   # doctest: +SKIP
    """
    layers = sorted({site.layer for site in anatomy.sites})
    figure = _figure(8, 0.25 * len(layers) + 2.2)
    counts, values = figure.subplots(1, 2, sharey=True, width_ratios=[1, 2])
    place = torch.tensor([layers.index(layer) for layer in anatomy.locate(ids)[0].tolist()], dtype=torch.int64)
    known, label, middle = (score, "score", 0) if factor is None else (factor, "factor", 1)
    for n, name in enumerate(ROLES):
        here = torch.from_numpy(role == name)
        count = torch.bincount(place[here], minlength=len(layers))
        heights = np.arange(len(layers)) + 0.4 * n - 0.2
        counts.barh(heights, count.numpy(), height=0.4, color=COLORS[name], label=name)
        dots = {"marker": "o", "markersize": 4, "alpha": 0.6, "markeredgewidth": 0, "linestyle": ""}
        values.plot(known[here].numpy(), place[here].numpy() + 0.4 * n - 0.2, color=COLORS[name], label=name, **dots)
    values.axvline(middle, color="black", linewidth=0.6)
    counts.set(xlabel="neurons", ylabel="layer")
    counts.invert_yaxis()
    values.set_xlabel(label)
    counts.legend(frameon=False)
    _layer_ticks(counts, layers)
    figure.suptitle(title)
    return figure


def curves_figure(
    curves: Sequence[Mapping[str, Any]], base: Mapping[str, float] | None = None, title: str = ""
) -> Figure:
    """Accuracy against the number of neurons, a panel a task, with bands of the intervals and of random sets.

    curves: [{"task", "method", "edit", "points": [{"k", "accuracy", "interval": [low, high] or None,
    "controls": {"band": [low, high]} or None}]}]. base: the accuracy without an edit, by task.

    >>> points = [{"k": 1, "accuracy": 0.5}, {"k": 4, "accuracy": 0.7}]
    >>> figure = curves_figure([{"task": "facts", "method": "gradient", "edit": "enhance", "points": points}])
    >>> figure.axes[0].get_ylabel()
    'accuracy'
    """
    if not curves:
        raise InputError("curves: there is none to draw")
    tasks = list(dict.fromkeys(curve["task"] for curve in curves))
    columns = min(len(tasks), 3)
    deep = math.ceil(len(tasks) / columns)
    figure = _figure(4.2 * columns + 1.8, 3.6 * deep + 0.6)
    panels = figure.subplots(deep, columns, squeeze=False, sharey=True)
    styles = _styles(curves)
    for axes, task in zip(panels.flat, tasks, strict=False):
        _accuracy(axes, [curve for curve in curves if curve["task"] == task], styles)
        if base is not None and task in base:
            axes.axhline(base[task], color="0.4", linestyle=":", label="no edit")
        axes.set(title=task, xlabel="neurons of each role", ylim=(0, 1))
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy")
    for axes in panels.flat[len(tasks) :]:
        axes.set_axis_off()
    told: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            told.setdefault(label, handle)
    figure.legend(list(told.values()), list(told), loc="outside lower center", ncols=min(len(told), 4), frameon=False)
    figure.suptitle(title)
    return figure


def map_figure(rows: Sequence[Mapping[str, Any]], size: int, title: str = "") -> Figure:
    """The scores of a comparison, layers by bins of `size` neurons; blue helps, red hurts.

    rows: [{"label", "values": [of every bin the score that is largest in size, None where there is none]}].

    >>> figure = map_figure([{"label": "layer 0", "values": [0.5, -0.25]}], 16)
    >>> figure.axes[0].get_xlabel()
    'neuron'
    """
    lines = [torch.tensor([math.nan if value is None else value for value in row["values"]]) for row in rows]
    figure = _figure(9, 0.3 * len(rows) + 1.6)
    axes = figure.subplots()
    image, joined = _image(lines)
    limit = float(np.nanmax(np.abs(image), initial=0)) or 1.0
    extent = (-0.5, image.shape[1] * joined * size - 0.5, len(rows) - 0.5, -0.5)
    style = {"aspect": "auto", "interpolation": "nearest", "cmap": "RdBu", "norm": _symlog(limit)}
    drawn = axes.imshow(image, extent=extent, **style)
    axes.set(xlabel="neuron", title=title)
    _layer_ticks(axes, [row["label"] for row in rows])
    figure.colorbar(drawn, ax=axes, label="hurts  |  helps")
    return figure


def layers_figure(counts: Mapping[str, Sequence[int]], title: str = "") -> Figure:
    """How many good and bad neurons lie in each layer.

    >>> layers_figure({"good": [3, 0], "bad": [1, 2]}).axes[0].get_ylabel()
    'layer'
    """
    layers = range(len(counts[ROLES[0]]))
    figure = _figure(5, 0.25 * len(layers) + 1.6)
    axes = figure.subplots()
    for n, role in enumerate(ROLES):
        axes.barh(np.arange(len(layers)) + 0.4 * n - 0.2, counts[role], height=0.4, color=COLORS[role], label=role)
    axes.set(xlabel="neurons", ylabel="layer", title=title)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    _layer_ticks(axes, layers)
    return figure


def strongest_of_bins(values: Tensor, size: int) -> Tensor:
    """Of every `size` neighbours the value of largest size, the first of equals; the last bin may be smaller.

    >>> strongest_of_bins(torch.tensor([1.0, -3.0, 2.0, 0.5, -0.1]), 2)
    tensor([-3.0000,  2.0000, -0.1000])
    """
    padding = -len(values) % size
    bins = torch.nn.functional.pad(values, (0, padding)).reshape(-1, size)
    return bins.gather(1, bins.abs().argmax(1, keepdim=True))[:, 0]


# ---- parts ----


def _figure(width: float, height: float) -> Figure:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, min(height, TALLEST)), layout="constrained")


def _image(lines: Sequence[Tensor]) -> tuple[np.ndarray, int]:
    """Layers of any width as one picture, and neurons of a bin; where a layer has no more neurons it stays empty."""
    widest = max(len(line) for line in lines)
    size = math.ceil(widest / COLUMNS)
    image = np.full((len(lines), math.ceil(widest / size)), np.nan, dtype=np.float32)
    for row, line in zip(image, lines, strict=True):
        found = strongest_of_bins(line, size) if size > 1 else line
        row[: len(found)] = found.numpy()
    return image, size


def _by_layer(rows: Sequence[Tensor]) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
    """Sums of the positive and of the negative scores, and how many of the best and of the worst neurons there are."""
    every = torch.cat(list(rows)).nan_to_num(0)
    count = max(1, round(ENDS * len(every)))
    best, worst = float(every.topk(count).values[-1]), float(every.topk(count, largest=False).values[-1])
    sums = [float(row.clamp(min=0).nansum()) for row in rows], [float(row.clamp(max=0).nansum()) for row in rows]
    ends = (
        [float(((row >= best) & (row > 0)).sum()) for row in rows],
        [-float(((row <= worst) & (row < 0)).sum()) for row in rows],
    )
    return sums, ends


def _symlog(limit: float) -> Any:
    from matplotlib.colors import SymLogNorm

    return SymLogNorm(linthresh=limit / 100, vmin=-limit, vmax=limit)


def _layer_ticks(axes: Axes, layers: Sequence[int | str]) -> None:
    """The numbers or names of layers, some of them where there are many."""
    step = math.ceil(len(layers) / 24)
    axes.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])


def _styles(curves: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """A color for each method and a line for each edit; where there is one method, a color for each edit."""
    methods, edits = (list(dict.fromkeys(curve[name] for curve in curves)) for name in ("method", "edit"))
    styles = {}
    for curve in curves:
        method, edit = methods.index(curve["method"]), edits.index(curve["edit"])
        label = curve["edit"] if len(methods) == 1 else f"{curve['method']}, {curve['edit']}"
        color = f"C{(edit if len(methods) == 1 else method) % 10}"
        style = {"color": color, "linestyle": LINES[edit % len(LINES)], "marker": MARKS[method % len(MARKS)]}
        styles[curve["method"], curve["edit"]] = style | {"label": label, "markersize": 4}
    return styles


def _accuracy(
    axes: Axes, curves: Sequence[Mapping[str, Any]], styles: Mapping[tuple[str, str], dict[str, Any]]
) -> None:
    bands = []  # curves may share their random sets
    for curve in curves:
        points = sorted(curve["points"], key=lambda point: point["k"])
        style = styles[curve["method"], curve["edit"]]
        controls = [(point["k"], *point["controls"]["band"]) for point in points if point.get("controls")]
        if controls and controls not in bands:
            bands.append(controls)
            _band(axes, controls, "0.5", label="random sets")
        _band(axes, [(point["k"], *point["interval"]) for point in points if point.get("interval")], style["color"])
        axes.plot([point["k"] for point in points], [point["accuracy"] for point in points], **style)
    ks = sorted({point["k"] for curve in curves for point in curve["points"]})
    if ks[0] < 1:
        axes.set_xscale("symlog", base=2, linthresh=1)  # none at all has a place, too
    else:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()


def _band(axes: Axes, ends: Sequence[tuple[float, ...]], color: str, label: str | None = None) -> None:
    if ends:
        ks, low, high = zip(*ends, strict=True)
        axes.fill_between(ks, low, high, color=color, alpha=0.15, linewidth=0, label=label)
