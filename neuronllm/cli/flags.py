"""The flags of the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from ..common.env import first_process, launched, package_version
from .compare_flags import compare_flags
from .values import batch_size, count, margin, positive, read_at

DTYPES = ("auto", "float32", "float16", "bfloat16", "float64")
EXPORTS = ("ia3", "lora", "baked", "transformer-lens", "nnsight")
Command = Callable[[argparse.Namespace], None]

SELECT_OUTPUT = (
    'a new file for the whole result, as JSON with infinite values as the texts "inf" and "-inf"; '
    "only the first 20 rows of each end are printed then"
)


def leave_together(code: int) -> int:
    """The exit code, after all processes of a launcher have come here.

    A launcher stops the others as soon as one process has ended, whether the first has spoken or not. So they end at
    once and together.
    """
    if launched():
        from ..runs.processes import Ranks

        with Ranks.here() as ranks:
            ranks.wait()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code


class _Parser(argparse.ArgumentParser):
    """Bad flags get one line too; --help shows the usage."""

    def error(self, message: str) -> NoReturn:
        line = f"{self.prog}: error: {message} ({self.prog} --help lists the flags)\n"
        if first_process():
            sys.stderr.write(line)
        self.exit(leave_together(2))


def parser(run: Mapping[str, Command], attribute: bool = False) -> argparse.ArgumentParser:
    """The flags of every command; `args.run` is what `run` has under its name.

    Those of the request of an attribution are only there where `attribute` says that they are needed: they stand in a
    dataclass beside torch, which takes seconds to load.
    """
    parser = _Parser(
        prog="neuronllm", description="Find the good and the bad neurons of a language model and steer it with them."
    )
    parser.add_argument("--version", action="version", version=f"neuronllm {package_version('neuronllm')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run[name])
        return sub

    sub = command("attribute", "Score every neuron on the questions of a file.")
    _model_flags(sub)
    _question_flags(sub, tasks=True)
    if attribute:
        from .request_flags import add_request_flags, add_search_flags

        add_request_flags(sub)
        add_search_flags(sub)
    sub.add_argument("--dry-run", "--dry_run", action="store_true", help="print the plan and its memory, write nothing")

    sub = command("find", "Choose the best and the worst neurons of saved scores.")
    sub.add_argument("scores", metavar="DIR", help="a folder that `neuronllm attribute` wrote")
    sub.add_argument("--good", type=count, default=100, metavar="N", help="how many of the best (default: 100)")
    sub.add_argument("--bad", type=count, default=100, metavar="N", help="how many of the worst (default: 100)")
    sub.add_argument("--output", required=True, metavar="DIR", help="a new folder for the neuron set")
    _overwrite_flag(sub)
    _verify_flags(sub.add_argument_group("with --verify, in the words and the form that the neurons were found with"))

    sub = command("contrast", "Score every neuron by what tells two sets of prompts apart.")
    _model_flags(sub)
    _contrast_flags(sub)
    _overwrite_flag(sub)

    sub = command("distractors", "Give questions the model's own mistakes as wrong choices.")
    _model_flags(sub)
    _question_flags(sub)
    _wording_flags(sub, orders=False)
    sub.add_argument("--n", type=positive, default=3, metavar="N", help="wrong choices of a question (default: 3)")
    sub.add_argument("--seed", type=count, default=0, metavar="N", help="of the answers drawn (default: 0)")
    sub.add_argument("--output", required=True, metavar="FILE", help="a new file for the questions, JSONL")

    sub = command("tune", "Choose how many neurons, factors and positions on validation questions.")
    _model_flags(sub)
    _question_flags(sub, tasks=True)
    _wording_flags(sub)
    _form_flags(sub)
    _neurons_flag(sub)
    sub.add_argument("--positions", nargs="+", choices=("all", "answer"), help="to try (default: the set's)")
    sub.add_argument("--criterion", default="accuracy", choices=("accuracy", "p_right"))
    sub.add_argument("--output", required=True, metavar="DIR", help="a new folder for the tuned set")
    _overwrite_flag(sub)

    sub = command("learn", "Learn how hard to turn every neuron, by gradient descent on questions.")
    _model_flags(sub)
    _question_flags(sub, tasks=True)
    _wording_flags(sub)
    _form_flags(sub)
    _learn_flags(sub)
    _overwrite_flag(sub)

    sub = command("evaluate", "Judge the model, with a neuron set beside random controls.")
    _model_flags(sub)
    _question_flags(sub, tasks=True, split=False)
    _wording_flags(sub)
    _form_flags(sub, "generate")
    _neurons_flag(sub, required=False)
    _factor_flags(sub)
    where = "where to edit (default: where the set was found or tuned; all where it does not say)"
    sub.add_argument("--positions", choices=("answer", "all"), help=where)
    sub.add_argument(
        "--controls", type=count, default=20, metavar="N", help="random sets beside the edit (default: 20)"
    )
    sub.add_argument("--unrelated", metavar="FILE", help="unrelated questions, for the PCR")
    more = "with --answers generate: phrases that decline to answer, beside the usual ones"
    sub.add_argument("--abstain", nargs="+", metavar="TEXT", help=more)
    most = "with --answers generate: the most tokens of an answer (default: 32)"
    sub.add_argument("--max-new-tokens", "--max_new_tokens", type=positive, default=32, metavar="N", help=most)
    sub.add_argument("--output", metavar="FILE", help="a new file for the report, as JSON")

    sub = command("describe", "Say what neurons are: tokens they promote, places in texts where they are most active.")
    sub.add_argument("neurons", metavar="NEURONS", help="a folder that find, tune or learn wrote")
    _model_flags(sub)
    _describe_flags(sub)

    sub = command("compare", "Methods and edits on tasks: cost, agreement with exact effects, and what they are worth.")
    _model_flags(sub)
    compare_flags(sub)
    _wording_flags(sub)
    _form_flags(sub)
    _overwrite_flag(sub)

    sub = command("bake", "Fold a neuron set into the weights and save an ordinary model.")
    _model_flags(sub)
    _neurons_flag(sub)
    _factor_flags(sub)
    where = "all bakes a set that was found or tuned at the answer position for every token"
    sub.add_argument("--positions", choices=("answer", "all"), help=where)
    sub.add_argument("--output", required=True, metavar="DIR", help="a new folder for the model")
    _report_flag(sub)
    _overwrite_flag(sub)

    sub = command("export", "Write a neuron set as an adapter, a model or hooks, for other tools.")
    sub.add_argument("neurons", metavar="NEURONS", help="a folder that find, tune or learn wrote")
    what = "an adapter for PEFT (ia3), also for vLLM and SGLang (lora), a whole model (baked), or factors for hooks"
    sub.add_argument("--kind", required=True, choices=EXPORTS, help=what)
    _model_flags(sub)
    _factor_flags(sub)
    where = "all writes a set that was found or tuned at the answer position for every token"
    sub.add_argument("--positions", choices=("answer", "all"), help=where)
    sub.add_argument("--output", required=True, metavar="DIR", help="a new folder for what is written")
    _report_flag(sub)
    _overwrite_flag(sub)

    sub = command("select", "The largest and smallest numbers of .safetensors and .npy files, however large.")
    sub.add_argument("files", nargs="+", metavar="FILE", help=".safetensors or .npy; several count as one array")
    more = "best first, ties by the lowest index; NaN is counted and left out (default: 0)"
    sub.add_argument("--largest", type=count, default=0, metavar="K", help=f"the K greatest numbers, {more}")
    sub.add_argument("--smallest", type=count, default=0, metavar="K", help=f"the K least numbers, {more}")
    sub.add_argument("--tensor", metavar="NAME", help="of a safetensors file (default: all of its floats)")
    sub.add_argument("--threads", type=count, metavar="N", help="(default: as many as torch uses)")
    sub.add_argument("--output", metavar="FILE", help=SELECT_OUTPUT)
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    # Only to be listed: everything behind this word goes to bench/ of the source tree.
    commands.add_parser("bench", help="Benchmarks: list, run, report (in a source tree; see neuronllm bench --help).")

    handed = "lm-eval's own command line, with the model neuronllm (neurons=DIR,mode=,good=,bad=,positions=)."
    commands.add_parser("lm-eval", help=handed)

    sub = command("demo", "The whole way on the bundled tiny model: find, steer, learn, judge; ends with a page.")
    where = "an earlier demonstration there is replaced (default: ./neuronllm-demo)"
    sub.add_argument("--output", default="neuronllm-demo", metavar="DIR", help=where)
    sub.add_argument("--tasks", nargs="+", metavar="TASK", help="only these bundled tasks")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")

    command("env", "What was built, what was found, and why a fast path is off.")
    return parser


def _contrast_flags(sub: argparse.ArgumentParser) -> None:
    rows = "JSONL or CSV with text, messages, or prompt and answer; of any other file each line is a prompt"
    sub.add_argument("--shown", required=True, metavar="FILE", help=f"prompts that show a behaviour: {rows}")
    sub.add_argument("--not-shown", "--not_shown", required=True, metavar="FILE", help="prompts that do not")
    sub.add_argument("--limit", type=positive, metavar="N", help="only the first N prompts of each file")
    chat = "plain texts are what a user says, in the tokenizer's chat template"
    sub.add_argument("--apply-chat-template", "--apply_chat_template", action="store_true", help=chat)
    what = "difference of means, Welch's t, or the weights of an L1 probe (default: mean)"
    sub.add_argument("--statistic", choices=("mean", "t", "probe"), help=what)
    where = "answer, prompt, all, or the place of a token, -1 for the last (default: answer)"
    sub.add_argument("--positions", type=read_at, metavar="P", help=where)
    held = "what is read of a neuron (default: value)"
    sub.add_argument("--activation", choices=("value", "size", "frequency", "cett"), help=held)
    others = "tokens in front of the answers count as not shown, too"
    sub.add_argument("--others", action="store_true", default=None, help=others)
    strong = "neurons that score 0: a neuron set, or a file of other prompts, whose usual strongest they are"
    sub.add_argument("--ignore", metavar="DIR|FILE", help=strong)
    sub.add_argument("--C", type=float, metavar="X", help="of the probe: more gives more neurons a weight (default: 1)")
    written = "the model writes answers of so many tokens where none is given"
    sub.add_argument("--max-new-tokens", "--max_new_tokens", type=positive, metavar="N", help=written)
    size = "prompts of a batch, or auto, which goes by memory (default: auto)"
    sub.add_argument("--batch-size", "--batch_size", type=batch_size, default="auto", metavar="N", help=size)
    sub.add_argument("--backend", choices=("fast", "reference"), help="fast, or the plain and slow judge of it")
    sub.add_argument("--output", required=True, metavar="DIR", help="a new folder for the scores")


def _describe_flags(sub: argparse.ArgumentParser) -> None:
    one = sub.add_mutually_exclusive_group()
    one.add_argument("--questions", metavar="FILE", help='questions to read: JSONL or CSV, or "demo:TASK/SPLIT"')
    rows = "JSONL or CSV with text, messages, or prompt and answer; of any other file each line is a text"
    one.add_argument("--texts", metavar="FILE", help=f"texts to read: {rows}")
    sub.add_argument("--limit", type=positive, metavar="N", help="only the first N questions or texts")
    names = "what the labels 0, 1, ... of a file of text and label mean"
    sub.add_argument("--labels", nargs="+", metavar="NAME", help=names)
    chat = "questions and texts are what a user says, in the tokenizer's chat template"
    sub.add_argument("--apply-chat-template", "--apply_chat_template", action="store_true", help=chat)
    _wording_flags(sub, orders=False)
    sub.add_argument("--tokens", type=count, default=10, metavar="N", help="promoted, and suppressed (default: 10)")
    sub.add_argument("--spans", type=count, default=5, metavar="N", help="places in texts (default: 5)")
    sub.add_argument("--window", type=count, default=12, metavar="N", help="tokens on either side (default: 12)")
    sub.add_argument("--output", metavar="FILE", help="a new file for the whole description, as JSON")


def _verify_flags(sub: argparse._ActionsContainer) -> None:
    tried = "silence the neurons on these questions, really, and keep those that do what their score says"
    _question_flags(sub, "--verify", required=False, help=tried)
    _model_flags(sub, required=False)
    _wording_flags(sub)
    _form_flags(sub)
    where = "where to silence them (default: where they were found)"
    sub.add_argument("--positions", choices=("answer", "all"), help=where)
    errors = "standard errors that an effect must be away from 0 (default: 2)"
    sub.add_argument("--margin", type=float, metavar="X", help=errors)
    sub.add_argument("--factor", type=float, metavar="X", help="to try instead of silencing (default: 0)")
    sub.add_argument("--objective", metavar="NAME", help="what the effect is on (default: what the scores explain)")
    sets = "keep the neurons that do more together, joining one after the other"
    sub.add_argument("--joint", action="store_true", help=sets)
    sub.add_argument("--backend", choices=("fast", "reference"), help="fast, or the plain and slow judge of it")


def _model_flags(sub: argparse._ActionsContainer, required: bool = True) -> None:
    sub.add_argument("--model", required=required, help='a folder or a model id; "demo" is the bundled tiny model')
    sub.add_argument("--revision", help="of the model")
    sub.add_argument("--dtype", default="auto", choices=DTYPES, help="of the weights (default: as the checkpoint says)")
    sub.add_argument("--device-map", "--device_map", help='for instance "auto" or "cuda"')
    sub.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")


def _question_flags(
    sub: argparse._ActionsContainer,
    flag: str = "--questions",
    required: bool = True,
    help: str = "",
    tasks: bool = False,
    split: bool = True,
) -> None:
    source = f"{help}; " * bool(help) + 'JSONL or CSV, or "demo:TASK/SPLIT"'
    one = sub.add_mutually_exclusive_group(required=required) if tasks else sub
    one.add_argument(flag, dest="questions", required=required and not tasks, metavar="FILE", help=source)
    if tasks:
        _task_flags(sub, one, split)
    sub.add_argument("--limit", type=positive, metavar="N", help="only the first N questions of each file or task")
    names = "what the labels 0, 1, ... of a file of text and label mean"
    sub.add_argument("--labels", nargs="+", metavar="NAME", help=names)
    chat = "ask through the tokenizer's chat template"
    sub.add_argument("--apply-chat-template", "--apply_chat_template", action="store_true", help=chat)


def _task_flags(sub: argparse._ActionsContainer, one: argparse._ActionsContainer, split: bool) -> None:
    judged = "; lm-eval judges them, on a split of its own" * (not split)
    one.add_argument("--tasks", nargs="+", metavar="NAME", help=f"tasks of lm-eval in place of a file{judged}")
    if split:
        which = "of --tasks: train (default), validation, test, or another that the data set has"
        sub.add_argument("--split", metavar="NAME", help=which)
    shots = "of --tasks: demonstrations in front of a question (default: as many as the task says)"
    sub.add_argument("--num-fewshot", "--num_fewshot", type=count, metavar="N", help=shots)
    turn = "of --tasks, with --apply-chat-template: demonstrations and question stand in one turn"
    sub.add_argument("--single-turn", "--single_turn", action="store_true", help=turn)
    folder = "of --tasks: a folder with tasks of your own"
    sub.add_argument("--include-path", "--include_path", metavar="DIR", help=folder)


def _wording_flags(sub: argparse._ActionsContainer, orders: bool = True) -> None:
    if orders:
        sub.add_argument("--orders", choices=("rotate", "shuffle3", "none"), help="how choices are permuted")
    words = "default, plain, brief, for texts cloze, or a text with {question}"
    sub.add_argument("--template", nargs="+", metavar="T", help=words)
    size = "prompts of a batch, or auto, which goes by memory (default: auto)"
    sub.add_argument("--batch-size", "--batch_size", type=batch_size, default="auto", metavar="N", help=size)


def _form_flags(sub: argparse._ActionsContainer, *more: str) -> None:
    form = "a letter asked for, or the answer in words" + (", or one that the model writes" if more else "")
    known = ("letters", "texts", *more)
    sub.add_argument("--answers", choices=known, help=f"{form} (default: as the neurons were found)")
    counted = "of texts: what their log-probability is divided by (sum: nothing), or what a text alone has taken off"
    sub.add_argument("--length", choices=("sum", "tokens", "characters", "bytes", "unconditional"), help=counted)


def _neurons_flag(sub: argparse.ArgumentParser, required: bool = True) -> None:
    sub.add_argument("--neurons", required=required, metavar="DIR", help="a folder that find, tune or learn wrote")


def _report_flag(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--report", metavar="FILE", help="what evaluate --output wrote, for the README.md of the folder")


def _factor_flags(sub: argparse.ArgumentParser) -> None:
    default = "default: own, where neurons have factors of their own, else tuned, where the set is tuned"
    sub.add_argument("--mode", choices=("enhance", "degrade", "own", "tuned"), help=default)
    sub.add_argument("--good", type=float, metavar="X", help="factor of the good neurons")
    sub.add_argument("--bad", type=float, metavar="X", help="factor of the bad neurons")


def _learn_flags(sub: argparse.ArgumentParser) -> None:
    held = "questions that stop the learning and judge the edit, with --limit too (default: a part of --questions)"
    sub.add_argument("--validation", metavar="FILE", help=held)
    of_tasks = "the same of --tasks: another split than --split"
    sub.add_argument("--validation-split", "--validation_split", metavar="NAME", help=of_tasks)
    _neurons_flag(sub, required=False)
    sub.add_argument("--k", type=positive, metavar="K", help="keep the K neurons whose factors matter most")
    goal = "enhance, degrade, or an objective to be raised (default: enhance)"
    sub.add_argument("--goal", default="enhance", metavar="GOAL", help=goal)
    sub.add_argument("--objective", metavar="NAME", help="what --goal enhance raises (default: logp_options)")
    where = "where factors act (default: where the neurons were found, else all)"
    sub.add_argument("--positions", choices=("answer", "all"), help=where)
    sub.add_argument("--steps", type=positive, metavar="N", help="of Adam, for every seed (default: 16)")
    sub.add_argument("--batch", type=positive, metavar="N", help="questions of a step (default: 16)")
    sub.add_argument("--lr", type=float, metavar="X", help="learning rate (default: 0.1, less of many neurons)")
    sub.add_argument("--l1", type=float, metavar="X", help="weight of the distance of the factors from 1 (default: 0)")
    sub.add_argument("--signed", action="store_true", default=None, help="factors below 0 are allowed too")
    texts = "texts to be left alone, one a line, or questions (.jsonl, .csv) (default: a small bundled text)"
    sub.add_argument("--retain", metavar="FILE", help=texts)
    weight = "of how far those texts are moved; 0 switches it off (default: 1)"
    sub.add_argument("--retain-weight", "--retain_weight", type=float, metavar="X", help=weight)
    sub.add_argument("--seeds", type=positive, metavar="N", help="trainings whose mean is taken (default: 3)")
    sub.add_argument("--seed", type=count, metavar="N", help="of the split and of the order of questions (default: 0)")
    errors = "standard errors that the edit must gain to be kept, or none (default: 2)"
    sub.add_argument("--margin", type=margin, metavar="X", default=2.0, help=errors)
    sets = "random sets of each kind, any neurons and about as strong ones, to learn the same way (default: 0)"
    sub.add_argument("--controls", type=count, metavar="N", help=sets)
    once = "learn once more with any answer called right, and say what that gains"
    sub.add_argument("--shuffled", action="store_true", default=None, help=once)
    sub.add_argument("--cache-gib", "--cache_gib", type=float, metavar="X", help="of kept prefixes (default: 2)")
    sub.add_argument("--backend", choices=("fast", "reference"), help="fast, or the plain and slow judge of it")
    sub.add_argument("--resume", action="store_true", help="go on with a run that was stopped or killed")
    sub.add_argument("--output", required=True, metavar="DIR", help="a new folder for the learned set")


def _overwrite_flag(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--overwrite", action="store_true", help="replace an earlier result that stands at --output")
