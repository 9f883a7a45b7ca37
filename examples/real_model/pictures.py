"""The two pictures of the case study: accuracy against the number of neurons, and where factors are."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from pooled import Results

import neuronllm as nl

PICTURES = {
    "case-study-neurons.svg": "Accuracy against the number of neurons: by score, and random",
    "case-study-factors.svg": "A map of the factors that learned-256 found, first fold",
}
SETTINGS = {"svg.hashsalt": "neuronllm", "svg.fonttype": "none", "font.size": 9, "axes.axisbelow": True}
BLUE, RED, GREY, LIGHT = "#1f6fb4", "#c4432b", "#777777", "#b9b9b9"
BY_SCORE = ("learned-32", "learned-256", "learned-1024", "learned-all")


def drawn(name: str, results: Results) -> str | None:
    """A picture as SVG, the same figures giving the same text; None where there is nothing to show yet."""
    tasks = shown(name, results)
    if not tasks:
        return None
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise nl.InputError("pictures need matplotlib: pip install 'neuronllm[viz]'") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(layout="constrained", figsize=(2.6 * len(tasks) + 0.6, 3.4))
        figure.suptitle(PICTURES[name], fontsize=10)
        for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            axes.set_title(task, fontsize=9)
            axes.grid(lw=0.4)
            DRAWN[name](axes, results, task)
        told = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(told.values(), told.keys(), loc="outside lower center", ncols=len(told), frameon=False)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"


def shown(name: str, results: Results) -> list[str]:
    """The tasks that a picture has something of."""
    return [task for task in results.tasks if results.of(task, "base") and NEEDED[name](results, task)]


# ---- accuracy against neurons ----


def _by_score(results: Results, task: str) -> list[tuple[float, float, float, float]]:
    """Neurons, accuracy, and the ends of its interval."""
    found = [own for row in BY_SCORE if (own := results.of(task, row)) is not None]
    return [(own.rows[0]["neurons"], own.accuracy, *own.interval) for own in found]


def _neurons(axes: Any, results: Results, task: str) -> None:
    base = results.of(task, "base")
    assert base is not None
    axes.axhline(base.accuracy, color="black", lw=0.8, label="as it is")
    if (bias := results.of(task, "bias")) is not None:
        axes.axhline(bias.accuracy, color="black", lw=0.8, ls=":", label="bias alone")
    for kind, color, shift in (("random", GREY, 0.8), ("matched", LIGHT, 1.25)):
        sets = results.sets(task, kind, base.folds)
        places = [own.rows[0]["neurons"] * shift for own in sets]
        axes.plot(places, [own.accuracy for own in sets], "o", ms=3, color=color, label=f"{kind} sets")
    sizes, middle, low, high = zip(*_by_score(results, task), strict=True)
    ends = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
    axes.errorbar(sizes, middle, yerr=ends, fmt="o-", ms=4, lw=1, color=BLUE, label="by score")
    axes.set_xscale("log")
    axes.set(xlabel="neurons", ylabel="accuracy")


# ---- the map ----


def _kept(results: Results, task: str) -> dict[str, Any] | None:
    own = results.of(task, "learned-256")
    return own.rows[0] if own and "layer" in own.rows[0] else None


def _map(axes: Any, results: Results, task: str) -> None:
    row = _kept(results, task)
    assert row is not None
    for role, color in (("good", BLUE), ("bad", RED)):
        mine = [n for n, known in enumerate(row["role"]) if known == role]
        places = [row["layer"][n] for n in mine], [row["factor"][n] for n in mine]
        axes.plot(*places, "o", ms=2.5, alpha=0.6, mew=0, color=color, label=f"{role} neurons")
    axes.axhline(1, color="black", lw=0.8)
    axes.set(xlabel="layer", ylabel="factor")


DRAWN: dict[str, Callable[[Any, Results, str], None]] = dict(zip(PICTURES, (_neurons, _map), strict=True))
NEEDED: dict[str, Callable[[Results, str], Any]] = dict(zip(PICTURES, (_by_score, _kept), strict=True))
