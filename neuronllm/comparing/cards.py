"""Neuron cards: what the strongest neurons of a task are, with what was measured of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..attribution.describe import describe
from ..common.files import read_tensors
from ..methods import get_method
from ..results.factors import ROLES
from ..results.neurons import NeuronSet
from .edits import EDITS
from .quiet import quietly

if TYPE_CHECKING:
    from .setting import Setting

SHOWN = 12  # neurons of a role that get a card
SURE = 1.96  # standard errors of a 95 % interval


def chosen(setting: Setting, task: str) -> NeuronSet:
    """The neurons that get a card: the strongest that the first method found."""
    most = min(setting.k, SHOWN)
    found: NeuronSet = quietly(setting.scores(task, setting.methods[0]).find, most, most)
    return found


def cards(setting: Setting, task: str) -> dict[str, Any]:
    """The cards of a task, without what the other tasks say of their neurons."""
    method, neurons = setting.methods[0], chosen(setting, task)
    if not len(neurons):
        return {"cards": []}
    texts, more = setting.searched(task, method), {"template": setting.words["template"], "progress": False}
    found = quietly(describe, setting.model, setting.tokenizer, neurons, texts, **more).cards
    scores, exact = setting.scores(task, method), effects(setting, task, method)
    how = EDITS[setting.edits[0]]
    factors = {"good": how.good, "bad": how.bad}
    for card in found:
        error = SURE * float(scores.stderr[card["id"]])
        interval = [card["score"] - error, card["score"] + error] if get_method(method).objective is not None else None
        card |= {"task": task, "method": method, "interval": interval, "exact": exact.get(card["id"])}
        card["factor"] = factors[card["role"]]
    return {"cards": found}


def effects(setting: Setting, task: str, method: str) -> dict[int, float]:
    """The mean exact effect of every neuron that was silenced where the method scores."""
    if get_method(method).needs_answers:
        return {}
    found = read_tensors(setting.folder / "truth" / task, f"{setting.positions(method)}.safetensors", "comparison")
    return dict(zip(found["ids"].tolist(), found["effects"].mean(0).tolist(), strict=True))


def with_others(setting: Setting) -> list[dict[str, Any]]:
    """The cards of all tasks, each with the other tasks in whose sets its neuron is."""
    sets = {}
    for task in setting.tasks:
        neurons = quietly(setting.scores(task, setting.methods[0]).find, setting.k, setting.k)
        sets[task] = {role: set(neurons.ids[torch.from_numpy(neurons.role == role)].tolist()) for role in ROLES}
    whole = []
    for task in setting.tasks:
        for card in setting.result("cards", task)["cards"]:
            card["also"] = [
                {"task": other, "role": role}
                for other, roles in sets.items()
                for role, ids in roles.items()
                if other != task and card["id"] in ids
            ]
            whole.append(card)
    return whole
