"""The command line: neuronllm attribute | find | tune | learn | evaluate | bake | export, and what stands beside these.

Exit codes: 0 done, 2 bad input (one line, nothing written), 130 interrupted, 141 nobody reads what is printed (as in
`| head`), 1 anything else. Of several processes under a launcher such as torchrun the first one speaks for all.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..common.env import first_process
from ..common.errors import InputError, PeerError, SharedError
from ..common.interrupts import one_interrupt
from ..demo import DEMO
from .flags import leave_together, parser
from .values import check_form, options


def set_waiting() -> None:
    """How threads wait for each other, before torch is loaded.

    Spinning a little is twice as fast on an idle machine; on a busy one it is many times slower.
    """
    if "OMP_WAIT_POLICY" not in os.environ and _others_running() < (os.cpu_count() or 1) / 2:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _others_running() -> int:
    """How many other threads of this machine run at this moment; 0 where the system does not say."""
    try:
        with open("/proc/loadavg", encoding="ascii") as file:
            return int(file.read().split()[3].split("/")[0]) - 1
    except (OSError, ValueError, IndexError):
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    with one_interrupt():
        try:
            code = _run(argv)
            sys.stdout.flush()
        except BrokenPipeError:
            if not _reader_is_gone():
                raise
            return 141
        except KeyboardInterrupt as stop:
            if argv is None:  # the process ends now, and is not to be interrupted in that
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            if first_process():
                print(f"neuronllm: {stop if stop.args else 'interrupted'}", file=sys.stderr)
            return 130
    return code


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads; what is still to be written goes nowhere then."""
    try:
        print(flush=True)  # something must be written: what failed once is no longer in the buffer
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again at its end
        return True
    return False


