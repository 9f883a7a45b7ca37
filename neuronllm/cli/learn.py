"""`neuronllm learn`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..common.env import first_process
from ..data.loading import load_questions
from ..results.neurons import CONFIG, NeuronSet
from ..runs.checkpoint import check_output
from ..runs.processes import Ranks
from ..steering.learn import learn
from ..steering.recipe import Goal
from .tasks import check_validation, read_validation
from .values import check_form, text_lines

GIVEN = (
    "steps",
    "batch",
    "lr",
    "l1",
    "signed",
    "retain_weight",
    "seeds",
    "seed",
    "controls",
    "shuffled",
    "cache_gib",
    "backend",
)


def run(args: argparse.Namespace, read: Callable[..., Any], load: Callable[..., Any], template: Any) -> None:
    """`read` and `load` get questions and the model, as in every command."""
    with Ranks.here() as ranks, ranks.together():
        check_output(args.output, args.resume, args.overwrite, CONFIG)
        Goal.of(args.goal, args.objective)
        check_validation(args)
        neurons = NeuronSet.from_pretrained(args.neurons) if args.neurons else None
        questions = read(args, args.questions, args.labels)
        validation = _validation(args, read)
        for asked in (questions, validation or []):
            check_form(args, asked, neurons)
        given = {name: value for name in GIVEN if (value := getattr(args, name)) is not None}
        if args.retain:
            given["retain"] = _retained(args.retain)
        model, tokenizer = load(args)
    learned = learn(
        model,
        tokenizer,
        questions,
        validation,
        neurons=neurons,
        k=args.k,
        goal=args.goal,
        objective=args.objective,
        positions=args.positions,
        orders=args.orders or "none",
        template=template,
        answers=args.answers,
        length=args.length,
        margin=args.margin,
        batch_size=args.batch_size,
        output=args.output,
        resume=args.resume,
        overwrite=args.overwrite,
        progress=not args.quiet,
        **given,
    )
    if first_process():
        print(f"{args.output}: {_told(learned)}")


def _told(learned: NeuronSet) -> str:
    """What the set is; one without neurons begins with what that means."""
    counted, *facts = learned.describe().split("\n")
    return "\n".join([counted if len(learned) else "no edit: the model is best left as it is", *facts])


def _validation(args: argparse.Namespace, read: Callable[..., Any]) -> list[Any] | None:
    if args.validation_split:
        return read_validation(args)
    return list(read(args, args.validation, args.labels)) if args.validation else None


def _retained(source: str) -> list[Any]:
    """Questions of a JSONL or CSV file; of any other one its lines."""
    if Path(source).suffix.lower() in (".jsonl", ".csv"):
        return list(load_questions(source))
    return text_lines(source)
