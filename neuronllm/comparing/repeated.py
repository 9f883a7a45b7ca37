"""How a comparison was made: what its methods and edits are, and how to do the same again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from ..common.env import source_commit
from ..methods import get_method
from ..model.identity import identity
from .budget import budget_of, budget_text
from .edits import EDITS
from .request import CompareRequest
from .stages import versions

if TYPE_CHECKING:
    from .setting import Setting

ELSEWHERE = ("methods", "edits", "output", "resume", "overwrite", "progress")  # said anyway, or no byte depends on it


def made(setting: Setting) -> dict[str, Any]:
    """What is not known of a preset is among it."""
    request = setting.request
    asked = {"methods": list(setting.methods), "edits": list(setting.edits), **given(request)}
    python = ", ".join(f"{name}={value!r}" for name, value in asked.items())
    named = ", ".join(f"{task!r}: ..." for task in setting.tasks)
    return {
        "command": command(setting, asked),
        "python": f"nl.compare(model, tokenizer, {{{named}}}, {python})",
        "versions": versions(),
        "commit": source_commit(),
        "seeds": list(request.seeds),
        "settings": request.settings(),
        "unknown": request.unknown,
        "methods": {method: (get_method(method).__doc__ or "").strip().split("\n")[0] for method in setting.methods},
        "edits": {edit: EDITS[edit]._asdict() for edit in setting.edits},
    }


def given(request: CompareRequest) -> dict[str, Any]:
    """The arguments that are not as they are by default."""
    found = {}
    for argument in fields(request):
        default = argument.default if argument.default_factory is MISSING else argument.default_factory()
        value = getattr(request, argument.name)
        value = budget_text(budget_of(value)) if argument.name == "budget" else value
        if argument.name not in ELSEWHERE and value != default:
            found[argument.name] = value
    return found


def command(setting: Setting, asked: Mapping[str, Any]) -> str:
    tasks = [f"--task {task.name}={','.join(task.files.values()) or 'FILE'}" for task in setting.tasks.values()]
    flags = [f"--{name.replace('_', '-')} {_words(value)}" for name, value in asked.items()]
    known = identity(setting.model)
    model = f"--model {known['model']} --dtype {known['dtype']}"
    return " ".join(["neuronllm compare", model, *tasks, *flags, "--output DIR"])


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{method}.{option}={x}" for method, some in value.items() for option, x in some.items())
    words = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(json.dumps(word) if " " in str(word) else str(word) for word in words)
