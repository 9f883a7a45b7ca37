"""`neuronllm contrast`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..attribution.contrast import contrast
from ..common.errors import InputError
from ..common.files import check_new_folder
from ..data.sources import read_rows
from ..results.neurons import NeuronSet
from ..results.scores import CONFIG
from .values import text_lines

GIVEN = ("statistic", "positions", "activation", "others", "C", "max_new_tokens", "backend")


def run(args: argparse.Namespace, load: Callable[..., Any]) -> None:
    """`load` gets the model, as in every command."""
    check_new_folder(args.output, CONFIG, args.overwrite)
    sides = [prompts_of(source)[: args.limit] for source in (args.shown, args.not_shown)]
    ignore = None if args.ignore is None else _ignored(args.ignore)
    given = {name: value for name in GIVEN if (value := getattr(args, name)) is not None}
    model, tokenizer = load(args)
    scores = contrast(
        model,
        tokenizer,
        *sides,
        ignore=ignore,
        chat=args.apply_chat_template,
        batch_size=args.batch_size,
        progress=not args.quiet,
        **given,
    )
    scores.save(args.output)
    more, less = int((scores.values > 0).sum()), int((scores.values < 0).sum())
    print(f"{args.output}: {scores.anatomy.n_neurons} neurons scored, {more} hold more where it is shown, {less} less")


def _ignored(source: str) -> Any:
    return NeuronSet.from_pretrained(source) if Path(source).is_dir() else prompts_of(source)


def prompts_of(source: str) -> list[Any]:
    """The rows of a JSONL or CSV file; of any other one its lines."""
    if Path(source).suffix.lower() not in (".jsonl", ".csv"):
        return text_lines(source)
    rows = [row.fields for row in read_rows(source)]
    if not rows:
        raise InputError(f"{source}: there is no prompt in it")
    return rows
