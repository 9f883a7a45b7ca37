"""The results of all pieces of work put together: what comparison.json and timings.json hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..common.statistics import holm
from ..judging.verdicts import outcome
from ..model.identity import identity
from ..results.overlap import overlaps, two_faced
from .agreement import no_agreement
from .cards import with_others
from .repeated import made
from .splits import SIDES
from .tasks import shared

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .setting import Setting

FORMAT, VERSION = "neuronllm-comparison", 1
Edits = dict[tuple[str, str, str], dict[str, Any]]


def assembled(setting: Setting) -> dict[str, Any]:
    """All that does not depend on the clock."""
    edits = _edits(setting)
    pairs = [(task, method) for task in setting.tasks for method in setting.methods]
    scores = {pair: setting.result("scores", *pair) for pair in pairs}
    maps = {pair: found.pop("map") for pair, found in scores.items()}
    methods = [_method(setting, *pair, scores[pair]) for pair in pairs]
    named = [dict(zip(("task", "method", "edit"), name, strict=True)) | edit for name, edit in edits.items()]
    twice = shared(setting.tasks)
    whole = {
        "format": FORMAT,
        "version": VERSION,
        "model": _model(setting),
        "made": made(setting),
        "tasks": [_task(setting, task, edits) | {"shared": twice[task]} for task in setting.tasks],
        "methods": methods,
        "edits": named,
        "curves": _curves(setting),
        "maps": [{"task": task, "method": method, **maps[task, method]} for task, method in pairs],
        "across_tasks": across_tasks(setting, edits),
        "across_methods": across_methods(setting),
        "cards": with_others(setting),
    }
    return plain(whole)


def plain(value: Any) -> Any:
    """Numbers that JSON can say: six digits of a float, and nothing where it is NaN or infinite.

    >>> plain({"a": (0.123456789, float("nan"))})
    {'a': [0.123457, None]}
    """
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    return value


def _method(setting: Setting, task: str, method: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    found = setting.result("agreement", task, method)
    why = no_agreement(method, found["agreement"])
    return {"task": task, "method": method, **scores, **found, "no_agreement": why}


def _edits(setting: Setting) -> Edits:
    """Every edit with its p-value corrected for how many there are, and its verdict."""
    names = [(task, method, edit) for task in setting.tasks for method in setting.methods for edit in setting.edits]
    edits = {name: setting.result("edits", *name) for name in names}
    tested = [edit for edit in edits.values() if edit["neurons"]]  # no edit is no test
    corrected = dict(zip(map(id, tested), holm([edit["p"] for edit in tested]), strict=True))
    for edit in edits.values():
        edit["p_holm"] = corrected.get(id(edit), 1.0)
        edit["verdict"] = verdict(edit)
    return edits


def _outcome(edit: Mapping[str, Any]) -> str:
    band = edit["controls"]["band"] if edit["controls"] else None
    return outcome(edit["gain"], edit["accuracy"], band, edit["p_holm"], edit["aim"], edit["collapsed"])


def verdict(edit: Mapping[str, Any]) -> str:
    """One short sentence on an edit."""
    if not edit["neurons"]:
        return "no edit: nothing was found, or nothing that was tried is better than the model as it is"
    found = _outcome(edit)
    if found == "collapse":
        return f"collapse: {edit['gain']:+.3f}, but the answers lean on one option, so this says nothing of the task"
    said = {"shown": "shown", "hurts": "it hurts", "not shown": "not shown"}[found]
    if edit["controls"] is None:
        return f"{said}: {edit['gain']:+.3f}, without random sets to compare with"
    count = edit["controls"]["count"]
    beaten = f"beats {edit['controls']['place'] * count:.3g} of {count} random sets"  # one that is as good counts half
    return f"{said}: {edit['gain']:+.3f}, {beaten}, p {edit['p_holm']:.2g} after Holm"


def _task(setting: Setting, name: str, edits: Edits) -> dict[str, Any]:
    task, found = setting.tasks[name], setting.result("tasks", name)
    return {
        "name": name,
        "answers": setting.form.answers,
        "questions": {side: len(getattr(task.splits, side)) for side in SIDES},
        "split": task.splits.how,
        "files": task.files,
        **found,
        "summary": summary(name, found, edits),
    }


def summary(task: str, found: Mapping[str, Any], edits: Edits) -> str:
    """One sentence on a task: what the edits do to it that random ones do not."""
    parts = [f"{task}: accuracy {found['base']['accuracy']:.3f} unedited (chance {found['chance']:.3f})"]
    for aim, verb, sign in (("enhance", "raises", 1), ("degrade", "lowers", -1)):
        mine = {name: edit for name, edit in edits.items() if name[0] == task and edit["aim"] == aim}
        shown = {name: edit for name, edit in mine.items() if edit["neurons"] and _outcome(edit) == "shown"}
        if shown:
            best = max(shown, key=lambda name: sign * shown[name]["gain"])
            more = f" ({len(shown)} of {len(mine)} edits do)" if len(mine) > 1 else ""
            parts.append(f"{best[1]}, {best[2]}, {verb} it most, to {shown[best]['accuracy']:.3f}{more}")
        elif mine:
            parts.append(f"none of {len(mine)} edits {verb} it beyond random sets and chance")
    return "; ".join(parts) + "."


def across_tasks(setting: Setting, edits: Edits) -> list[dict[str, Any]]:
    """Of every method: what its sets of the tasks share, and what an edit for a task does to each of them."""
    names = list(setting.tasks)
    if len(names) < 2:
        return []
    found = []
    for method in setting.methods:
        sets = {task: setting.found(task, method) for task in names}
        transfer = [{"edit": edit, "change": _transfer(names, method, edit, edits)} for edit in setting.edits]
        found.append({"method": method, **overlaps(sets), "two_faced": two_faced(sets), "transfer": transfer})
    return found


def _transfer(names: Sequence[str], method: str, edit: str, edits: Edits) -> list[list[float]]:
    """The change of accuracy of each task (column) under the edit for each (row)."""
    rows = []
    for task in names:
        one = edits[task, method, edit]
        there = {other: moved["after"] - moved["before"] for other, moved in one["elsewhere"].items()}
        rows.append([{**there, task: one["gain"]}[name] for name in names])
    return rows


def across_methods(setting: Setting) -> list[dict[str, Any]]:
    """Of every task: what the sets of the methods share."""
    if len(setting.methods) < 2:
        return []
    return [
        {"task": task, **overlaps({method: setting.found(task, method) for method in setting.methods})}
        for task in setting.tasks
    ]


def _curves(setting: Setting) -> list[dict[str, Any]]:
    found = []
    for path in sorted((setting.folder / "work" / "curves").glob("*/*/*.json")):
        task, method, edit = path.parts[-3], path.parts[-2], path.stem
        found.append({"task": task, "method": method, "edit": edit, **setting.result("curves", task, method, edit)})
    order = {"task": list(setting.tasks), "method": list(setting.methods), "edit": list(setting.edits)}
    return sorted(found, key=lambda one: [names.index(one[what]) for what, names in order.items()])


def _model(setting: Setting) -> dict[str, Any]:
    known, anatomy = identity(setting.model), setting.anatomy
    return {
        "name": known["model"],
        "revision": known["revision"],
        "config_hash": known["config"],
        "architecture": type(setting.model).__name__,
        "parameters": sum(parameter.numel() for parameter in setting.model.parameters()),
        "layers": max(site.layer for site in anatomy.sites) + 1,
        "neurons": anatomy.n_neurons,
        "dtype": known["dtype"],
    }
