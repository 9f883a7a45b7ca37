#!/usr/bin/env python3
"""How much of what a model knows do letters hear, how much texts, and how much what it writes itself?

    make real
    .venv/bin/pip install -e '.[real]'
    .venv/bin/python examples/real_model/tasks.py tasks
    .venv/bin/python examples/answers_in_words.py .models/SmolLM2-135M-Instruct tasks

Every file of questions with choices in the folder is asked for letters, for texts whose length counts in four ways, and
for answers that the model writes, after the same words and in its chat template, which are right if they hold the right
one. The table is written as JSON, too.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import neuronllm as nl
from neuronllm.common.files import check_new_file, write_json
from neuronllm.common.tables import markdown_table

WAYS: dict[str, dict[str, str]] = {  # of asking, and what nl.evaluate is told
    "letters": {"answers": "letters"},
    "sum": {"answers": "texts"},
    "tokens": {"answers": "texts", "length": "tokens"},
    "characters": {"answers": "texts", "length": "characters"},
    "unconditional": {"answers": "texts", "length": "unconditional"},
    "written": {"answers": "generate"},
    "in chat": {"answers": "generate"},
}


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Letters, texts and written answers of a model, task by task")
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("tasks", help="folder with files of questions, such as examples/real_model/tasks.py writes")
    parser.add_argument("--questions", type=int, default=100, metavar="N", help="of each task (default: %(default)s)")
    more = "for all but letters: a name or a text (default: cloze, and cloze_short for what it writes)"
    parser.add_argument("--template", help=more)
    parser.add_argument(
        "--output", default="answers_in_words.json", metavar="FILE", help="for the numbers (default: %(default)s)"
    )
    args = parser.parse_args(given)
    try:
        check_new_file(args.output)
        tasks = tasks_in(args.tasks, args.questions)
        model, tokenizer = nl.load_model(args.model, dtype=torch.float32)
        ways = worded(args.template, tokenizer)
        found = {name: asked(model, tokenizer, name, questions, ways) for name, questions in tasks.items()}
    except nl.InputError as error:
        print(f"answers_in_words: error: {error}", file=sys.stderr)
        return 2
    write_json(Path(args.output), {"model": args.model, "template": args.template, "tasks": found})
    print("Share of right answers, and the seconds that it took to ask")
    print("\n".join(markdown_table(["task", "questions", "letters", "most picked", *list(WAYS)[1:]], rows_of(found))))
    return 0


def tasks_in(folder: str, limit: int) -> dict[str, list[nl.Question]]:
    """The first questions of every file with choices, by its name; those held out are kept for judging neurons."""
    files = sorted(path for path in Path(folder).glob("*.jsonl") if not path.stem.endswith("_held_out"))
    loaded = {path.stem: nl.load_questions(path, limit=limit) for path in files}
    tasks = {name: questions for name, questions in loaded.items() if not any(q.open for q in questions)}
    if not tasks:
        raise nl.InputError(
            f"{folder}: no file NAME.jsonl of questions with choices: make some with examples/real_model/tasks.py"
        )
    return tasks


def worded(template: str | None, tokenizer: Any) -> dict[str, dict[str, str]]:
    """The ways in a wording for all but letters; without that in a chat where a tokenizer knows none."""
    own = {"template": template} if template else {}
    ways = {way: how if way == "letters" else {**how, **own} for way, how in WAYS.items()}
    ways["in chat"]["template"] = f"chat:{template or '{question}'}"
    return ways if tokenizer.chat_template else {way: how for way, how in ways.items() if way != "in chat"}


def asked(
    model: Any, tokenizer: Any, name: str, questions: list[nl.Question], ways: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """In every way: the share of right answers and the seconds that it took; what is warned of is printed."""
    found: dict[str, Any] = {"questions": len(questions)}
    for way, how in ways.items():
        begun = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            report = nl.evaluate(model, tokenizer, questions, progress=False, **how)
        right = report.inclusion if how["answers"] == "generate" else report.accuracy
        found[way] = {"right": right, "seconds": time.perf_counter() - begun}
        if way == "letters":
            found[way]["picked"] = report.letters
        for warning in caught:
            print(f"{name}, {way}: {warning.message}", file=sys.stderr)
    return found


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """A row a task: shares and seconds, and the letter that is picked most."""

    def cell(task: dict[str, Any], way: str) -> str:
        return f"{task[way]['right']:.2f} ({task[way]['seconds']:.0f} s)" if way in task else "n/a"

    rows = []
    for name, task in found.items():
        letter, share = max(task["letters"]["picked"].items(), key=lambda pair: pair[1])
        cells = {way: cell(task, way) for way in WAYS}
        rows.append([name, str(task["questions"]), cells.pop("letters"), f"{letter} {share:.0%}", *cells.values()])
    return rows


if __name__ == "__main__":
    sys.exit(main())
