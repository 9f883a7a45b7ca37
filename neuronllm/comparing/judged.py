"""Pieces of work that judge: the unedited model, and every edit on test questions, here and on the other tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.statistics import bootstrap_interval, mcnemar, relative_change
from ..data.forms import option_name
from ..engine.asking import Edit
from ..judging.controls import measures, random_controls
from ..judging.evaluate import change_ratio, p_change, relative_changes
from ..judging.learned import among_learned, as_learned
from ..results.answers import Answers
from ..results.neurons import NeuronSet
from .edits import EDITS, WIDE, sizes
from .making import change_of

if TYPE_CHECKING:
    from .setting import Setting

EXAMPLES = 20  # changed answers that are kept of an edit
CURVES = ("enhance", "degrade")  # the edits that are judged by how many neurons they take


def unedited(setting: Setting, task: str) -> dict[str, Any]:
    """How the model answers the test questions by itself, and what it is shown."""
    base, prompts = setting.base(task), setting.asker(task).prompts
    chance = float(np.mean([1 / len(prompt.option_ids) for prompt in prompts]))
    shown = None if setting.tokenizer is None else setting.tokenizer.decode(prompts[0].input_ids)
    return {"chance": chance, "base": {**_about(base, setting.seed), "p_right": base.mean_p_right}, "prompt": shown}


def judged(setting: Setting, task: str, method: str, edit: str) -> dict[str, Any]:
    """All numbers of an edit, those of `nl.evaluate` among them, and what it does to the other tasks."""
    neurons, how = setting.neurons(task, method, edit), EDITS[edit]
    change = change_of(setting, neurons, edit)
    base = setting.base(task)
    edited = setting.asker(task)(change) if len(change.ids) else base
    here, moved = p_change(base, edited), flips(base, edited)
    return {
        "aim": how.aim,
        "neurons": len(change.ids),
        "good": int((neurons.role == "good").sum()),
        "bad": int((neurons.role == "bad").sum()),
        "positions": change.positions,
        **_about(edited, setting.seed),
        "gain": edited.accuracy - base.accuracy,
        "p": mcnemar(moved["to_wrong"], moved["to_right"]),
        "p_right": edited.mean_p_right,
        "rac": relative_change(base.accuracy, edited.accuracy),
        "rcc": relative_change(base.mean_p_right, edited.mean_p_right),
        "p_change": here,
        "flips": moved,
        "controls": _controls(setting, task, neurons, change, edited, how.aim),
        "examples": examples(setting, task, base, edited),
        **_elsewhere(setting, task, change, here),
    }


def _measured(answers: Answers, seed: int) -> dict[str, Any]:
    interval = bootstrap_interval(answers.by_question(answers.right), seed)
    return {"accuracy": answers.accuracy, "interval": list(interval)}


def _about(answers: Answers, seed: int) -> dict[str, Any]:
    options = {option_name(answers.form, n): share for n, share in enumerate(answers.options.values())}
    return {
        **_measured(answers, seed),
        "collapsed": answers.collapsed,
        "leaning": options,
        "lengths": None if answers.form == "letters" else answers.lengths,
    }


def _controls(
    setting: Setting, task: str, neurons: NeuronSet, change: Edit, edited: Answers, aim: str
) -> dict[str, Any] | None:
    """The accuracy of random sets, learned the same way where there are some, else edited; how many the edit beats."""
    found, kind = _learned(setting, task, neurons, change, edited), "learned"
    if not found and len(neurons) and (count := setting.budget.controls):
        found = random_controls(setting.asker(task), change, edited, count, setting.seed, progress=False)
        kind = "edited"
    if not found:
        return None
    among = found["accuracy"]
    below = among["percentile_of_edit"] / 100
    return {
        "kind": kind,
        "count": found["sets"],
        "mean": among["mean"],
        "band": [among["p2.5"], among["p97.5"]],
        "place": 1 - below if aim == "degrade" else below,
    }


def _learned(setting: Setting, task: str, neurons: NeuronSet, change: Edit, edited: Answers) -> dict[str, Any] | None:
    """A learned edit among random sets learned the same way, about as strong ones where there are some."""
    if neurons.controls is None or not as_learned(neurons, change):
        return None
    ask, own = setting.asker(task), measures(edited)
    found = among_learned(
        lambda other: measures(ask(other)), neurons.controls, neurons, own, change.positions, progress=False
    )
    return found.get("matched") or found.get("plain")


def flips(base: Answers, edited: Answers) -> dict[str, int]:
    """Questions that are answered otherwise: rightly now, wrongly now, or by another wrong choice."""
    before, after = base.question_right, edited.question_right
    other = (base.choice != edited.choice) & ~before & ~after
    return {
        "to_right": int((~before & after).sum()),
        "to_wrong": int((before & ~after).sum()),
        "other": int(other.sum()),
    }


def examples(setting: Setting, task: str, base: Answers, edited: Answers) -> list[dict[str, Any]]:
    """Some questions that are answered otherwise, with both answers and the right one."""
    rows = []
    for n in np.flatnonzero(base.choice != edited.choice)[:EXAMPLES].tolist():
        question = setting.tasks[task].splits.test[n]
        before, after = (question.choices[answers.choice[n]] for answers in (base, edited))
        right = question.choices[question.answer]
        rows.append({"question": question.stem, "before": before, "after": after, "right": right})
    return rows


def _elsewhere(setting: Setting, task: str, change: Edit, here: float | None) -> dict[str, Any]:
    """Accuracy of the other tasks before and after, and the PCR against all of their prompts together."""
    found, changes = {}, []
    for other in setting.tasks:
        if other != task:
            base = setting.base(other, elsewhere=True)
            edited = setting.asker(other, elsewhere=True)(change) if len(change.ids) else base
            found[other] = {"before": base.accuracy, "after": edited.accuracy}
            changes.append(relative_changes(base, edited))
    pooled = np.concatenate(changes) if changes else np.empty(0)
    there = float(pooled.mean()) if len(pooled) else None
    return {"elsewhere": found, "p_change_elsewhere": there, "pcr": change_ratio(here, there)}


def curve(setting: Setting, task: str, method: str, edit: str) -> dict[str, Any]:
    """Test accuracy by the number of neurons of each role, beside a few random sets; at k what was judged already."""
    how, base, wide = EDITS[edit], setting.base(task), setting.found(task, method, WIDE * setting.k)
    ask = setting.asker(task)
    points: list[dict[str, Any]] = [{"k": 0, **_measured(base, setting.seed), "controls": None}]
    for k in sizes(setting.k):
        if k == setting.k:
            own = setting.result("edits", task, method, edit)
            points.append({"k": k, **{name: own[name] for name in ("accuracy", "interval", "controls")}})
            continue
        subset = wide.top(k, k)
        change = change_of(setting, subset, edit)
        edited = ask(change) if len(change.ids) else base
        controls = _few_controls(setting, task, change, edited)
        points.append({"k": k, **_measured(edited, setting.seed), "controls": controls})
    return {"aim": how.aim, "points": points}


def _few_controls(setting: Setting, task: str, change: Edit, edited: Answers) -> dict[str, Any] | None:
    count = setting.budget.curve_controls if len(change.ids) else 0
    if not count:
        return None
    found = random_controls(setting.asker(task), change, edited, count, setting.seed, progress=False)
    among = found["accuracy"]
    return {"mean": among["mean"], "band": [among["p2.5"], among["p97.5"]]}
