#!/usr/bin/env python3
"""docs/behaviours.md, of the files that preferences.py and h_neurons.py left: whatever came of it.

.venv/bin/python examples/real_model/behaviours.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from page import points
from pooled import Pooled, Results, read
from preferences import RANDOM, ROWS, TASK

import neuronllm as nl
from neuronllm.common.statistics import percent_of
from neuronllm.common.tables import markdown_table, show

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "behaviours.md"
ASKED = [name for name in ROWS if name not in RANDOM]
HEAD = """# Two behaviours of a small real model

This page is generated: `examples/real_model/behaviours.py` writes it from the files in `preferences/` and `h_neurons/`
of `examples/real_model/`, and a test fails when it says anything else. The model is SmolLM2-135M-Instruct (46,080 FFN
neurons, float32).
"""
POLITE = """## Polite or curt

`preferences.py`: written pairs of a polite and a curt reply to the same prompt, in the chat template, in two folds;
every row is made with one and judged on the other. An answer counts by its mean log-probability of a token; accuracy is
the share of pairs whose polite reply is the likelier one. `learned-256` has learned factors of the 256 neurons with the
largest scores, `learned-256-one` the same with one seed, and stands among random sets that learned likewise. `bias` and
`length` are one learned number for each displayed place, and one times the length of a reply: what has nothing to do
with manners.
"""
MADE_UP = """## Made-up answers: the recipe of H-Neurons

`h_neurons.py` (arXiv 2512.01797), open questions of capitals: an L1 probe of the neurons' shares of the FFN output
(CETT) tells answers that are always wrong from answers that are always right. Detection is on the first answers of
held-out questions; beside it stands the model's own log-probability. Then neurons of positive weight are silenced at
all tokens, or as many neurons (the strongest by `gradient`) get learned factors, while the model writes its answers to
all held-out questions. In brackets: the percentile among random sets of the same layers, edited alike.
"""


def main() -> int:
    try:
        text = page(read(HERE / "preferences"), read(HERE / "h_neurons"))
    except nl.InputError as error:
        print(f"behaviours: error: {error}", file=sys.stderr)
        return 2
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE)
    return 0


def page(preferences: Sequence[dict[str, Any]], h_neurons: Sequence[dict[str, Any]]) -> str:
    return "\n".join([HEAD, POLITE, *polite(preferences), "", MADE_UP, *made_up(h_neurons), ""])


# ---- polite or curt ----


def polite(rows: Sequence[dict[str, Any]]) -> list[str]:
    results = Results(rows, (TASK,))
    base = results.of(TASK, "base")
    if base is None:
        return ["Nothing has been committed yet."]
    sets = {fold: len(results.sets(TASK, "random", [fold])) for fold in base.folds}
    drawn = [own.accuracy for own in results.sets(TASK, "random", base.folds)]
    table = [_polite(own, name, drawn) for name in ASKED if (own := results.of(TASK, name))]
    lines = [
        f"{len(base.base)} pairs. Random sets: {', '.join(f'{count} of fold {fold}' for fold, count in sets.items())}.",
        "",
        *markdown_table(["row", "accuracy", "change", "flips", "McNemar p", "among random sets", "plain text"], table),
    ]
    if drawn:
        lines += ["", f"Random sets, learned: {show(min(drawn))} to {show(max(drawn))}, the median {_middle(drawn)}."]
    return [*lines, "", "Plain text: log-probability of plain sentences, nats a token, with the edit less without."]


def _polite(own: Pooled, name: str, drawn: Sequence[float]) -> list[str]:
    low, high = own.interval
    accuracy = f"{own.accuracy:.3f} ({low:.3f} to {high:.3f})"
    if name == "base":
        return [f"`{name}`", accuracy, *["n/a"] * 5]
    place = f"{percent_of(drawn, own.accuracy):.0f}" if drawn and name == "learned-256-one" else "n/a"
    texts = own.changes("texts")
    said = "n/a" if texts is None else f"{texts.mean():+.3f}"
    return [f"`{name}`", accuracy, points(own.gain), f"+{own.won} -{own.lost}", show(own.p), place, said]


def _middle(values: Sequence[float]) -> str:
    return show(float(np.median(values)))


# ---- made-up answers ----


def made_up(rows: Sequence[dict[str, Any]]) -> list[str]:
    by_row: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_row.setdefault(row["row"], []).append(row)
    if "detection" not in by_row:
        return ["Nothing has been committed yet."]
    found = [
        [
            str(row["fold"]),
            f"{row['searched']['made_up']} and {row['searched']['right']}",
            f"{row['tested']['made_up']} and {row['tested']['right']}",
            str(sum(weight > 0 for weight in row["weight"])),
            show(row["auroc"]),
            show(row["auroc_of_logprob"]),
        ]
        for row in by_row["detection"]
    ]
    columns = ["fold", "made up and right: searched", "tested", "H-Neurons", "AUROC", "AUROC of the log-probability"]
    edits = [_edited(row) for name in ("suppressed", "learned") for row in by_row.get(name, ())]
    return [
        *markdown_table(columns, found),
        "",
        *markdown_table(["edit", "fold", "neurons", "right", "wrong", "abstained", "plain text"], edits),
    ]


def _edited(row: dict[str, Any]) -> list[str]:
    shares = []
    for name in ("inclusion", "wrong", "abstained"):
        among = row["controls"] and row["controls"][name]["percentile_of_edit"]
        place = "" if among is None else f" ({among:.0f})"
        shares.append(f"{row['base'][name]:.3f} to {row['edited'][name]:.3f}{place}")
    texts = np.subtract(row["texts"]["after"], row["texts"]["before"]).mean()
    return [row["row"], str(row["fold"]), str(row["neurons"]), *shares, f"{texts:+.3f}"]


if __name__ == "__main__":
    sys.exit(main())
