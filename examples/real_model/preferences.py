#!/usr/bin/env python3
"""Does a learned edit make a small real model prefer the polite reply? Written pairs, in two folds, with controls.

    make real
    .venv/bin/python examples/real_model/preferences.py --minutes 60

politeness.jsonl has a prompt, a chosen (polite) and a rejected (curt) reply a line. Likelihoods are means over
tokens: by sums, a model prefers short replies above all. A fold's search pairs score the neurons (`gradient`, in words,
in the chat template) and learn factors for the 256 strongest; of how many of the other pairs is the chosen reply
likelier then? Beside the edit stand random neurons learned the same way, one learned number for each displayed place,
and one times the length of a reply, which has nothing to do with manners. Every row is a file of its own, as
in study.py; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rows import ROWS as STUDIED
from rows import Row
from setting import Setting, Study, Way
from study import MODEL, SCORES, chosen, run
from torch import Tensor

import neuronllm as nl
from neuronllm.common.files import read_json
from neuronllm.engine.asking import Asker

HERE = Path(__file__).resolve().parent
PAIRS = HERE / "politeness.jsonl"
RESULTS = HERE / "preferences"
TASK = "politeness"
FOLDS = 2
RANDOM = [name for name in STUDIED if name.startswith("random-")]


def main(arguments: Sequence[str]) -> int:
    given = parsed(arguments)
    try:
        pairs = nl.load_questions(given.pairs)
        model, tokenizer = nl.load_model(given.model, dtype=torch.float32)
        study = Study(model, tokenizer, {TASK: pairs}, given.output, given.scores, FOLDS)
        run(study, chosen(study, [TASK], given.folds, given.rows, ROWS), given.minutes, ROWS)
        print(*table(study), sep="\n")
    except nl.InputError as error:
        print(f"preferences: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("preferences: stopped; what is done stays, and the same command goes on", file=sys.stderr)
        return 130
    return 0


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="preferences", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--folds", nargs="+", type=int, default=[*range(FOLDS)], metavar="N", help="of 0 and 1")
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="ROW", help="such as length or 'random-*'")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no row after so many")
    parser.add_argument("--pairs", default=PAIRS, metavar="FILE", help="of prompt, chosen and rejected, with ids")
    parser.add_argument("--model", default=MODEL, metavar="FOLDER", help="of the model that `make real` writes")
    parser.add_argument("--output", default=RESULTS, metavar="FOLDER", help="of the files of rows")
    parser.add_argument("--scores", default=SCORES, metavar="FOLDER", help="of scores that rows share")
    return parser.parse_args(arguments)


def by_length(setting: Setting) -> Way:
    """One number times an answer's tokens, by maximum likelihood, on top of the scores of the model as it is."""
    prompts = setting.prompts(setting.search)
    scores = Asker(setting.model, prompts).scores().double()
    right = torch.tensor([prompt.answer for prompt in prompts])
    sizes = lengths(prompts)
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(scores + weight * sizes, right)
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    found = float(weight.detach())
    return Way({"a token": round(found, 4)}, bias=lambda prompts: found * lengths(prompts), parameters=1)


def lengths(prompts: Sequence[nl.Prompt]) -> Tensor:
    """(prompts, options): tokens of every displayed answer."""
    return torch.tensor([[len(ids) for (ids,) in prompt.option_ids] for prompt in prompts], dtype=torch.float64)


ROWS: dict[str, Row] = {
    **{name: STUDIED[name] for name in ("base", "learned-256", "learned-256-one", "bias")},
    "length": Row(by_length, "one learned number times the length of a reply", aim="", side_effects=False),
    **{name: STUDIED[name] for name in RANDOM},
}


# ---- in print ----


def table(study: Study) -> list[str]:
    """Held-out preference accuracy: a line for each kind of row, a column for each fold, a dash where none is there."""
    lines = ["| row | " + " | ".join(f"fold {fold}" for fold in range(FOLDS)) + " |", "| --- |" + " --- |" * FOLDS]
    for name in [name for name in ROWS if name not in RANDOM]:
        cells = [told(facts["accuracy"]) if (facts := done(study, fold, name)) else "-" for fold in range(FOLDS)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    drawn = [
        band([facts["accuracy"] for name in RANDOM if (facts := done(study, fold, name))]) for fold in range(FOLDS)
    ]
    return [*lines, "| random, least to most | " + " | ".join(drawn) + " |"]


def done(study: Study, fold: int, name: str) -> dict[str, Any] | None:
    path = study.file(TASK, fold, name)
    return dict(read_json(path.parent, path.name, "row")) if path.is_file() else None


def told(value: float) -> str:
    return f"{value:.3f}"


def band(values: Sequence[float]) -> str:
    return f"{told(min(values))} to {told(max(values))} ({len(values)} sets)" if values else "-"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
