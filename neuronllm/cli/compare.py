"""`neuronllm compare`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..bridges.lm_eval_tasks import load_splits, need_lm_eval
from ..common.env import first_process
from ..common.errors import InputError
from ..comparing.dry_run import planned
from ..comparing.request import CompareRequest
from ..comparing.run import compared, read_tasks
from ..comparing.tasks import Task
from ..data.templates import read_templates
from ..demo import DEMO, demo_task
from ..runs.processes import Ranks
from .demo import bundled
from .tasks import tokenizer_of
from .values import literal

LM_EVAL = "lm-eval:"
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
        given["template"] = None if args.apply_chat_template and in_own_words(args) else template
        request = CompareRequest(**given, options=options_of(args.options or ())).checked()
        # What can be refused without the model is refused before it is loaded.
        tasks = read_tasks(tasks_of(args, request), request)
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


def in_own_words(args: argparse.Namespace) -> bool:
    """Whether tasks of lm-eval are asked for, which word themselves, in a chat too."""
    return any(LM_EVAL in text for text in args.task)


def tasks_of(args: argparse.Namespace, request: CompareRequest) -> dict[str, Any]:
    """One to three sources under a name, of every --task; "demo:TASK" and "lm-eval:TASK" have their own splits."""
    tasks: dict[str, Any] = {}
    for text in args.task:
        name, source = named(text)
        if name in tasks:
            raise InputError(f"--task {text}: {name!r} is the name of another task")
        if source.startswith(DEMO) and not set(",/") & set(source):
            tasks[name] = replace(bundled(source.removeprefix(DEMO)), name=name)
        elif source.startswith(LM_EVAL):
            task = of_lm_eval(name, source.removeprefix(LM_EVAL), args, request)
            tasks[name] = replace(task, files={"all": source + said_of_lm_eval(args)})
        else:
            tasks[name] = of_files(name, source.split(","), request)
    return tasks


def named(text: str) -> tuple[str, str]:
    """The name of a task and where its questions are; bundled ones and those of lm-eval may go by their own name."""
    name, equals, source = text.partition("=")
    if not equals and text.startswith(LM_EVAL):
        return text.removeprefix(LM_EVAL), text
    if not equals and text.startswith(DEMO):
        return re.split("[,/]", text.removeprefix(DEMO))[0], text
    if not source:
        raise InputError(f"--task {text}: write NAME=FILE, NAME=SEARCH,TEST or NAME=SEARCH,VALIDATION,TEST")
    return name, source


def of_files(name: str, given: Sequence[str], request: CompareRequest) -> Task:
    """Files and splits of bundled tasks, which the command that repeats it names as they were given."""
    task = Task.of(name, [file_of(name, source) for source in given], request.seeds[0], request.split_by)
    files = zip(task.files.items(), given, strict=True)
    return replace(task, files={side: one if one.startswith(DEMO) else file for (side, file), one in files})


def file_of(name: str, source: str) -> str:
    """A file as it is, or that of "demo:TASK/SPLIT"."""
    if not source.startswith(DEMO):
        return source
    task, _, split = source.removeprefix(DEMO).partition("/")
    if not split:
        raise InputError(f"task {name!r}: {source} has three splits, name the one that is meant: {source}/search")
    return demo_task(task, split)


def of_lm_eval(name: str, task: str, args: argparse.Namespace, request: CompareRequest) -> Task:
    """Judged on what lm-eval evaluates, searched and chosen on what it trains on; its only split is cut in three."""
    need_lm_eval(f"--task {name}={LM_EVAL}{task}")
    sides = load_splits(
        task,
        num_fewshot=args.num_fewshot,
        include_path=args.include_path,
        chat=args.apply_chat_template,
        tokenizer=tokenizer_of(args) if args.apply_chat_template else None,
    )
    return Task.of(name, sides, request.seeds[0], request.split_by)


def said_of_lm_eval(args: argparse.Namespace) -> str:
    """The flags that words of lm-eval depend on, for the command that repeats the comparison."""
    shots = "" if args.num_fewshot is None else f" --num-fewshot {args.num_fewshot}"
    return shots + (" --apply-chat-template" if args.apply_chat_template else "")


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
