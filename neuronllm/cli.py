"""The command line: neuronllm attribute | find | tune | evaluate | bake | demo | env.

Exit codes: 0 done, 2 bad input (one line, nothing written), 1 anything else.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError

DTYPES = ("auto", "float32", "float16", "bfloat16", "float64")
DEMO = "demo:"


class _Parser(argparse.ArgumentParser):
    """Bad flags get one line too; --help shows the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help lists the flags)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    args = _parser().parse_args(argv)
    # Before torch is loaded: threads that spin while they wait make a busy machine many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.INFO, format="neuronllm: %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "transformers", "matplotlib", "datasets"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    warnings.showwarning = _one_line_warning
    try:
        args.run(args)
    except InputError as error:
        print(f"neuronllm {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("neuronllm: interrupted", file=sys.stderr)
        return 130
    return 0


def _one_line_warning(message: Any, category: Any, *place: Any, **more: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"neuronllm: warning: {message}", file=sys.stderr)


# ---- commands ----


def _attribute(args: argparse.Namespace) -> None:
    from .attribute import attribute
    from .files import check_new_folder

    check_new_folder(args.output, "scores.json")
    questions = _questions(args, args.questions)
    model, tokenizer = _model(args)
    scores = attribute(
        model,
        tokenizer,
        questions,
        args.method,
        objective=args.objective,
        positions=args.positions,
        orders=args.orders,
        template=_template(args),
        items=args.items,
        keep=args.keep,
        batch_size=args.batch_size,
        backend=args.backend,
        progress=not args.quiet,
        output=args.output,
        **_options(args.option),
    )
    good, bad = int((scores.values > 0).sum()), int((scores.values < 0).sum())
    print(f"{args.output}: {scores.anatomy.n_neurons} neurons scored, {good} help, {bad} hurt")


def _find(args: argparse.Namespace) -> None:
    from .files import check_new_folder
    from .scores import Scores

    check_new_folder(args.output, "neuron_config.json")
    neurons = Scores.load(args.scores).find(args.good, args.bad)
    neurons.save_pretrained(args.output)
    good = int((neurons.role == "good").sum())
    print(f"{args.output}: {good} good and {len(neurons) - good} bad neurons")


def _tune(args: argparse.Namespace) -> None:
    from .files import check_new_folder
    from .neurons import NeuronSet
    from .tune import tune

    check_new_folder(args.output, "neuron_config.json")
    neurons, questions = NeuronSet.from_pretrained(args.neurons), _questions(args, args.questions)
    model, tokenizer = _model(args)
    tuned = tune(
        model,
        tokenizer,
        neurons,
        questions,
        positions=args.positions or ("all", "answer"),
        criterion=args.criterion,
        orders=args.orders or "none",
        template=_template(args),
        batch_size=args.batch_size,
        progress=not args.quiet,
    )
    tuned.save_pretrained(args.output)
    chosen = tuned.tuned or {}
    if len(tuned):
        print(
            f"{args.output}: {chosen['k_good']} good x{chosen['good']}, {chosen['k_bad']} bad x{chosen['bad']}, "
            f"positions {chosen['positions']}; report on other questions than these"
        )
    else:
        print(f"{args.output}: no edit was better than any edit tried")


def _evaluate(args: argparse.Namespace) -> None:
    from .evaluate import evaluate
    from .files import check_new_file, write_json
    from .neurons import NeuronSet

    if args.output:
        check_new_file(args.output)
    neurons = NeuronSet.from_pretrained(args.neurons) if args.neurons else None
    questions = _questions(args, args.questions)
    unrelated = _questions(args, args.unrelated) if args.unrelated else None
    model, tokenizer = _model(args)
    report = evaluate(
        model,
        tokenizer,
        questions,
        neurons,
        mode=args.mode,
        good=args.good,
        bad=args.bad,
        positions=args.positions,
        controls=args.controls,
        unrelated=unrelated,
        orders=args.orders or "none",
        template=_template(args),
        batch_size=args.batch_size,
        progress=not args.quiet,
    )
    print(report)
    if args.output:
        write_json(Path(args.output), report.to_dict())


def _bake(args: argparse.Namespace) -> None:
    from .export import bake
    from .files import new_folder, write_json
    from .neurons import NeuronSet

    neurons = NeuronSet.from_pretrained(args.neurons)
    with new_folder(args.output, "neuronllm_bake.json") as temporary:
        model, tokenizer = _model(args)
        bake(model, neurons, args.good, args.bad, mode=args.mode)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        good, bad, _ = neurons.factors(args.mode, args.good, args.bad)
        made = {"mode": args.mode, "good": good, "bad": bad, "provenance": neurons.provenance}
        write_json(temporary / "neuronllm_bake.json", made)
    print(f"{args.output}: {len(neurons)} neurons folded into the weights")


def _demo(args: argparse.Namespace) -> None:
    from .demo.run import run_demo

    run_demo(args.output, args.tasks, progress=not args.quiet)


def _env(args: argparse.Namespace) -> None:
    from .env import describe

    print(describe())


# ---- what the commands share ----


def _model(args: argparse.Namespace) -> tuple[Any, Any]:
    import torch
    from transformers.utils import logging as transformers_logging

    from .loading import check_weights, load_model

    if args.quiet:
        transformers_logging.disable_progress_bar()
    dtype = args.dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    more = {"trust_remote_code": True} if args.trust_remote_code else {}
    if args.revision:
        more["revision"] = args.revision
    model, tokenizer = load_model(args.model, dtype=dtype, device_map=args.device_map, **more)
    check_weights(model)
    return model, tokenizer


def _questions(args: argparse.Namespace, source: str) -> list[Any]:
    from .questions import load_questions

    if source.startswith(DEMO):
        from .demo import demo_task

        task, _, split = source.removeprefix(DEMO).partition("/")
        source = demo_task(task, split or "search")
    return load_questions(source, limit=args.limit)


def _template(args: argparse.Namespace) -> Any:
    """The templates asked for; inside the tokenizer's chat template with --apply-chat-template."""
    names = args.template or []
    if args.apply_chat_template:
        return [f"chat:{name}" for name in names] or "chat"
    return names or None


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--option {pair}: write NAME=VALUE")
        options[name] = _literal(value)
    return options


def _literal(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r}: give a positive whole number or "auto"')
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 0 or more")
    return int(text)


# ---- the flags ----


def _parser() -> argparse.ArgumentParser:
    from .env import package_version

    parser = _Parser(
        prog="neuronllm", description="Find the good and the bad neurons of a language model and steer it with them."
    )
    parser.add_argument("--version", action="version", version=f"neuronllm {package_version('neuronllm')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = command("attribute", _attribute, "Score every neuron on the questions of a file.")
    _model_flags(sub)
    _question_flags(sub)
    sub.add_argument("--method", default="ace", help="how to score (default: ace)")
    sub.add_argument("--objective", help="what to explain (default: the method's own)")
    sub.add_argument("--positions", default="answer", choices=("answer", "all"))
    sub.add_argument("--items", default="all", choices=("all", "wrong", "right"), help="score only such questions")
    sub.add_argument("--keep", default="mean", choices=("mean", "all"), help="all: keep every prompt's scores too")
    sub.add_argument("--backend", default="fast", choices=("fast", "reference"))
    sub.add_argument(
        "--option", "-o", action="append", default=[], metavar="NAME=VALUE", help="an option of the method"
    )
    sub.add_argument("--output", required=True, metavar="DIR", help="folder for the scores, new or of earlier ones")

    sub = command("find", _find, "Choose the best and the worst neurons of saved scores.")
    sub.add_argument("scores", metavar="DIR", help="a folder that `neuronllm attribute` wrote")
    sub.add_argument("--good", type=_count, default=100, metavar="N")
    sub.add_argument("--bad", type=_count, default=100, metavar="N")
    sub.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the neuron set, new or of an earlier one"
    )

    sub = command("tune", _tune, "Choose how many neurons, factors and positions on validation questions.")
    _model_flags(sub)
    _question_flags(sub)
    _neurons_flag(sub)
    sub.add_argument("--positions", nargs="+", choices=("all", "answer"), help="positions to try (default: both)")
    sub.add_argument("--criterion", default="accuracy", choices=("accuracy", "p_right"))
    sub.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the tuned set, new or of an earlier set"
    )

    sub = command("evaluate", _evaluate, "Judge the model, with a neuron set beside random controls.")
    _model_flags(sub)
    _question_flags(sub)
    _neurons_flag(sub, required=False)
    _factor_flags(sub)
    sub.add_argument("--positions", choices=("answer", "all"), help="where to edit (default: answer, or as tuned)")
    sub.add_argument("--controls", type=_count, default=20, metavar="N", help="random sets beside the edit")
    sub.add_argument("--unrelated", metavar="FILE", help="unrelated questions, for the PCR")
    sub.add_argument("--output", metavar="FILE", help="a new file for the report, as JSON")

    sub = command("bake", _bake, "Fold a neuron set into the weights and save an ordinary model.")
    _model_flags(sub)
    _neurons_flag(sub)
    _factor_flags(sub)
    sub.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the model, new or of an earlier baked one"
    )

    sub = command("demo", _demo, "The whole way on the bundled tiny model: find, tune, steer, judge.")
    sub.add_argument("--output", default="neuronllm-demo", metavar="DIR", help="(default: ./neuronllm-demo)")
    sub.add_argument("--tasks", nargs="+", metavar="TASK", help="only these bundled tasks")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")

    command("env", _env, "What was built, what was found, and why a fast path is off.")
    return parser


