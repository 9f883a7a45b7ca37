"""`neuronllm describe`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ..attribution.describe import describe
from ..common.errors import InputError
from ..common.files import check_new_file
from ..common.tables import print_table
from ..results.description import COLUMNS
from ..results.neurons import NeuronSet
from ..select.results import printable
from .contrast import prompts_of


def run(args: argparse.Namespace, read: Callable[..., Any], load: Callable[..., Any], template: Any) -> None:
    """`read` and `load` get questions and the model, as in every command."""
    if args.output:
        check_new_file(args.output)
    neurons, texts = NeuronSet.from_pretrained(args.neurons), None
    if args.texts is not None:
        if args.template or args.labels:
            raise InputError("--texts: texts are read as they are, --template and --labels go with --questions")
        texts = prompts_of(args.texts)[: args.limit]
    elif args.questions is not None:
        texts = read(args, args.questions, args.labels)
    model, tokenizer = load(args)
    found = describe(
        model,
        tokenizer,
        neurons,
        texts,
        tokens=args.tokens,
        spans=args.spans,
        window=args.window,
        template=template if args.texts is None else None,
        chat=args.apply_chat_template,
        batch_size=args.batch_size,
        progress=not args.quiet,
    )
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    counts = (f"layer {row['layer']}: {row['good']} good, {row['bad']} bad" for row in found.layers if row["neurons"])
    print_table(", ".join(counts), COLUMNS, [[printable(cell, encoding) for cell in row] for row in found.rows()])
    if args.output:
        found.save(args.output)
