#!/usr/bin/env python3
"""Does a model make up fewer answers with its good neurons doubled? From nothing but right answers, start to end.

    make real
    .venv/bin/pip install -e '.[real]'
    .venv/bin/python examples/real_model/tasks.py tasks
    cat tasks/capitals_open*.jsonl > capitals.jsonl
    .venv/bin/python examples/fewer_made_up_answers.py .models/SmolLM2-135M-Instruct capitals.jsonl

Some of the questions are asked to hear the model's own mistakes, and neurons are scored by how much they favour the
right answers over these. On others, both edits are judged by what the model then writes, beside random neurons: right,
made up, or an honest "I don't know". The numbers are written as JSON, too.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import neuronllm as nl
from neuronllm.common.files import check_new_file, write_json
from neuronllm.data.matching import normalise

# Short answers, so that mistakes differ from right answers in what they say and not in their form; and leave to pass,
# without which nothing is ever "not made up". No line of it is asked in examples/real_model/tasks.py.
WORDING = (
    'Say "I don\'t know" if you are not sure.\n\n'
    "Question: What is the capital of Scotland?\nAnswer: Edinburgh\n\n"
    "Question: What is the capital of Texas?\nAnswer: Austin\n\n"
    "Question: What is the capital of Atlantis?\nAnswer: I don't know\n\n"
    "Question: What is the capital of Catalonia?\nAnswer: Barcelona\n\n"
    "Question: {question}\nAnswer:"
)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fewer made-up answers, from questions with right answers only")
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("questions", help="file of questions; choices are left aside")
    parser.add_argument("--search", type=int, default=100, help="questions to find neurons on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=75, help="questions to judge on (default: %(default)s)")
    parser.add_argument("--neurons", type=int, default=5, help="good ones, and as many bad ones (default: %(default)s)")
    parser.add_argument("--template", default=WORDING, help="a text with {question} (default: demonstrations)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of all that is random")
    parser.add_argument("--output", default="fewer_made_up_answers.json", help="for the numbers (default: %(default)s)")
    try:
        run(parser.parse_args(given))
    except nl.InputError as error:
        print(f"fewer_made_up_answers: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    check_new_file(args.output)
    search, held_out = split(nl.load_questions(args.questions), args.search, args.held_out, args.seed)
    model, tokenizer = nl.load_model(args.model, dtype=torch.float32)
    asked: dict[str, Any] = {"template": args.template, "progress": False}
    written = {**asked, "max_new_tokens": 12, "seed": args.seed}
    begun = time.perf_counter()

    # At temperature 1 much that a small model says is no answer at all.
    with_mistakes = nl.distractors(model, tokenizer, search, temperature=0.7, **written)
    drawn = check_mistakes(with_mistakes)
    print(f"{drawn} mistakes at {len(with_mistakes)} of {len(search)} questions, none of them an accepted answer")
    neurons = nl.attribute(model, tokenizer, with_mistakes, answers="texts", **asked).find(args.neurons, args.neurons)
    reports = {}
    for mode in ("enhance", "degrade"):
        reports[mode] = nl.evaluate(model, tokenizer, held_out, neurons, mode, answers="generate", **written)
        print(f"\n{reports[mode]}")

    seconds = time.perf_counter() - begun
    print(f"\n{seconds:.0f} seconds", *(f"{mode}: {verdict(report)}" for mode, report in reports.items()), sep="\n")
    about = {"asked": len(search), "kept": len(with_mistakes), "mistakes": drawn, "seconds": seconds}
    write_json(Path(args.output), {**about, "reports": {mode: report.to_dict() for mode, report in reports.items()}})


def split(questions: list[nl.Question], search: int, held_out: int, seed: int) -> tuple[list[nl.Question], ...]:
    """Open questions to find neurons on, and others to judge on, dealt by a hash of their ids."""
    if len(questions) < search + held_out:
        raise nl.InputError(f"questions: there are {len(questions)}, fewer than --search and --held-out ask for")
    dealt = sorted(questions, key=lambda question: hashlib.sha256(f"{seed} {question.id}".encode()).digest())
    opened = [nl.Question(q.stem, answer=q.choices[q.answer], id=q.id, answers=q.answers) for q in dealt]
    return opened[held_out : held_out + search], opened[:held_out]


def check_mistakes(questions: list[nl.Question]) -> int:
    """How many mistakes there are, none of which may be an accepted answer in another spelling."""
    for question in questions:
        right = {normalise(answer) for answer in (question.choices[question.answer], *question.answers)}
        assert sum(normalise(choice) in right for choice in question.choices) == 1, question
    return sum(len(question.choices) - 1 for question in questions)


def verdict(report: Any) -> str:
    """Which shares moved by more than chance (their 95 % intervals), and by more than random neurons move them."""
    found = []
    for name, called in {"inclusion": "right", "wrong": "made-up"}.items():
        (low, high), random = report.ci["change"][name], report.controls[name]
        within = random["p2.5"] <= getattr(report, name) <= random["p97.5"]
        moved = "not significantly more or fewer" if low <= 0 <= high else "fewer" if high < 0 else "more"
        found.append(f"{moved} {called} answers" + (", as with random neurons" if within else ""))
    return "; ".join(found)


if __name__ == "__main__":
    sys.exit(main())