def _run(argv: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["bench"]:
        return _bench(given[1:])  # its flags are those of bench/, which parses them itself
    if given[:1] == ["lm-eval"]:
        return _lm_eval(given[1:])
    commands = {"attribute": _attribute, "find": _find, "tune": _tune, "evaluate": _evaluate}
    commands |= {
        "learn": _learn,
        "contrast": _contrast,
        "describe": _describe,
        "compare": _compare,
        "distractors": _distractors,
        "bake": _bake,
        "export": _export,
        "select": _select,
        "demo": _demo,
        "env": _env,
    }
    set_waiting()
    args = parser(commands, attribute=given[:1] == ["attribute"]).parse_args(given)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    level = logging.INFO if first_process() else logging.ERROR
    logging.basicConfig(level=level, format="neuronllm: %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "transformers", "matplotlib", "datasets"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    warnings.showwarning = _one_line_warning
    try:
        args.run(args)
    except InputError as error:
        shared = isinstance(error, SharedError)
        if not shared or first_process():
            print(f"neuronllm {args.command}: error: {error}", file=sys.stderr)
        return leave_together(2) if shared else 2
    except PeerError as error:
        print(f"neuronllm {args.command}: error: {error}", file=sys.stderr)
        return 1
    return 0


def _one_line_warning(message: Any, category: Any, *place: Any, **more: Any) -> None:
    if issubclass(category, UserWarning) and first_process():
        from tqdm.auto import tqdm

        tqdm.write(f"neuronllm: warning: {message}", file=sys.stderr)  # on a line of its own, whatever bar stands there


# ---- commands ----


def _attribute(args: argparse.Namespace) -> None:
    from ..attribution.driver import attributed
    from ..attribution.dry_run import planned
    from ..data.templates import read_templates
    from ..results.searched import missed_words, searched
    from ..runs.processes import Ranks
    from .request_flags import request_of, search_options

    with Ranks.here() as ranks, ranks.together():
        if not args.output and not args.dry_run:
            raise InputError("--output: name a folder for the scores (only --dry-run does without)")
        # What can be refused without the model is refused before it is loaded.
        given = search_options(args, options(args.options))
        more = {"options": given, "template": _template(args), "progress": not args.quiet}
        request = request_of(args, **more)
        request.checked()
        questions = _questions(args, args.questions, args.labels)
        checked = request.checked(questions)
        read_templates(checked.template, checked.answers)
        model, tokenizer = _model(args)
    if args.dry_run:
        plan = planned(model, tokenizer, questions, request)
        if first_process():
            print(plan)
        return
    scores = attributed(model, tokenizer, questions, request)
    if not first_process():
        return
    good, bad = int((scores.values > 0).sum()), int((scores.values < 0).sum())
    print(f"{args.output}: {int(scores.measured.sum())} neurons scored, {good} help, {bad} hurt")
    if top := searched(scores.provenance):
        print(missed_words(top))


def _find(args: argparse.Namespace) -> None:
    from .find import run

    run(args, _questions, _model, _template(args))


def _contrast(args: argparse.Namespace) -> None:
    from .contrast import run

    run(args, _model)


def _describe(args: argparse.Namespace) -> None:
    from .describe import run

    run(args, _questions, _model, _template(args))


def _compare(args: argparse.Namespace) -> None:
    from .compare import run

    run(args, _model, _template(args))


def _distractors(args: argparse.Namespace) -> None:
    from ..common.files import check_new_file
    from ..data.loading import save_questions
    from ..judging.distractors import distractors

    check_new_file(args.output)
    questions = _questions(args, args.questions)
    model, tokenizer = _model(args)
    made = distractors(
        model,
        tokenizer,
        questions,
        args.n,
        args.seed,
        template=_template(args),
        batch_size=args.batch_size,
        progress=not args.quiet,
    )
    save_questions(args.output, made)
    print(f"{args.output}: {len(made)} of {len(questions)} questions, with the model's own mistakes as wrong choices")


def _tune(args: argparse.Namespace) -> None:
    from ..common.files import check_new_folder
    from ..results.factors import ROLES, own_range, show_factor
    from ..results.neurons import NeuronSet
    from ..steering.tune import tune

    check_new_folder(args.output, "neuron_config.json", args.overwrite)
    neurons, questions = NeuronSet.from_pretrained(args.neurons), _questions(args, args.questions, args.labels)
    check_form(args, questions, neurons)
    model, tokenizer = _model(args)
    tuned = tune(
        model,
        tokenizer,
        neurons,
        questions,
        positions=args.positions,
        criterion=args.criterion,
        orders=args.orders or "none",
        template=_template(args),
        answers=args.answers,
        length=args.length,
        batch_size=args.batch_size,
        progress=not args.quiet,
    )
    tuned.save_pretrained(args.output)
    chosen = tuned.tuned or {}
    if len(tuned):
        own = own_range(tuned.role, tuned.factor)
        good, bad = (f"{chosen[f'k_{role}']} {role} {show_factor(chosen[role], own.get(role))}" for role in ROLES)
        where = f"positions {chosen['positions']}"
        print(f"{args.output}: {good}; {bad}; {where}; report on other questions than these")
    else:
        print(f"{args.output}: no edit: nothing that was tried is better than the model as it is")


def _learn(args: argparse.Namespace) -> None:
    from .learn import run

    run(args, _questions, _model, _template(args))


def _evaluate(args: argparse.Namespace) -> None:
    from ..common.files import check_new_file, write_json
    from ..judging.evaluate import evaluate
    from ..results.neurons import NeuronSet
    from .tasks import judge

    if args.tasks:
        judge(args, _model)
        return
    if args.output:
        check_new_file(args.output)
    neurons = NeuronSet.from_pretrained(args.neurons) if args.neurons else None
    questions = _questions(args, args.questions, args.labels)
    unrelated = _questions(args, args.unrelated) if args.unrelated else None
    if args.answers != "generate":
        check_form(args, questions, neurons)
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
        answers=args.answers,
        length=args.length,
        batch_size=args.batch_size,
        progress=not args.quiet,
        abstentions=args.abstain,
        max_new_tokens=args.max_new_tokens,
    )
    print(report)
    if args.output:
        write_json(Path(args.output), report.to_dict())


def _bake(args: argparse.Namespace) -> None:
    from .export import run_bake

    run_bake(args, _model)


def _export(args: argparse.Namespace) -> None:
    from .export import run

    run(args, _model)


def _demo(args: argparse.Namespace) -> None:
    from .demo import demonstrate

    demonstrate(args.output, args.tasks, progress=not args.quiet)


def _select(args: argparse.Namespace) -> None:
    from .select import run

    run(args)


def _bench(given: Sequence[str]) -> int:
    """`python -m bench`, which stands beside the package in the source tree and is not installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "suites.py").is_file():
        where = "they come with the source tree, not with the installed package: get a clone and run make bench in it"
        print(f"neuronllm bench: error: no benchmarks here, {where}", file=sys.stderr)
        return 2
    sys.path.insert(0, str(root))
    try:
        bench = import_module("bench.__main__")
    finally:
        sys.path.remove(str(root))
    return int(bench.main(given, "neuronllm bench"))


def _lm_eval(given: Sequence[str]) -> int:
    """lm-eval's own flags, which it parses itself."""
    from .tasks import lm_eval

    try:
        lm_eval(given)
    except InputError as error:
        print(f"neuronllm lm-eval: error: {error}", file=sys.stderr)
        return 2
    return 0


def _env(args: argparse.Namespace) -> None:
    from ..common.env import describe

    print(describe())


# ---- what the commands share ----


def _model(args: argparse.Namespace) -> tuple[Any, Any]:
    from transformers.utils import logging as transformers_logging

    from ..model.loading import check_weights, load_model

    if args.quiet or not first_process():
        transformers_logging.disable_progress_bar()
    more = {"trust_remote_code": True} if args.trust_remote_code else {}
    if args.revision:
        more["revision"] = args.revision
    model, tokenizer = load_model(args.model, dtype=args.dtype, device_map=args.device_map, **more)
    check_weights(model)
    return model, tokenizer


def _questions(args: argparse.Namespace, source: str | None, labels: Sequence[str] | None = None) -> list[Any]:
    from ..data.loading import load_questions
    from .tasks import read, refuse_without

    if source is None:
        return read(args)
    refuse_without(args)
    if source.startswith(DEMO):
        from ..demo import demo_task

        task, _, split = source.removeprefix(DEMO).partition("/")
        source = demo_task(task, split or "search")
    return load_questions(source, limit=args.limit, labels=labels)


def _template(args: argparse.Namespace) -> Any:
    """The templates asked for; inside the tokenizer's chat template with --apply-chat-template."""
    names = args.template or []
    if args.apply_chat_template and not getattr(args, "tasks", None):  # these word themselves, in a chat too
        return [f"chat:{name}" for name in names] or "chat"
    return names or None


if __name__ == "__main__":
    sys.exit(main())
