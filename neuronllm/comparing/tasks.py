"""The tasks of a comparison: names, and questions in three splits, given so or split here."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from ..common.checks import short
from ..common.errors import InputError
from ..common.warning import warn
from ..data.forms import Form, check_choice, form_of
from ..data.loading import load_questions
from ..data.questions import Question, fingerprint
from .budget import Budget
from .splits import BY, GIVEN, SIDES, Splits, asks, split_of

NAME = re.compile(r"\w[\w.-]*")
FILES = {1: ("all",), 2: ("search", "test"), 3: SIDES}  # what so many sources are
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """Questions under a name; `files` names where they come from, side by side, as `--task` takes it."""

    name: str
    splits: Splits
    files: dict[str, str]

    @classmethod
    def of(cls, name: str, given: Any, seed: int = 0, by: str = "id") -> Task:
        """A task of one source, which is split, of two: search and test, or of three: search, validation, test.

        A source is a file, or a list of questions. Of two sources a third of the first is there to choose on. Splits
        may have their names too, as in {"search": ..., "test": ...}.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError(f"task {name!r}: a name is letters, digits, and _ . - behind the first")
        if isinstance(given, Splits):
            return cls(name, given, {})
        if isinstance(given, Mapping):
            given = _in_order(name, given)
        sources = [given] if _is_source(given) else list(given) if isinstance(given, Sequence) else []
        if not 1 <= len(sources) <= len(SIDES) or not all(map(_is_source, sources)):
            raise InputError(
                f"task {name!r}: give one file of questions, which is split, two: search and test, or three: search, "
                f"validation and test, not {len(sources) or type(given).__name__}"
            )
        sides = [_questions(name, source) for source in sources]
        try:
            splits = split_of(sides, seed, by)
        except InputError as error:
            raise InputError(f"task {name!r}: {error}") from None
        files = [Path(source).name if isinstance(source, (str, os.PathLike)) else "" for source in sources]
        named = FILES[len(sources)]
        return cls(name, splits, {side: file for side, file in zip(named, files, strict=True) if file})

    def within(self, budget: Budget, seed: int) -> Task:
        """The same with no more questions than the budget allows."""
        search, validation, test = (sample(getattr(self.splits, side), getattr(budget, side), seed) for side in SIDES)
        return replace(self, splits=Splits(search, validation, test, self.splits.how))

    def settings(self) -> dict[str, Any]:
        """What of it decides the bytes of a comparison."""
        return {side: fingerprint(getattr(self.splits, side)) for side in SIDES} | {"split": self.splits.how}


def _in_order(name: str, given: Mapping[str, Any]) -> list[Any]:
    """The sources of a dictionary of splits."""
    for sides in FILES.values():
        if set(given) == set(sides):
            return [given[side] for side in sides]
    known = ", or ".join(" and ".join(map(repr, sides)) for sides in list(FILES.values())[1:])
    raise InputError(f"task {name!r}: the keys of its dictionary are {short(sorted(given))}: give {known}")


def as_tasks(given: Any, seed: int, by: str) -> dict[str, Task]:
    """Every task under its name."""
    if not isinstance(given, Mapping) or not given:
        raise InputError("tasks: give a dictionary of names, each with its questions (--task NAME=FILE,FILE,FILE)")
    return {
        name: source if isinstance(source, Task) else Task.of(name, source, seed, by) for name, source in given.items()
    }


def check_split_by(tasks: Mapping[str, Task], by: str) -> None:
    """Splits that a task brings are taken as they are, which whoever asks for others is told."""
    given = [name for name, task in tasks.items() if task.splits.how == GIVEN]
    if by == BY[0] or not given:
        return
    if len(given) == len(tasks):
        raise InputError(
            f'split_by="{by}": nothing is split here, as every task brings its own splits; leave it out, or give a '
            "task as one file, which is split"
        )
    warn(f'split_by="{by}": not of {", ".join(given)}, whose own splits are taken as they are')


def shared(tasks: Mapping[str, Task]) -> dict[str, list[dict[str, Any]]]:
    """Of every task which of its questions are asked in another of its splits too, or in a split of another task.

    Within a task the later split is named, as it is the one that was seen before.
    """
    sides = [(name, side) for name in tasks for side in SIDES]
    asked = {(name, side): asks(getattr(tasks[name].splits, side)) for name, side in sides}
    known = {place: set(questions) for place, questions in asked.items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in tasks}
    for (name, side), (other, where) in product(sides, sides):
        if name == other and SIDES.index(side) <= SIDES.index(where):
            continue
        if count := sum(question in known[other, where] for question in asked[name, side]):
            many = f"1 {side} question of {name} stands" if count == 1 else f"{count} {side} questions of {name} stand"
            whose = "its" if name == other else f"{other}'s"
            also_in, said = {"task": other, "split": where}, f"{many} in {whose} {where} too"
            found[name].append({"split": side, "questions": count, "also_in": also_in, "said": said})
    return found


def warn_if_seen(tasks: Mapping[str, Task]) -> None:
    """One line for every task that asks the same in two of its splits."""
    for name, found in shared(tasks).items():
        if own := [one["said"] for one in found if one["also_in"]["task"] == name]:
            warn(f"task {name!r}: {', '.join(own)}: what is chosen or judged on was seen before")


def one_form(tasks: Mapping[str, Task], answers: str | None, length: str | None) -> Form:
    """In what form all tasks are answered; tasks of different kinds are refused, and questions with one option."""
    forms: dict[str, Form] = {}
    worded = {name: task.splits.test[0].wording is not None for name, task in tasks.items()}
    for name, task in tasks.items():
        for side in SIDES:
            questions = getattr(task.splits, side)
            check_choice(questions, f"task {name!r}")
            forms[name] = form_of(questions, answers, length)
    first, *others = forms
    if other := next((name for name in others if forms[name] != forms[first]), None):
        raise InputError(
            f"tasks: {first!r} is answered in {forms[first].answers} and {other!r} in {forms[other].answers}: compare "
            'tasks of one kind, or ask both in the same form with answers="texts" (--answers texts)'
        )
    if other := next((name for name in others if worded[name] != worded[first]), None):
        own, plain = (first, other) if worded[first] else (other, first)
        raise InputError(
            f"tasks: {own!r} comes in words of its own (a task of lm-eval) and {plain!r} in ours: "
            "compare tasks of one kind"
        )
    return forms[first]


def sample(things: Sequence[T], most: int | None, seed: int) -> list[T]:
    """At most so many of them, drawn by a seed, in the order that they had.

    >>> sample("abcdef", 3, 0) == sample("abcdef", 3, 0), sample("abc", None, 0)
    (True, ['a', 'b', 'c'])
    """
    if most is None or len(things) <= most:
        return list(things)
    return [things[n] for n in sorted(random.Random(seed).sample(range(len(things)), most))]


def _is_source(given: Any) -> bool:
    if isinstance(given, (str, os.PathLike)):
        return True
    return isinstance(given, Sequence) and bool(given) and all(isinstance(one, Question) for one in given)


def _questions(name: str, source: Any) -> list[Question]:
    if not isinstance(source, (str, os.PathLike)):
        return list(source)
    if not str(source).strip():
        raise InputError(f"task {name!r}: {short(source)} is no file: a split is missing")
    return load_questions(source)