def _model_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", required=True, help='a folder or a model id; "demo" is the bundled tiny model')
    sub.add_argument("--revision", help="of the model")
    sub.add_argument("--dtype", default="auto", choices=DTYPES)
    sub.add_argument("--device-map", "--device_map", help='for instance "auto" or "cuda"')
    sub.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")


def _question_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--questions", required=True, metavar="FILE", help='JSONL, or "demo:TASK/SPLIT"')
    sub.add_argument("--limit", type=_count, metavar="N", help="only the first N questions")
    sub.add_argument("--orders", choices=("rotate", "shuffle3", "none"), help="how choices are permuted")
    sub.add_argument("--template", nargs="+", metavar="T", help="default, plain, brief, or a text with {question}")
    sub.add_argument("--apply-chat-template", "--apply_chat_template", action="store_true")
    sub.add_argument("--batch-size", "--batch_size", type=_batch_size, default="auto", metavar="N")


def _neurons_flag(sub: argparse.ArgumentParser, required: bool = True) -> None:
    sub.add_argument("--neurons", required=required, metavar="DIR", help="a folder that find or tune wrote")


def _factor_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--mode", choices=("enhance", "degrade", "tuned"), help="default: tuned, where the set is tuned")
    sub.add_argument("--good", type=float, metavar="X", help="factor of the good neurons")
    sub.add_argument("--bad", type=float, metavar="X", help="factor of the bad neurons")


if __name__ == "__main__":
    sys.exit(main())
