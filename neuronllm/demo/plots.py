"""The two pictures of the demonstration. matplotlib is an optional dependency: pip install 'neuronllm[viz]'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..common.errors import InputError

if TYPE_CHECKING:
    from ..results.scores import Scores


def require_matplotlib() -> None:
    """One clear line instead of a traceback at the end of a long run."""
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'neuronllm[viz]'") from error
    matplotlib.use("Agg")


def score_map(title: str, scores: Scores, path: Path) -> Any:
    """Layers by neurons, by index and sorted: blue helps, red hurts. Sorted, both ends of every layer can be seen."""
    import matplotlib.pyplot as plt

    rows = scores.anatomy.split(scores.values)
    limit = float(scores.values.nan_to_num().abs().max()) or 1.0
    style = {"aspect": "auto", "interpolation": "nearest", "cmap": "RdBu", "norm": _symlog(limit)}
    figure, axes = plt.subplots(2, 1, figsize=(9, 0.8 * len(rows) + 2.4), layout="constrained", sharex=True)
    panels = {"neuron": rows, "neurons of a layer, best first": [row.sort(descending=True).values for row in rows]}
    for panel, (label, lines) in zip(axes, panels.items(), strict=True):
        drawn = panel.imshow(_image(lines), **style)
        panel.set(xlabel=label, ylabel="layer")
        panel.set_yticks(range(len(rows)), [str(site.layer) for site in scores.anatomy.sites])
    axes[0].set_title(f"{title}: score of every neuron")
    figure.colorbar(drawn, ax=axes, label="hurts  |  helps")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return figure, axes


def _image(lines: Sequence[torch.Tensor]) -> Any:
    """Layers of any width as one picture; where a layer has no more neurons it stays empty."""
    image = torch.full((len(lines), max(len(line) for line in lines)), float("nan"))
    for row, line in zip(image, lines, strict=True):
        row[: len(line)] = line
    return image.numpy()


def _symlog(limit: float) -> Any:
    from matplotlib.colors import SymLogNorm

    return SymLogNorm(linthresh=limit / 100, vmin=-limit, vmax=limit)


def accuracy_plot(title: str, ks: Sequence[int], curves: dict[str, list[float]], base: float, path: Path) -> Any:
    """Test accuracy against the number of edited neurons of each role, beside the range of random sets."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.fill_between(ks, curves["random low"], curves["random high"], color="0.85", label="range of random sets")
    axes.axhline(base, color="0.4", linestyle=":", label="no edit")
    axes.plot(ks, curves["enhance"], "o-", color="tab:blue", label="enhance (good x2, bad x0)")
    axes.plot(ks, curves["degrade"], "o-", color="tab:red", label="degrade (good x0, bad x2)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ks), [str(k) for k in ks])
    axes.set(title=title, xlabel="neurons of each role", ylabel="test accuracy", ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return figure, axes
