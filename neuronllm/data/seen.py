"""Which questions neurons were found on, in a few digits each, so that a judgement tells when it meets them again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from .prompts import Prompt, group_by_question
from .questions import Question

DIGITS = 12  # of a question: among a million pairs of questions, one in three hundred million is taken for another
STAGES = {"found": None, "verified": "verified", "learned": "learned", "tuned": "tuned"}  # and where each is told of


def digests(questions: Sequence[Any]) -> list[str]:
    """Of every question some digits, the same for any order of its choices and of the words of its stem.

    So "France or Spain?" is "Spain or France?", where the right answer is the same. Given prompts go by their tokens.

    >>> one, other = Question("Warm, A or B?", ("A", "B"), 0), Question("warm, b or a?", ("B", "A"), 1)
    >>> digests([one]) == digests([other])
    True
    """
    plain = [_told(question) for question in questions if isinstance(question, Question)]
    groups = group_by_question([prompt for prompt in questions if isinstance(prompt, Prompt)])
    told = plain + [[sorted(first.input_ids), sorted(first.option_ids)] for first, *_ in groups]
    return [sha256(json.dumps(each).encode()).hexdigest()[:DIGITS] for each in told]


def _told(question: Question) -> list[Any]:
    choices = [_plain(choice) for choice in question.choices]
    words = "".join(sign if sign.isalnum() else " " for sign in question.stem.casefold()).split()
    return [sorted(words), sorted(choices), choices[question.answer]]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def packed(questions: Sequence[Any]) -> str:
    """The digits of all questions, each once and in order, as one text for a record."""
    return "".join(sorted(set(digests(questions))))


def met_before(provenance: Mapping[str, Any], questions: Sequence[Any]) -> tuple[int, list[str]]:
    """How many of the questions neurons with this provenance have met, and what was done with them there."""
    asked = digests(questions)
    met: set[str] = set()
    stages = []
    for stage, where in STAGES.items():
        seen = {record[n : n + DIGITS] for record in _records(provenance, where) for n in range(0, len(record), DIGITS)}
        if again := seen.intersection(asked):
            stages.append(stage)
            met |= again
    return sum(each in met for each in asked), stages


def _records(provenance: Mapping[str, Any], where: str | None) -> Iterator[str]:
    """What a provenance says of one stage; of a union what any of its parts says."""
    told = provenance if where is None else provenance.get(where)
    if isinstance(told, Mapping) and isinstance(told.get("seen"), str):
        yield told["seen"]
    for part in provenance.get("union", ()):
        yield from _records(part, where)
