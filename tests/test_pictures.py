"""Figures of scores, neuron sets and curves: what is drawn, where, and that nothing else of matplotlib is touched."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.model.sites import Site
from neuronllm.results.pictures import COLUMNS, curves_figure, strongest_of_bins
from tests.checks import refused

pytest.importorskip("matplotlib")


def anatomy(*widths: int) -> nl.Anatomy:
    return nl.Anatomy(
        tuple(Site(n, -1, width, f"layers.{n}", f"layers.{n}.down", ()) for n, width in enumerate(widths))
    )


def scores(values: list[float], *widths: int, **provenance: Any) -> nl.Scores:
    tensor = torch.tensor(values)
    return nl.Scores(tensor, torch.zeros_like(tensor), torch.ones_like(tensor), anatomy(*widths), provenance)


def drawn(axes: Any) -> np.ma.MaskedArray:
    (image,) = axes.images
    return image.get_array()


def lengths(axes: Any) -> list[list[float]]:
    return [[bar.get_width() for bar in bars] for bars in axes.containers]


def test_scores_are_drawn_in_their_places():
    figure = scores([0.5, -2.0, 1.0, 0.25, -0.125], 3, 2, method="gradient").plot()
    by_number, sums, by_size, ends, bar = figure.axes
    assert by_number.get_title() == "gradient scores of every neuron"
    assert drawn(by_number).tolist() == [[0.5, -2.0, 1.0], [0.25, -0.125, None]]
    assert drawn(by_size).tolist() == [[1.0, 0.5, -2.0], [0.25, -0.125, None]]
    assert by_number.images[0].norm.vmin == -2.0 and by_number.images[0].norm.vmax == 2.0
    assert (by_number.get_xlabel(), by_size.get_xlabel()) == ("neuron", "neurons of a layer, best first")
    assert by_number.get_ylabel() == "layer" and bar.get_ylabel() == "hurts  |  helps"
    assert [label.get_text() for label in by_number.get_yticklabels()] == ["0", "1"]
    assert lengths(sums) == [[1.5, 0.25], [-2.0, -0.125]] and sums.get_xlabel() == "sum of scores"
    assert lengths(ends) == [[1, 0], [-1, 0]] and ends.get_xlabel() == "best and worst 1 %"


def test_no_layer_is_too_wide_and_no_strong_neuron_is_lost():
    values = torch.zeros(3 * COLUMNS - 1)
    values[1234], values[1235], values[3 * COLUMNS - 2] = -7.0, 3.0, 2.0
    image = drawn(scores(values.tolist(), 3 * COLUMNS - 1).plot(title="wide").axes[0])
    assert image.shape == (1, COLUMNS) and {float(x) for x in image[0] if x} == {-7.0, 2.0}
    assert image[0, 1234 // 3] == -7.0 and image[0, -1] == 2.0
    assert strongest_of_bins(torch.tensor([1.0, -1.0, 0.5]), 2).tolist() == [1.0, 0.5]


def test_many_layers_and_nothing_scored():
    figure = scores([0.0, float("nan")] * 50, *[2] * 50).plot()
    assert figure.get_figheight() <= 11 and len(figure.axes[0].get_yticks()) == 17  # every third
    assert lengths(figure.axes[3]) == [[0] * 50] * 2
    figure.canvas.draw()


def a_set(factor: Any = None) -> nl.NeuronSet:
    role, score = np.array(["good", "bad", "good", "bad"]), torch.tensor([2.0, -1.0, 1.0, -0.5])
    return nl.NeuronSet(torch.tensor([4, 0, 1, 3]), role, score, anatomy(3, 2), {}, factor)


def points(axes: Any) -> list[list[tuple[float, int]]]:
    """(x, layer) of each role's dots."""
    lines = [line for line in axes.lines if line.get_marker() == "o"]
    return [[(x, round(y)) for x, y in zip(*line.get_data(), strict=True)] for line in lines]


