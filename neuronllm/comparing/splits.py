"""One file of questions cut into search, validation and test, so that no item is on two sides.

Questions belong together, and stay so, if they ask the same (stem and choices, or stem and right answer, whatever the
case, the spacing, the punctuation and the order of the choices), if their ids name the same item (all in front of a
"#", as in "France#2"), or, with by="subject", if they have the same subject. What belongs together through a third
question does too.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from ..common.errors import InputError
from ..data.questions import Question

SIDES = ("search", "validation", "test")
SHARES = (0.4, 0.2, 0.4)
BY = ("id", "subject")
PUNCTUATION = ".,;:!?…'\"‘’“”"  # around words, not inside them
GIVEN = "given"  # how a task was split that brings its splits


class Splits(NamedTuple):
    """The questions to search on, to choose on and to judge on, and how they were split."""

    search: list[Question]
    validation: list[Question]
    test: list[Question]
    how: str = GIVEN


def split(questions: Sequence[Question], seed: int = 0, by: str = "id") -> Splits:
    """About 40 % to search on, 20 % to choose on and 40 % to judge on, in the order in which they were given.

    by: "id" keeps items together, "subject" whole subjects, so that the test is about others than the search.

    >>> found = split([Question(f"What is {n}?", ("odd", "even"), 0) for n in range(10)])
    >>> len(found.search), len(found.validation), len(found.test), found.how
    (4, 2, 4, 'by id')
    """
    search, validation, test = cut(questions, SHARES, seed, by)
    return Splits(search, validation, test, f"by {by}")


def split_of(sides: Sequence[list[Question]], seed: int = 0, by: str = "id") -> Splits:
    """All questions, which are split; search and test, where a third of the search is to choose on; or all three.

    >>> asked = [Question(f"What is {n}?", ("odd", "even"), 0) for n in range(9)]
    >>> found = split_of([asked[:6], asked[6:]])
    >>> len(found.search), len(found.validation), len(found.test), found.how
    (4, 2, 3, 'but the test by id')
    """
    if len(sides) == 1:
        return split(sides[0], seed, by)
    if len(sides) == 2:
        search, validation = cut(sides[0], (2, 1), seed, by)
        return Splits(search, validation, sides[1], f"but the test by {by}")
    search, validation, test = sides
    return Splits(search, validation, test)


def cut(questions: Sequence[Question], shares: Sequence[float], seed: int = 0, by: str = "id") -> list[list[Question]]:
    """Questions in as many sides as there are shares, no item on two of them; each side in the order given.

    >>> [len(side) for side in cut([Question(f"What is {n}?", ("odd", "even"), 0) for n in range(9)], (2, 1))]
    [6, 3]
    """
    if by not in BY:
        raise InputError(f"split_by={by!r}: known values are {', '.join(BY)}")
    missing = next((n for n, question in enumerate(questions) if question.subject is None), None)
    if by == "subject" and missing is not None:
        name = questions[missing].id or f"number {missing}"
        raise InputError(f'split_by="subject": question {name} has no subject; split by id, or give three files')
    groups = together(questions, by)
    if len(groups) < len(shares):
        what = "subjects" if by == "subject" else "different items"
        names = f"{', '.join(SIDES[: len(shares) - 1])} and {SIDES[len(shares) - 1]}"
        raise InputError(
            f"{len(groups)} {what} in {len(questions)} questions, and {len(shares)} are needed to split them into "
            f"{names}: give more, or give the three files yourself"
        )
    found: list[list[int]] = [[] for _ in shares]
    wanted = [share * len(questions) / sum(shares) for share in shares]
    random.Random(seed).shuffle(groups)
    for place, group in enumerate(groups):
        found[_neediest(found, wanted, left=len(groups) - place)] += group
    return [[questions[n] for n in sorted(side)] for side in found]


def _neediest(sides: Sequence[Sequence[int]], wanted: Sequence[float], left: int) -> int:
    """The side that lacks most of its share; an empty one as soon as the groups left are needed for these."""
    empty = [side for side in range(len(sides)) if not sides[side]]
    among = empty if empty and left <= len(empty) else range(len(sides))
    return max(among, key=lambda side: (wanted[side] - len(sides[side]), -side))


def together(questions: Sequence[Question], by: str = "id") -> list[list[int]]:
    """The numbers of the questions that belong together, group by group, in the order of their first ones.

    >>> together([Question("Big?", ("yes", "no"), 0), Question("Old?", ("a", "b")), Question("big?", ("No", "yes"), 1)])
    [[0, 2], [1]]
    """
    parent = list(range(len(questions)))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    seen: dict[Hashable, int] = {}
    for number, question in enumerate(questions):
        for mark in marks(question, by):
            first, own = root(seen.setdefault(mark, number)), root(number)
            parent[max(first, own)] = min(first, own)
    groups: dict[int, list[int]] = {}
    for number in range(len(questions)):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())


def marks(question: Question, by: str = "id") -> Iterator[Hashable]:
    """What questions that belong together have in common."""
    stem = _plain(question.stem)
    yield "asks", stem, tuple(sorted(map(_plain, question.choices)))
    yield "answered", stem, _plain(question.choices[question.answer])
    if question.id:
        yield "item", question.id.split("#")[0].strip() or question.id
    if by == "subject":
        yield "subject", question.subject


def asks(questions: Sequence[Question]) -> list[Hashable]:
    """What each of them asks: the same where case, spacing, punctuation or the order of choices differ."""
    return [next(marks(question)) for question in questions]


def _plain(text: str) -> str:
    """
    >>> _plain("Is  he 5, or 6?") == _plain("is he 5 or 6 ?"), _plain("1 < 2"), _plain("?")
    (True, '1 < 2', '?')
    """
    words = text.casefold().split()
    return " ".join(filter(None, (word.strip(PUNCTUATION) for word in words))) or " ".join(words)
