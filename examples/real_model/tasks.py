#!/usr/bin/env python3
"""Five tasks for a small real model: facts that two packages hold, and sentences of our own. Nothing is downloaded.

    make real
    .venv/bin/python examples/real_model/tasks.py tasks

| task | questions | choices | wrong ones are |
| --- | --- | --- | --- |
| capitals | 170 | 4 | capitals of the same continent |
| currencies | 179 | 4 | currencies of other countries of the continent |
| past_tense | 258 | 4 | the regular form, and forms by analogy; ask with the template "continue" |
| populations | 347 | 2 | the country with at most half as many people |
| sentiment | 400 | 2 | the other one of "positive" and "negative" |

`tasks(seed)` has all of them, `folds(questions, 3, seed)` divides one. In the folder the first fold is
`NAME_held_out.jsonl`, to judge neurons on, and the others are `NAME.jsonl`, to find them. `more_tasks` are for other
examples: `capitals_open` has right answers only, with other names that are accepted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from asking import choose, folds
from countries import (
    ask_capitals,
    ask_continents,
    ask_currencies,
    ask_neighbours,
    ask_populations,
    countries,
    left_open,
)
from verbs import ask_past_tense

import neuronllm as nl

SENTENCES = Path(__file__).with_name("sentiment.jsonl")


def main(folder: str) -> int:
    try:
        made = tasks() | more_tasks()
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name, questions in made.items():
            fold = folds(questions)[0]
            for file, part in ((name, fold.search), (f"{name}_held_out", fold.test)):
                nl.save_questions(target / f"{file}.jsonl", part)
                print(f"{target / file}.jsonl: {len(part)} questions")
    except ModuleNotFoundError as error:
        print(f"tasks: error: no package {error.name}: pip install 'neuronllm[real]'", file=sys.stderr)
        return 2
    except (OSError, nl.InputError) as error:
        print(f"tasks: error: {error}", file=sys.stderr)
        return 2
    return 0


def tasks(seed: int = 0) -> dict[str, list[nl.Question]]:
    """The five tasks. The seed draws wrong choices and pairs; the same versions of the packages give the same ones."""
    known = countries()
    return {
        "capitals": list(ask_capitals(known, seed)),
        "currencies": list(ask_currencies(known, seed)),
        "past_tense": list(ask_past_tense(seed)),
        "populations": list(ask_populations(known, seed)),
        "sentiment": list(ask_sentiment(seed)),
    }


def more_tasks(seed: int = 0) -> dict[str, list[nl.Question]]:
    known = countries()
    return {
        "capitals_open": list(left_open(ask_capitals(known, seed), known)),
        "continents": list(ask_continents(known, seed)),
        "neighbours": list(ask_neighbours(known, seed)),
    }


def ask_sentiment(seed: int) -> Iterator[nl.Question]:
    other = {"positive": "negative", "negative": "positive"}
    for number, line in enumerate(SENTENCES.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        stem = f"{row['text']} Is that positive or negative?"
        yield choose(f"sentiment/{number}", stem, row["label"], [other[row["label"]]], seed)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("tasks: error: give one folder for the files of questions")
    sys.exit(main(sys.argv[1]))
