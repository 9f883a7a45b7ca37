"""What README.md files of neuron sets, adapters and steered models share: what a Hub reads of them, and a report."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.files import read_json
from ..common.tables import markdown_table, show

TAG = "neuronllm"
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def model_id(record: dict[str, Any]) -> str | None:
    """The id of a record's model on the Hub; a model from a folder has only a name."""
    name = record.get("model")
    return name if isinstance(name, str) and REPOSITORY.fullmatch(name) else None


def front_matter(library: str, base_model: str | None, *tags: str, license: str | None = None) -> list[str]:
    """What the Hub reads of a card, as YAML, in which quoted strings are those of JSON."""
    facts = {"library_name": library, "tags": [TAG, *tags], "base_model": base_model, "license": license}
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in facts.items() if value is not None), "---"]


def steered_card(
    name: str, head: list[str], described: str, form: str, told: dict[str, Any], use: str, report: Any = None
) -> str:
    """The README.md of a neuron set in another form; `told` is what the folder's record says, `use` how it is used."""
    counted, *facts = described.split("\n")
    facts += [f"- factors: {_steered(told)}", f"- for: {told['for']['model']}, {told['for']['dtype']}"]
    lines = [*head, f"# {name}", "", f"{counted}, found with neuronllm, {form}.", "", *facts, "", use]
    return "\n".join([*lines, *report_table(report)]).rstrip() + "\n"


def _steered(told: dict[str, Any]) -> str:
    return ", ".join(f"{key} {told[key]}" for key in ("mode", "good", "bad", "own") if told[key] not in (None, {}))


def report_table(report: Any) -> list[str]:
    """The shares that a report of `nl.evaluate` gives, before and after the edit, beside random sets."""
    if report is None:
        return []
    found = report if isinstance(report, dict) else report.to_dict()
    base, edit, controls, change = found["base"], found["edit"], found["controls"] or {}, found["ci"].get("change", {})
    if base is None:
        raise InputError("report: it is of the unedited model; give that of nl.evaluate(..., neurons)")
    rows = []
    for name, before in base.items():
        if isinstance(before, float) and isinstance(found.get(name), float):
            drawn = controls.get(name)
            band = f"{drawn['p2.5']:.3f} to {drawn['p97.5']:.3f}" if drawn else None
            rows.append([name, before, found[name], show(change.get(name)), show(band)])
    sets = f"{controls['sets']} random sets" if controls else "random sets"
    columns = ["", "unedited", "edited", "95 % change", f"{sets}, 95 %"]
    heading = f"{found['questions']} questions, edited with {_steered(edit)}, positions {edit['positions']}:"
    return ["", heading, "", *markdown_table(columns, rows), ""]


def saved_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report that `neuronllm evaluate --neurons NEURONS --output FILE` wrote."""
    file = Path(path)
    found = read_json(file.parent, file.name, "report")
    if not isinstance(found, dict) or not {"base", "ci", "controls", "edit", "questions"} <= found.keys():
        raise InputError(f"{path}: not a report of neuronllm evaluate --neurons DIR --output FILE")
    if found["base"] is None:
        raise InputError(f"{path}: the report is of the unedited model; give that of neuronllm evaluate --neurons DIR")
    return found
