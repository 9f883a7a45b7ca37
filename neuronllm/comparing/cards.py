"""Neuron cards: what the strongest neurons of a task are, with what every method says of them and what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..attribution.describe import describe
from ..common.files import read_tensors
from ..methods import get_method
from ..results.factors import ROLES
from ..results.neurons import NeuronSet
from ..results.overlap import ids_of
from .edits import EDITS
from .quiet import quietly

if TYPE_CHECKING:
    from .setting import Setting

SHOWN = 12  # neurons of a role that get a card, of every method
SURE = 1.96  # standard errors of a 95 % interval
# Of a description, what is not a matter of a method.
ABOUT = ("layer", "expert", "index", "id", "promoted", "suppressed", "spans", "positive", "read")
Card = dict[str, Any]


def chosen(setting: Setting, task: str, method: str) -> NeuronSet:
    """The neurons that get a card: the strongest that the method found."""
    return setting.found(task, method, min(setting.k, SHOWN))


def cards(setting: Setting, task: str) -> dict[str, Any]:
    """The cards of a task, one a neuron, without what the other tasks say of it."""
    said: dict[int, list[Card]] = {}
    for method in setting.methods:
        for number, one in _said(setting, task, method).items():
            said.setdefault(number, []).append(one)
    if not said:
        return {"cards": []}
    texts = setting.prompts(setting.tasks[task].splits.search)
    found = quietly(describe, setting.model, setting.tokenizer, torch.tensor(list(said)), texts, progress=False).cards
    whole = []
    for card in found:
        about = {name: card[name] for name in ABOUT}
        whole.append({"task": task, **about, "judged": len(setting.judged(task)), "methods": said[card["id"]]})
    return {"cards": whole}


def _said(setting: Setting, task: str, method: str) -> dict[int, Card]:
    """What a method says of the neurons that it found, by their ids."""
    neurons, scores, exact = chosen(setting, task, method), setting.scores(task, method), effects(setting, task, method)
    how, explains = EDITS[setting.edits[0]], get_method(method).objective is not None
    said = {}
    for number, role in zip(neurons.ids.tolist(), neurons.role.tolist(), strict=True):
        score, error = float(scores.values[number]), SURE * float(scores.stderr[number])
        said[number] = {
            "method": method,
            "role": role,
            "score": score,
            "interval": [score - error, score + error] if explains else None,
            "exact": exact.get(number),
            "factor": {"good": how.good, "bad": how.bad}[role],
        }
    return said


def effects(setting: Setting, task: str, method: str) -> dict[int, float]:
    """The mean exact effect of every neuron that was silenced where the method scores."""
    if get_method(method).needs_answers:
        return {}
    found = read_tensors(setting.folder / "truth" / task, f"{setting.positions(method)}.safetensors", "comparison")
    return dict(zip(found["ids"].tolist(), found["effects"].mean(0).tolist(), strict=True))


def with_others(setting: Setting) -> list[Card]:
    """The cards of all tasks, each with the other tasks in whose sets its neuron is, and by which methods."""
    named: dict[int, dict[tuple[str, str], list[str]]] = {}  # by neuron, then by task and role
    for task in setting.tasks:
        for method in setting.methods:
            neurons = setting.found(task, method)
            for role in ROLES:
                for number in ids_of(neurons, role).tolist():
                    named.setdefault(number, {}).setdefault((task, role), []).append(method)
    return [
        card
        | {
            "also": [
                {"task": other, "role": role, "methods": methods}
                for (other, role), methods in named[card["id"]].items()
                if other != task
            ]
        }
        for task in setting.tasks
        for card in setting.result("cards", task)["cards"]
    ]
