"""--tasks: tasks of lm-eval in place of a file of questions, and lm-eval's own command line."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.files import check_new_file, write_json
from .values import flag_names

# Flags that mean nothing without --tasks.
GO_WITH = ("split", "validation_split", "num_fewshot", "single_turn", "include_path")
SPLIT = "train"  # which --tasks are searched on, where nobody asks for another
WORDS = ("labels", "orders", "template")  # which a task settles itself
COUNTED = ("answers", "length", "unrelated", "abstain")  # what only a judgement of ours asks


def refuse_without(args: argparse.Namespace) -> None:
    """InputError for flags of --tasks where there are none."""
    if not getattr(args, "tasks", None):
        _refuse(args, GO_WITH, "it goes with --tasks")


def read(args: argparse.Namespace) -> list[Any]:
    """The questions of the tasks; documents that are none are left out, as public data sets hold a few."""
    _refuse(args, WORDS, "tasks word their questions themselves, leave it out")
    return _read(args, args.split or SPLIT)


def check_validation(args: argparse.Namespace) -> None:
    """InputError for a split that cannot stop the learning, before anything is read."""
    if args.validation_split is None:
        return
    refuse_without(args)
    if args.validation:
        raise InputError("--validation-split: --validation names a file for the same; give one of them")
    if args.validation_split == (args.split or SPLIT):
        raise InputError(f"--validation-split {args.validation_split}: this split is learned on, name another one")


def read_validation(args: argparse.Namespace) -> list[Any]:
    """The questions of the same tasks that stop the learning."""
    return _read(args, args.validation_split)


def _read(args: argparse.Namespace, split: str) -> list[Any]:
    from ..bridges.lm_eval_tasks import load_task

    _quiet()
    _check_turns(args)
    return load_task(
        _names(args.tasks),
        split=split,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        chat=args.apply_chat_template,
        tokenizer=tokenizer_of(args) if args.apply_chat_template else None,
        fewshot_as_multiturn=not args.single_turn,
        include_path=args.include_path,
        skip_bad=True,
    )


def judge(args: argparse.Namespace, load: Callable[..., Any]) -> None:
    """lm-eval's table of the tasks; `load` gets the model, as in every command."""
    from ..bridges.lm_eval_table import BATCH, evaluate_tasks
    from ..bridges.lm_eval_tasks import find_tasks
    from ..results.neurons import NeuronSet

    _quiet()
    _refuse(args, WORDS + COUNTED, "lm-eval judges --tasks in words and by counts of its own, leave it out")
    _check_turns(args)
    if args.output:
        check_new_file(args.output)
    neurons = NeuronSet.from_pretrained(args.neurons) if args.neurons else None
    tasks = find_tasks(_names(args.tasks), args.include_path)
    model, tokenizer = load(args)
    table = evaluate_tasks(
        model,
        tokenizer,
        tasks,
        neurons,
        mode=args.mode,
        good=args.good,
        bad=args.bad,
        positions=args.positions,
        controls=args.controls,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        batch_size=BATCH if args.batch_size == "auto" else args.batch_size,
        progress=not args.quiet,
        chat=args.apply_chat_template,
        fewshot_as_multiturn=not args.single_turn,
    )
    print(table)
    if args.output:
        write_json(Path(args.output), table.to_dict())


def _check_turns(args: argparse.Namespace) -> None:
    if args.single_turn and not args.apply_chat_template:
        raise InputError("--single-turn: it says how --apply-chat-template is meant, give that too")


def tokenizer_of(args: argparse.Namespace) -> Any:
    """The words of a task are settled before its model is loaded."""
    from ..model.loading import load_tokenizer

    more = {"trust_remote_code": True} if args.trust_remote_code else {}
    return load_tokenizer(args.model, **more, **({"revision": args.revision} if args.revision else {}))


def lm_eval(given: Sequence[str]) -> None:
    """lm-eval's own command line, in which the model `neuronllm` is known."""
    from ..bridges.lm_eval_model import command_line

    command_line(given)


def _quiet() -> None:
    """lm-eval warns of every default that a task takes."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _names(given: Sequence[str]) -> list[str]:
    """Names apart by spaces or, as lm-eval takes them, by commas."""
    return [name for part in given for name in part.split(",") if name]


def _refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """A flag that would do nothing."""
    given = next((name for name in names if getattr(args, name, None) not in (None, False, [])), None)
    if given is not None:
        raise InputError(f"{flag_names(given)[0]}: {why}")