def test_neuron_sets_show_counts_and_scores_or_factors():
    counts, values = a_set().plot("mine").axes
    assert lengths(counts) == [[1, 1], [1, 1]] and counts.get_xlabel() == "neurons"
    assert values.get_xlabel() == "score" and points(values) == [[(2.0, 1), (1.0, 0)], [(-1.0, 0), (-0.5, 1)]]
    assert counts.get_legend_handles_labels()[1] == ["good", "bad"] and counts.yaxis_inverted()
    assert counts.get_figure().get_suptitle() == "mine"
    _, values = a_set(torch.tensor([1.5, float("nan"), 0.5, 0.0])).plot().axes
    assert values.get_xlabel() == "factor"
    (good, bad), middle = points(values), [line.get_xdata() for line in values.lines if line.get_marker() == "None"]
    assert good == [(1.5, 1), (0.5, 0)] and [x for x, _ in bad if x == x] == [0.0] and middle == [[1, 1]]


def curve(task: str, method: str, edit: str, accuracy: list[float], **more: list[Any]) -> dict[str, Any]:
    rows = [{"k": 4**n, "accuracy": a, "interval": None, "controls": None} for n, a in enumerate(accuracy)]
    for name, values in more.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return {"task": task, "method": method, "edit": edit, "points": rows[::-1]}


def test_curves_are_drawn_with_their_bands():
    controls = [{"mean": 0.5, "band": [0.4, 0.6]}, {"mean": 0.5, "band": [0.35, 0.65]}]
    intervals = [[0.6, 0.8], [0.7, 0.9]]
    figure = curves_figure(
        [
            curve("facts", "gradient", "enhance", [0.7, 0.8], interval=intervals, controls=controls),
            curve("facts", "ace", "enhance", [0.6, 0.65], controls=controls),
            curve("other", "ace", "degrade", [0.3, 0.2, 0.1]),
        ],
        {"facts": 0.55},
        "two tasks",
    )
    facts, other = figure.axes
    assert (facts.get_title(), other.get_title(), figure.get_suptitle()) == ("facts", "other", "two tasks")
    lines = {line.get_label(): [list(part) for part in line.get_data()] for line in facts.lines}
    assert lines["gradient, enhance"] == [[1, 4], [0.7, 0.8]] and lines["ace, enhance"] == [[1, 4], [0.6, 0.65]]
    assert lines["no edit"][1] == [0.55, 0.55] and len(lines) == 3
    bands = {band.get_label(): band.get_paths()[0].vertices for band in facts.collections}
    assert len(facts.collections) == 2  # random sets that two curves share, and one interval
    assert {tuple(row) for row in bands["random sets"]} == {(1, 0.4), (1, 0.6), (4, 0.35), (4, 0.65)}
    assert [list(part) for part in other.lines[0].get_data()] == [[1, 4, 16], [0.3, 0.2, 0.1]]
    assert len(other.lines) == 1 and not other.collections
    assert [tick.get_text() for tick in other.get_xticklabels()] == ["1", "4", "16"]
    assert facts.get_xscale() == "log" and facts.get_xlabel() == "neurons of each role" and facts.get_ylim() == (0, 1)
    (legend,) = figure.legends
    told = {text.get_text() for text in legend.get_texts()}
    assert told == {"random sets", "gradient, enhance", "ace, enhance", "ace, degrade", "no edit"}
    none = curve("facts", "ace", "good", [0.5, 0.6])
    none["points"].append({"k": 0, "accuracy": 0.4})
    (axes,) = curves_figure([none]).axes
    assert axes.get_xscale() == "symlog" and list(axes.lines[0].get_xdata()) == [0, 1, 4]
    with refused("curves: there is none"):
        curves_figure([])


def test_files_are_written_without_pyplot(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("matplotlib.pyplot")]:
        monkeypatch.delitem(sys.modules, name)
    figures = [scores([1.0, -1.0], 2).plot(), a_set().plot(), curves_figure([curve("t", "m", "e", [0.5, 0.6])])]
    for n, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{n}.pdf")
        figure.savefig(tmp_path / f"{n}.png", dpi=40)
        assert (tmp_path / f"{n}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"{n}.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for plot in (scores([1.0, -1.0], 2).plot, a_set().plot):
        with refused("pictures need matplotlib", "neuronllm[viz]"):
            plot()
