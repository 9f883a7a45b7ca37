"""Pieces of work that make the neuron sets of the edits: found by scores, tuned, verified, learned."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch

from ..attribution.verify import verify
from ..engine.asking import Edit
from ..results.neurons import NeuronSet
from ..steering.learn import learn
from ..steering.tune import tune
from .edits import EDITS, WIDE, sizes
from .quiet import quietly

if TYPE_CHECKING:
    from .setting import Setting

TUNED_FACTORS = (0.0, 0.5, 1.0, 1.5, 2.0)
TRIED_ON = 8  # times the questions whose exact effects are measured: those that neurons are verified on


def saved(setting: Setting, task: str, method: str, edit: str) -> dict[str, Any]:
    """The neurons of an edit, written as a set."""
    neurons = made(setting, task, method, edit)
    if setting.ranks.first or EDITS[edit].made != "learned":
        place = setting.place("sets", task, method, edit)
        shutil.rmtree(place, ignore_errors=True)  # of a process that was killed at this place
        neurons.save_pretrained(place)
    return {"neurons": len(neurons)}


def made(setting: Setting, task: str, method: str, edit: str) -> NeuronSet:
    """The neurons of an edit; a set without neurons where the scores name none."""
    how, k = EDITS[edit], setting.k
    found = setting.found(task, method)
    if how.made == "found":
        return found.top(None if how.good is not None else 0, None if how.bad is not None else 0)
    if not len(found):
        return found
    given: dict[str, Any] = {"positions": setting.request.edit_positions, "batch_size": setting.request.batch_size}
    given |= {**setting.words, "progress": False}
    model, splits = setting.model, setting.tasks[task].splits
    if how.made == "tuned":
        wide = setting.found(task, method, WIDE * k)
        given |= {"ks": sizes(k), "factors": TUNED_FACTORS}
        return quietly(tune, model, setting.tokenizer, wide, splits.validation, **given)
    if how.made == "verified":
        held = splits.validation[: setting.budget.judged * TRIED_ON]
        if len(held) < 2:
            return found
        return quietly(verify, model, setting.tokenizer, setting.scores(task, method), held, k, k, limit=2 * k, **given)
    return quietly(
        learn,
        model,
        setting.tokenizer,
        splits.search,
        splits.validation,
        neurons=found,
        seeds=len(setting.request.seeds),
        seed=setting.seed,
        controls=setting.request.learned_controls,
        output=setting.folder / "learned" / task / method,
        resume=True,
        **given,
    )


def change_of(setting: Setting, neurons: NeuronSet, edit: str) -> Edit:
    """The edit as the model is asked under it."""
    how = EDITS[edit]
    positions = setting.request.edit_positions or neurons.positions or "all"
    if not len(neurons):
        return Edit(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64), positions)
    mode = "tuned" if how.made == "tuned" else None
    if mode == "tuned":
        positions = neurons.positions or positions
    return Edit(*neurons.edits(setting.model, neurons.steering(mode, how.good, how.bad)), positions)
