"""Scores: one value a neuron, how sure it is, and where it came from."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.files import new_folder, read_json, read_tensors, write_json, write_tensors
from ..common.warning import warn
from ..model.anatomy import Anatomy
from ..select import extremes
from .factors import ROLES
from .neurons import NeuronSet, check_counts
from .per_prompt import ShardedScores, Top
from .pictures import scores_figure
from .searched import warn_of_missed
from .shown import Shown, neurons_shown

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

CONFIG, TENSORS, MANIFEST = "scores.json", "scores.safetensors", "run.json"
PARTIAL = ".partial"  # behind the name of a folder: the run that is to become it
TOP = "top."


@dataclass(eq=False, repr=False)
class Scores(Shown):
    """What `nl.attribute` returns.

    `values` (n_neurons,) float32: + helps, - hurts; NaN where a neuron was not run, as by method "exact" with top=.
    `stderr` and `sign_consistency` are over questions (the share of questions that agree with the mean's sign).
    `per_prompt` (prompts, n_neurons): raw scores, with keep="all" only; on disk it is read row by row when it is
    indexed. `top`: every prompt's highest and lowest, with keep="topk" only.

    >>> scores = nl.Scores.load("scores")           # doctest: +SKIP
    >>> neurons = scores.find(good=100, bad=100)    # doctest: +SKIP
    """

    values: Tensor
    stderr: Tensor
    sign_consistency: Tensor
    anatomy: Anatomy
    provenance: dict[str, Any] = field(default_factory=dict)
    per_prompt: Tensor | ShardedScores | None = None
    top: Top | None = None

    def __post_init__(self) -> None:
        if self.values.shape != (self.anatomy.n_neurons,):
            raise InputError(f"values: shape {tuple(self.values.shape)} does not fit a {self.anatomy.describe()}")

    def __repr__(self) -> str:
        method = self.provenance.get("method", "unknown method")
        few = "" if (ran := int(self.measured.sum())) == len(self.values) else f"{ran} of "
        return f"Scores({method}, {few}{self.anatomy.n_neurons} neurons of a {self.anatomy.describe()})"

    @property
    def measured(self) -> Tensor:
        """(n_neurons,): True for the neurons that have a score."""
        return ~self.values.isnan()

    def find(self, good: int = 100, bad: int = 100) -> NeuronSet:
        """The neurons that help most and hurt most; fewer, with a warning, where the sign does not allow more."""
        check_counts(good=good, bad=bad)
        warn_of_missed(self.provenance, max(good, bad))
        ends = extremes(self.values, largest=good, smallest=bad)
        parts = []
        for role, asked, end in (("good", good, ends.largest), ("bad", bad, ends.smallest)):
            signed = end.values > 0 if role == "good" else end.values < 0
            if int(signed.sum()) < asked:
                warn(
                    f"only {int(signed.sum())} neurons have a score of the sign of {role} ones, {asked} were asked for"
                )
            parts.append((end.indices[signed], [role] * int(signed.sum()), end.values[signed]))
        ids, roles, values = zip(*parts, strict=True)
        return NeuronSet(
            torch.cat(ids),
            np.array(sum(roles, []), dtype="<U4"),
            torch.cat(values),
            self.anatomy,
            dict(self.provenance),
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a neuron: layer, expert, index, score, stderr, sign_consistency; NaN if not run. Needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise InputError("to_dataframe needs pandas: pip install pandas") from error

        layer, expert, index = self.anatomy.locate(torch.arange(self.anatomy.n_neurons))
        return pandas.DataFrame(
            {
                "layer": layer.numpy(),
                "expert": expert.numpy(),
                "index": index.numpy(),
                "score": self.values.numpy(),
                "stderr": self.stderr.numpy(),
                "sign_consistency": self.sign_consistency.numpy(),
            }
        )

    def plot(self, title: str | None = None) -> Figure:
        """A matplotlib figure: a map of layers x neurons, and what lies in each layer. Needs matplotlib.

        >>> scores.plot().savefig("scores.pdf")   # doctest: +SKIP
        """
        named = f"{self.provenance.get('method', '')} scores of every neuron".lstrip()
        return scores_figure(self.anatomy, self.values, named if title is None else title)

    def _shown(self) -> tuple[str, dict[str, Any]]:
        """The best and the worst neurons, and in which layers the best and the worst hundredth lie."""
        count = max(1, self.anatomy.n_neurons // 100)
        ends = extremes(self.values, largest=count, smallest=count)
        roles = np.repeat(ROLES, [len(ends.largest.indices), len(ends.smallest.indices)])
        ids = torch.cat([ends.largest.indices, ends.smallest.indices])
        title = f"Best and worst hundredth of {self.anatomy.n_neurons:,} scores"
        return neurons_shown(title, self.provenance, self.anatomy, ids, roles, self.values[ids])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the scores into a folder, whole or not at all."""
        with new_folder(folder, CONFIG) as temporary:
            self.write_into(temporary)

    def write_into(self, folder: Path) -> None:
        """Write the files of the scores, last the one that marks the folder as complete."""
        tensors = {"values": self.values, "stderr": self.stderr, "sign_consistency": self.sign_consistency}
        config: dict[str, Any] = {"anatomy": self.anatomy.to_dict(), "provenance": self.provenance}
        if isinstance(self.per_prompt, ShardedScores):
            self.per_prompt.copy_to(folder)
            config["parts"] = self.per_prompt.names
        elif self.per_prompt is not None:
            tensors["per_prompt"] = self.per_prompt
        if self.top is not None:
            tensors |= {TOP + name: tensor for name, tensor in self.top.tensors().items()}
        write_tensors(folder / TENSORS, tensors)
        write_json(folder / CONFIG, config)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Scores:
        """Read what `save` or a run wrote."""
        _refuse_unfinished(Path(folder))
        config = read_json(folder, CONFIG, "scores")
        tensors: dict[str, Any] = read_tensors(folder, TENSORS, "scores")
        try:
            ends = {name.removeprefix(TOP): tensors.pop(name) for name in sorted(tensors) if name.startswith(TOP)}
            if ends:
                tensors["top"] = Top.of_tensors(ends)
            if config.get("parts"):
                tensors["per_prompt"] = ShardedScores(folder, config["parts"])
            return cls(anatomy=Anatomy.from_dict(config["anatomy"]), provenance=config["provenance"], **tensors)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder}: not scores as written here ({type(error).__name__}: {error})") from error


def _refuse_unfinished(folder: Path) -> None:
    for begun in (folder, folder.with_name(folder.name + PARTIAL)):
        if (begun / MANIFEST).is_file() and not (folder / CONFIG).is_file():
            raise InputError(
                f"{folder}: no finished scores there, {begun} is a run under way: go on with resume=True (--resume)"
            )
