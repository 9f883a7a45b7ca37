"""Questions with choices that a seed draws, and folds that keep apart what questions are about.

The id of a question is its task and the items that it is about, such as "capitals/France", "populations/France/Togo"
(which has more people?) or "past_tense/come/overcome".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from random import Random
from typing import NamedTuple

import neuronllm as nl


def choose(
    name: str, stem: str, right: str, wrong: Iterable[str], seed: int, answers: Iterable[str] = ()
) -> nl.Question:
    """The question of this name, which with the seed says where the right choice stands."""
    choices = [*wrong]
    place = number_of(f"{seed} place of {name}") % (len(choices) + 1)
    choices.insert(place, right)
    subject = name.partition("/")[0].replace("_", " ")
    return nl.Question(stem, tuple(choices), place, subject=subject, id=name, answers=tuple(answers))


def drawn(name: str, others: Iterable[str], count: int, seed: int) -> list[str]:
    """Some of the others, each at most once however often it occurs: the same ones whatever else is asked."""
    return Random(f"{seed} {name}").sample(sorted(set(others)), count)


def number_of(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest(), "big")


# ---- folds ----


class Fold(NamedTuple):
    search: list[nl.Question]
    test: list[nl.Question]


def folds(questions: Sequence[nl.Question], count: int = 3, seed: int = 0) -> list[Fold]:
    """Each question is tested in exactly one fold and searched in the others; no item stands on both sides of one.

    >>> capitals = [nl.Question(f"Capital of {name}?", answer="?", id=f"capitals/{name}") for name in ("Peru", "Togo")]
    >>> [[question.id for question in fold.test] for fold in folds(capitals, 2)]
    [['capitals/Peru'], ['capitals/Togo']]
    """
    related = families(questions)
    if not 2 <= count <= len(related):
        raise nl.InputError(
            f"count: {len(questions)} questions about {len(related)} unrelated things cannot make {count} folds: "
            "ask for 2 or more, and for no more than there are things"
        )
    tests: list[list[nl.Question]] = [[] for _ in range(count)]
    dealt = sorted(related, key=lambda item: number_of(f"{seed} {item}"))
    for item in sorted(dealt, key=lambda item: -len(related[item])):  # small ones last, so that they even out the folds
        min(tests, key=len).extend(related[item])
    return [
        Fold(search=_mixed((q for other in tests if other is not test for q in other), seed), test=_mixed(test, seed))
        for test in tests
    ]


def families(questions: Sequence[nl.Question]) -> dict[str, list[nl.Question]]:
    """Questions that share items, directly or by way of others, under the first of all their items."""
    first: dict[str, str] = {}  # of the items that belong together
    for question in questions:
        items = items_of(question)
        first |= {item: item for item in items if item not in first}
        joined = {first[item] for item in items}
        first |= {item: min(joined) for item, known in first.items() if known in joined}
    found = defaultdict(list)
    for question in questions:
        found[first[items_of(question)[0]]].append(question)
    return dict(found)


def items_of(question: nl.Question) -> list[str]:
    _, *items = question.id.split("/")
    if not all(items) or not items:
        raise nl.InputError(f"id: {question.id!r} names no item: folds need ids such as 'capitals/France'")
    return items


def _mixed(questions: Iterable[nl.Question], seed: int) -> list[nl.Question]:
    return sorted(questions, key=lambda question: number_of(f"{seed} order of {question.id.partition('/')[2]}"))
