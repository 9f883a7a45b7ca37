"""A few bundled sentences of plain text: what an edit is to leave alone, and by which its side effects are judged."""

from __future__ import annotations

from pathlib import Path

BUNDLED = Path(__file__).with_name("plain_text.txt")


def plain_sentences(which: str) -> list[str]:
    """Those to "learn" with, or the others, to "judge" side effects by.

    >>> len(plain_sentences("learn")), set(plain_sentences("learn")) & set(plain_sentences("judge"))
    (24, set())
    """
    lines = BUNDLED.read_text(encoding="utf-8").splitlines()
    return lines[0 if which == "learn" else 1 :: 2]
