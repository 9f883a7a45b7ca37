"""`neuronllm find`, and with --verify the neurons that were really tried."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..common.errors import InputError
from ..common.files import check_new_folder
from ..results.factors import ROLES
from ..results.neurons import CONFIG, NeuronSet
from ..results.scores import Scores
from .values import check_form

TRIED = ("margin", "factor", "positions", "objective", "backend")
NEED_VERIFY = ("model", "joint", *TRIED, "orders", "template", "answers", "length", "limit", "labels")


def run(args: argparse.Namespace, read: Callable[..., Any], load: Callable[..., Any], template: Any) -> None:
    """`read` and `load` get questions and the model, as in every command."""
    check_new_folder(args.output, CONFIG, args.overwrite)
    if args.questions is None:
        _refuse_flags(args)
        neurons = Scores.load(args.scores).find(args.good, args.bad)
    else:
        neurons = _verified(args, read, load, template)
    neurons.save_pretrained(args.output)
    good = int((neurons.role == "good").sum())
    none = "" if len(neurons) else ": none does what its score says" * (args.questions is not None)
    print(f"{args.output}: {good} good and {len(neurons) - good} bad neurons{none}")


def _refuse_flags(args: argparse.Namespace) -> None:
    """A flag that would do nothing."""
    given = next((name for name in NEED_VERIFY if getattr(args, name) not in (None, False)), None)
    if given is not None:
        raise InputError(f"--{given}: it needs --verify, questions on which the neurons are tried")


def _verified(args: argparse.Namespace, read: Callable[..., Any], load: Callable[..., Any], template: Any) -> NeuronSet:
    from ..attribution.verify import verify

    if args.model is None:
        raise InputError("--verify: the neurons are tried on a model, name it with --model")
    scores, questions = Scores.load(args.scores), read(args, args.questions, args.labels)
    check_form(args, questions, scores)
    given = {name: value for name in TRIED if (value := getattr(args, name)) is not None}
    model, tokenizer = load(args)
    neurons = verify(
        model,
        tokenizer,
        scores,
        questions,
        args.good,
        args.bad,
        joint=args.joint,
        orders=args.orders,
        template=template,
        answers=args.answers,
        length=args.length,
        batch_size=args.batch_size,
        progress=not args.quiet,
        **given,
    )
    for role in ROLES:
        print(_told(neurons.provenance["verified"][role], role, args.joint))
    return neurons


def _told(counts: dict[str, int], role: str, joint: bool) -> str:
    """Where all neurons that were tried went."""
    line = f"{counts['tried']} {role} neurons tried: {counts['kept']} kept; "
    line += f"{counts['wrong_sign']} had the other sign, {counts['too_small']} were within the error"
    if more := counts["tried"] - counts["kept"] - counts["wrong_sign"] - counts["too_small"]:
        line += f", {more} did no more together with those kept" if joint else f", {more} were weaker than those kept"
    return line
