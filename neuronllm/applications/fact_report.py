"""What editing facts came to: efficacy, generalisation and locality, beside random neurons edited the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..common.checks import short
from ..common.statistics import bootstrap_interval
from ..common.tables import show
from ..results.neurons import NeuronSet


class Outcome(NamedTuple):
    """How the model answers under one edit; None where no such questions were given."""

    efficacy: float  # 1 where the question is answered as wanted, else 0
    p_wanted: float  # the probability of that, the mean over the question's variants
    generalisation: float | None  # the share of the paraphrases that are answered as wanted
    locality: float | None  # the share of the unrelated questions whose answer stays
    moved: float | None  # how much probability moves between the options of unrelated questions, on average


MEASURES = Outcome._fields


@dataclass(frozen=True, eq=False, repr=False)
class FactEdit:
    """One fact, edited: what `nl.edit_fact` returns; `print(edit)` shows all of it.

    `wanted` is the answer that was to be, or None where any other than `before` was. `neurons` have factors of their
    own, so that they are applied, baked and exported like any others. `random` are as many neurons of the same blocks
    and experts, edited the same way.

    >>> with edit.neurons.apply(model):   # doctest: +SKIP
    ...     model.generate(**inputs)
    """

    question: str
    id: str
    before: str
    wanted: str | None
    after: str
    how: str
    neurons: NeuronSet
    unedited: Outcome
    edited: Outcome
    random: tuple[Outcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file; the neurons are saved by themselves."""
        said = {name: getattr(self, name) for name in ("question", "id", "before", "wanted", "after", "how")}
        outcomes = {name: getattr(self, name)._asdict() for name in ("unedited", "edited")}
        return {**said, "neurons": len(self.neurons), **outcomes, "random": [one._asdict() for one in self.random]}

    def __str__(self) -> str:
        name = short(" ".join(self.question.split()))
        wanted = f"to be {self.wanted}" if self.wanted else "to be anything else"
        first = f"{name}: {self.before} -> {self.after} ({wanted}; {self.how}, {len(self.neurons)} neurons)"
        return "\n".join([first, *_rows([self])])


@dataclass(frozen=True, eq=False, repr=False)
class FactEdits:
    """Several facts, each edited by itself: what `nl.edit_facts` returns; `print(edits)` shows means and intervals."""

    edits: tuple[FactEdit, ...]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.edits)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Of every measure the mean over facts, unedited, edited and of random neurons, with 95 % intervals.

        "gain" is edited less random, fact by fact.
        """
        return summary(self.edits, self.seed)

    def to_dict(self) -> dict[str, Any]:
        return {"summary": self.summary(), "facts": [edit.to_dict() for edit in self.edits]}

    def __str__(self) -> str:
        return "\n".join([f"{len(self)} facts, each edited by itself", *_rows(self.edits, self.seed)])


def summary(edits: Sequence[FactEdit], seed: int = 0) -> dict[str, dict[str, Any]]:
    return {name: found for name in MEASURES if (found := _of_measure(edits, name, seed)) is not None}


def _of_measure(edits: Sequence[FactEdit], name: str, seed: int) -> dict[str, Any] | None:
    told = [edit for edit in edits if getattr(edit.edited, name) is not None]
    if not told:
        return None
    columns = {
        "unedited": _values(told, lambda edit: [edit.unedited], name),
        "edited": _values(told, lambda edit: [edit.edited], name),
    }
    if all(edit.random for edit in told):
        columns["random"] = _values(told, lambda edit: edit.random, name)
        columns["gain"] = columns["edited"] - columns["random"]
    return {whose: {"mean": float(v.mean()), "ci": bootstrap_interval(v, seed)} for whose, v in columns.items()}


def _values(edits: Sequence[FactEdit], of: Callable[[FactEdit], Sequence[Outcome]], name: str) -> np.ndarray:
    return np.array([np.mean([getattr(outcome, name) for outcome in of(edit)]) for edit in edits])


LABELS = {
    "efficacy": "as wanted",
    "p_wanted": "P(as wanted)",
    "generalisation": "paraphrases",
    "locality": "unrelated kept",
    "moved": "P moved there",
}


def _rows(edits: Sequence[FactEdit], seed: int = 0) -> list[str]:
    lines = []
    for name, found in summary(edits, seed).items():
        text = f"{show(found['unedited']['mean'])} -> {show(found['edited']['mean'])}"
        if len(edits) > 1:
            text += " ({:.3f} to {:.3f})".format(*found["edited"]["ci"])
        if "random" in found:
            text += f"   (random neurons {show(found['random']['mean'])})"
        lines.append(f"{LABELS[name]:<18}{text}")
    return lines
