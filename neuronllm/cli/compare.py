"""`neuronllm compare`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from ..common.env import first_process
from ..common.errors import InputError
from ..comparing.dry_run import planned
from ..comparing.request import CompareRequest
from ..comparing.run import compared, read_tasks
from ..comparing.splits import SIDES
from ..data.templates import read_templates
from ..runs.processes import Ranks
from .values import literal

DEMO = "demo:"
GIVEN = (
    "methods",
    "edits",
    "preset",
    "k",
    "answers",
    "length",
    "positions",
    "edit_positions",
    "orders",
    "seeds",
    "budget",
    "controls",
    "learned_controls",
    "split_by",
    "batch_size",
    "output",
)


def run(args: argparse.Namespace, load: Callable[..., Any], template: Any) -> None:
    """`load` gets the model as in every command."""
    with Ranks.here() as ranks, ranks.together():
        if not args.output and not args.dry_run:
            raise InputError("--output: name a folder for the comparison (only --dry-run does without)")
        given = {name: value for name in GIVEN if (value := getattr(args, name)) is not None}
        given |= {"resume": args.resume, "overwrite": args.overwrite, "progress": not args.quiet}
        options = options_of(args.options or ())
        request = CompareRequest(**given, template=template, options=options).checked()
        # What can be refused without the model is refused before it is loaded.
        tasks = read_tasks(tasks_of(args.task), request)
        for method in request.methods or ():
            asked = request.attribution(method).checked(next(iter(tasks.values())).splits.search)
            read_templates(asked.template, asked.answers)
        model, tokenizer = load(args)
    if args.dry_run:
        plan = planned(model, tokenizer, tasks, request)
        if first_process():
            print(plan)
        return
    comparison = compared(model, tokenizer, tasks, request)
    if first_process():
        comparison.print()
        print(f"{args.output}: {comparison}")


def tasks_of(given: Sequence[str]) -> dict[str, Any]:
    """NAME=FILE or NAME=FILE,FILE,FILE of every --task; "demo:TASK" is a bundled one, with its own splits."""
    tasks: dict[str, Any] = {}
    for text in given:
        name, equals, files = text.partition("=")
        if not equals and text.startswith(DEMO):
            name, files = text.removeprefix(DEMO), text
        elif not equals or not files:
            raise InputError(f"--task {text}: write NAME=FILE, or NAME=SEARCH,VALIDATION,TEST")
        if name in tasks:
            raise InputError(f"--task {text}: {name!r} is the name of another task")
        tasks[name] = bundled(files) if files.startswith(DEMO) else files.split(",")
    return tasks


def bundled(source: str) -> list[str]:
    from ..demo import demo_task

    return [demo_task(source.removeprefix(DEMO), side) for side in SIDES]


def options_of(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """METHOD.NAME=VALUE of every --options."""
    options: dict[str, dict[str, Any]] = {}
    for text in given:
        place, equals, value = text.partition("=")
        method, dot, name = place.partition(".")
        if not equals or not dot or not name:
            raise InputError(f"--options {text}: write METHOD.NAME=VALUE, such as ace.steps=8")
        options.setdefault(method, {})[name] = literal(value)
    return options
