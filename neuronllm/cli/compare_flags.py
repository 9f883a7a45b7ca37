"""The flags of `neuronllm compare`, but for those that other commands have too."""

from __future__ import annotations

import argparse

from .values import count, flag_names, positive


def compare_flags(sub: argparse.ArgumentParser) -> None:
    files = (
        "one file, which is split, two: search, of which a third is to choose on, and test, or three: search, "
        'validation, test; "demo:TASK/SPLIT" in place of a file is a split of a bundled task, "demo:TASK" the task '
        'with its own splits, "lm-eval:TASK" one of lm-eval, judged on what lm-eval evaluates'
    )
    sub.add_argument("--task", nargs="+", action="extend", required=True, metavar="NAME=FILE[,FILE,FILE]", help=files)
    shots = "of lm-eval's tasks: demonstrations in front of a question (default: as many as the task says)"
    sub.add_argument(*flag_names("num_fewshot"), type=count, metavar="N", help=shots)
    sub.add_argument(*flag_names("include_path"), metavar="DIR", help="a folder with tasks of your own for lm-eval")
    names = "to compare (default: gradient relp ace qrnca knowledge random, or those of the preset)"
    sub.add_argument("--methods", nargs="+", metavar="NAME", help=names)
    kinds = "of enhance, degrade, good, bad, suppress, tuned, verified, learned (default: enhance degrade tuned)"
    sub.add_argument("--edits", nargs="+", metavar="NAME", help=kinds)
    paper = (
        "methods, edits, k, positions, orders and options as a paper has them, but for those given here: neuronllm, "
        "qrnca or knowledge"
    )
    sub.add_argument("--preset", metavar="NAME", help=paper)
    sub.add_argument("--k", type=positive, metavar="K", help="neurons of each role (default: 16)")
    sub.add_argument("--options", nargs="+", metavar="METHOD.NAME=VALUE", help="of methods, such as ace.steps=8")
    scored, edited = "where to score (default: each method's own)", "where to edit (default: where neurons were found)"
    for name, what in (("positions", scored), ("edit_positions", edited)):
        sub.add_argument(*flag_names(name), choices=("answer", "all"), help=what)
    chat = "ask through the tokenizer's chat template"
    sub.add_argument(*flag_names("apply_chat_template"), action="store_true", help=chat)
    seeds = (
        "the first is that of splits, samples and random sets; the agreement of halves is the mean over one halving a "
        "seed, and learning trains once a seed (default: 0)"
    )
    sub.add_argument("--seeds", nargs="+", type=count, metavar="N", help=seeds)
    sub.add_argument(*flag_names("split_by"), choices=("id", "subject"), help="of one file (default: id)")
    sizes = "how much is asked and measured: quick, standard (default), thorough; quick,test=all sets a size"
    sub.add_argument("--budget", metavar="NAME[,SIZE=N]", help=sizes)
    sub.add_argument("--controls", type=count, metavar="N", help="random sets beside every edit (default: 20)")
    learned = "random sets learned the same way as learned ones (default: 0)"
    sub.add_argument(*flag_names("learned_controls"), type=count, metavar="N", help=learned)
    sub.add_argument(*flag_names("dry_run"), action="store_true", help="print the plan and its time, write nothing")
    sub.add_argument("--resume", action="store_true", help="go on with a run that was stopped or killed")
    sub.add_argument("--output", metavar="DIR", help="a new folder for the comparison")
