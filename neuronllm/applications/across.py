"""Several tasks side by side: the neurons that they share, and what an edit for one does to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..common.errors import InputError
from ..common.tables import markdown_table
from ..data.prompts import Questions
from ..engine.asking import Asker, Edit
from ..judging.asking import Asking
from ..judging.controls import among
from ..judging.evaluate import change_ratio, p_change, relative_changes
from ..model.bridged import plain_model
from ..model.random_sets import random_like
from ..results.answers import Answers
from ..results.neurons import POSITIONS, NeuronSet
from ..results.overlap import overlaps, same_anatomy, two_faced
from ..select.results import checked_count

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Matrix = list[list[Any]]  # row: whose neurons are edited, column: whose questions are asked


@dataclass(frozen=True, repr=False)
class CrossTask:
    """What `nl.cross_task` returns; `print(found)` shows it. Rows are edits, columns the tasks that are asked.

    `transfer` is the change of accuracy, `p_change` the mean over prompts of the relative change of P(right), and
    `pcr_matrix` the size of a row's change on its own task over that on each column. `pcr` is that over the change on
    the prompts of all other tasks together, QRNCA's ratio. `overlap` says how many neurons sets share beside chance,
    and `two_faced` names neurons that are good for one task and bad for another. `random`: the same of random neurons,
    matrices as means over the sets, and where each PCR stands.
    """

    names: list[str]
    edits: list[dict[str, Any]]
    questions: list[int]
    accuracy: list[float]
    transfer: Matrix
    p_change: Matrix
    pcr_matrix: Matrix
    pcr: list[float | None]
    overlap: dict[str, Any]
    two_faced: list[dict[str, Any]]
    random: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)

    def __str__(self) -> str:
        titles = {"transfer": "change of accuracy", "p_change": "relative change of P(right)"}
        lines = []
        for name, title in titles.items():
            lines += [f"{title} (row: whose neurons are edited)", *self._table(getattr(self, name)), ""]
        rows = [[name, value, *self._band(n)] for n, (name, value) in enumerate(zip(self.names, self.pcr, strict=True))]
        lines += markdown_table(["task", "PCR", *(["random sets"] if self.random else [])], rows)
        for role in ("good", "bad", "good_bad"):
            cells = [[f"{each['jaccard']:.3f} ({each['chance']:.3f})" for each in row] for row in self.overlap[role]]
            if any(each["shared"] for row in self.overlap[role] for each in row):
                lines += ["", f"shared neurons, Jaccard (chance): {role.replace('_', ' with ')}", *self._table(cells)]
        if self.two_faced:
            lines += ["", f"{len(self.two_faced)} neurons are good for one task and bad for another"]
        return "\n".join(lines)

    def _table(self, matrix: Matrix) -> list[str]:
        return markdown_table(["", *self.names], [[name, *row] for name, row in zip(self.names, matrix, strict=True)])

    def _band(self, row: int) -> list[str]:
        if not self.random:
            return []
        band = self.random["pcr"][row]
        return ["n/a" if band is None else f"{band['p2.5']:.3f} to {band['p97.5']:.3f}"]


@torch.inference_mode(False)
def cross_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Mapping[str, Questions],
    neurons: Mapping[str, NeuronSet],
    mode: str | None = None,
    good: float | None = None,
    bad: float | None = None,
    positions: str | None = None,
    controls: int = 0,
    *,
    orders: str = "none",
    template: str | list[str] | None = None,
    answers: str | None = None,
    length: str | None = None,
    batch_size: int | str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> CrossTask:
    """What neurons of several tasks have in common, and what an edit for one task does to every other one.

    tasks: questions that no search saw, by the names of the tasks. neurons: a set for each of these names. mode, good,
    bad, positions, and how is asked: as in `nl.evaluate`; every task in the words of its own neurons. controls: random
    sets for each task, as many neurons in every block, edited the same way.

    >>> found = nl.cross_task(model, tokenizer, tasks, sets, mode="degrade")   # doctest: +SKIP
    >>> found.transfer[0][1]   # what degrading the first task does to the second   # doctest: +SKIP
    """
    same_anatomy(neurons)
    if not isinstance(tasks, Mapping) or set(tasks) != set(neurons):
        names = ", ".join(map(str, neurons))
        raise InputError(f"tasks: give questions for each neuron set, by the same names: {names}")
    if positions is not None and positions not in POSITIONS:
        raise InputError(f"positions={positions!r}: known values are {', '.join(POSITIONS)}")
    checked_count("controls", controls)
    model = plain_model(model)
    edits, told = {}, []
    for name, one in neurons.items():
        how = one.steering(mode, good, bad)
        edits[name] = Edit(*one.edits(model, how), positions or one.positions or "all")
        told.append({**one.steered_by(how), "positions": edits[name].positions, "neurons": len(edits[name].ids)})
    ask = {}
    for name, one in neurons.items():
        asking = Asking.of(tasks[name], one.provenance, orders, template, answers, length)
        ask[name] = Asker(model, asking.prompts(model, tokenizer, tasks[name]), batch_size)
    asked = _Asked(list(neurons), ask, progress)
    after = asked.under(edits)
    random = asked.random(edits, [ratio(asked.before, row, n) for n, row in enumerate(after)], controls, seed)
    return CrossTask(
        names=asked.names,
        edits=told,
        questions=[len(answers.groups) for answers in asked.before],
        accuracy=[answers.accuracy for answers in asked.before],
        **asked.matrices(after),
        pcr=[ratio(asked.before, row, n) for n, row in enumerate(after)],
        overlap=overlaps(neurons),
        two_faced=two_faced(neurons),
        random=random,
    )


class _Asked:
    """The tasks under edits."""

    def __init__(self, names: list[str], ask: Mapping[str, Asker], progress: bool) -> None:
        self.names, self.ask, self.progress = names, ask, progress
        self.before = [ask[name](None, name, progress) for name in names]

    def under(self, edits: Mapping[str, Edit], label: str = "tasks") -> list[list[Answers]]:
        """Every task under every edit; an edit without neurons changes nothing."""
        pairs = [(row, column) for row in self.names for column in range(len(self.names))]
        bar = tqdm(pairs, desc=label, disable=not self.progress, unit="task", leave=False)
        found = [
            self.ask[self.names[column]](edits[row]) if len(edits[row].ids) else self.before[column]
            for row, column in bar
        ]
        width = len(self.names)
        return [found[start : start + width] for start in range(0, len(found), width)]

    def matrices(self, after: Sequence[Sequence[Answers]]) -> dict[str, Matrix]:
        changed = [[p_change(*pair) for pair in zip(self.before, row, strict=True)] for row in after]
        return {
            "transfer": [[gained(*pair) for pair in zip(self.before, row, strict=True)] for row in after],
            "p_change": changed,
            "pcr_matrix": [[change_ratio(row[n], value) for value in row] for n, row in enumerate(changed)],
        }

    def random(
        self, edits: Mapping[str, Edit], own: Sequence[float | None], controls: int, seed: int
    ) -> dict[str, Any] | None:
        """The matrices of random neurons, as means over the sets, and where each task's PCR stands among theirs."""
        if not controls:
            return None
        generator = torch.Generator().manual_seed(seed)
        anatomy = self.ask[self.names[0]].anatomy
        drawn, ratios = [], []
        for _ in range(controls):
            others = {
                name: edit._replace(ids=random_like(edit.ids, anatomy, generator)) for name, edit in edits.items()
            }
            after = self.under(others, "random sets")
            drawn.append(self.matrices(after))
            ratios.append([ratio(self.before, row, n) for n, row in enumerate(after)])
        places = []
        for n, value in enumerate(own):
            known = [row[n] for row in ratios if row[n] is not None]
            places.append(among(known, value) if known and value is not None else None)  # type: ignore[arg-type]
        stacked = {name: np.array([one[name] for one in drawn], dtype=float) for name in ("transfer", "p_change")}
        return {"sets": controls, **{name: each.mean(0).tolist() for name, each in stacked.items()}, "pcr": places}


def gained(before: Answers, after: Answers) -> float:
    """The change of accuracy; other questions answered, as many in all, are 0 and not what rounding leaves of it."""
    return round(after.accuracy - before.accuracy, 12)


def ratio(before: Sequence[Answers], after: Sequence[Answers], own: int) -> float | None:
    """A row's PCR: the change on its own prompts over that on the prompts of all other tasks; one task has none."""
    if len(before) < 2:
        return None
    changes = [relative_changes(a, b) for a, b in zip(before, after, strict=True)]
    elsewhere = np.concatenate([change for n, change in enumerate(changes) if n != own])
    here = float(changes[own].mean()) if len(changes[own]) else None
    return change_ratio(here, float(elsewhere.mean()) if len(elsewhere) else None)
