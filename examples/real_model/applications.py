#!/usr/bin/env python3
"""QRNCA's applications on a real model: facts edited, subjects compared, answers predicted from neurons alone.

    make real
    .venv/bin/python examples/real_model/applications.py .models/SmolLM2-135M-Instruct facts subjects predict

Answers are scored as texts, since so small a model answers with one letter whatever is asked. With --methods only
some of the methods; gradient takes a minute or two each on one core, qrnca several times as long.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from asking import folds
from tasks import tasks

import neuronllm as nl

METHODS: dict[str, dict[str, Any]] = {
    "qrnca": {},
    "gradient": {"positions": "answer"},
    "random": {"positions": "answer"},
}
SUBJECTS = ("capitals", "currencies", "past_tense")
FACTS, SEARCH, TEST = 8, 6, 12
WORDINGS = ("Which city is the capital of {}?", "Name the capital city of {}.")


def facts(model: Any, tokenizer: Any, method: str) -> None:
    """Capitals that the model knows are suppressed, and those it has wrong are put right."""
    questions = folds(tasks()["capitals"])[0].search[:FACTS]
    lands = [question.id.partition("/")[2] for question in questions]
    found = nl.edit_facts(
        model,
        tokenizer,
        questions,
        paraphrases=[[wording.format(land) for wording in WORDINGS] for land in lands],
        unrelated=tasks()["currencies"][:TEST],
        method=method,
        answers="texts",
        controls=3,
        **METHODS[method],
    )
    for how in ("suppress", "boost"):
        some = tuple(edit for edit in found.edits if edit.how == how)
        print(f"{method}, {how}: {type(found)(some)}" if some else f"{method}, {how}: no facts")


def subjects(model: Any, tokenizer: Any, method: str) -> None:
    search, test = parts()
    print(method, nl.by_subject(model, tokenizer, search, test, method=method, answers="texts", **METHODS[method]))


def predict(model: Any, tokenizer: Any, method: str) -> None:
    search, test = parts()
    print(method, nl.predict(model, tokenizer, search, test, method=method, answers="texts", **METHODS[method]))


def parts() -> tuple[list[nl.Question], list[nl.Question]]:
    """Search and test questions of all subjects, about other countries and verbs."""
    parted = [folds(tasks()[name])[0] for name in SUBJECTS]
    return [q for fold in parted for q in fold.search[:SEARCH]], [q for fold in parted for q in fold.test[:TEST]]


SHOWN = {"facts": facts, "subjects": subjects, "predict": predict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the folder of a model")
    parser.add_argument("shown", nargs="+", choices=list(SHOWN))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    args = parser.parse_args()
    model, tokenizer = nl.load_model(args.model, dtype=torch.float32)
    for name in args.shown:
        for method in args.methods:
            SHOWN[name](model, tokenizer, method)


if __name__ == "__main__":
    main()
