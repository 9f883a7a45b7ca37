"""Whether a text that a model wrote answers right: the same as an accepted answer, or holding one, or declining.

Texts are compared with case, articles and punctuation set aside and numbers by their value. A text holds an answer
only as whole words, so "nothing" does not hold "no".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from ..common.checks import short
from ..common.errors import InputError

# What a model says that does not answer. One word counts only where it is all that was written.
ABSTENTIONS = (
    "don't know",
    "do not know",
    "no idea",
    "not sure",
    "not certain",
    "I'm unsure",
    "I am unsure",
    "can't answer",
    "cannot answer",
    "can't say",
    "cannot say",
    "can't tell",
    "cannot tell",
    "can't be determined",
    "cannot be determined",
    "not enough information",
    "is unknown",
    "is not known",
    "unknown",
    "unsure",
    "uncertain",
    "n/a",
)

# "1,000.50", with a sign and a currency in front. Digits that go on behind it ("1.2.3", "10,00") are no number.
_NUMBER = re.compile(
    r"(?<![\w.,])([-\u2212]?)[$€£¥]?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?![.,]?[0-9])"
)
_APOSTROPHES = "'`\u00b4\u2018\u2019"


def normalise(text: str) -> str:
    """A text with case, punctuation, articles and white space set aside and numbers by value, for comparisons.

    >>> normalise("The  U.S.A.") == normalise("usa"), normalise("$1,000") == normalise("1000.0")
    (True, True)
    """
    # Of an answer that is nothing else ("+", "A") the signs themselves must count.
    return _words(text) or " ".join(_folded(text).split())


def matches(text: str, answers: Sequence[str]) -> bool:
    """Whether a text is one of the answers.

    >>> matches("The Seine.", ["seine", "river Seine"])
    True
    """
    return normalise(text) in {normalise(answer) for answer in answers}


def includes(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds one of the answers, as whole words.

    >>> includes("It is Paris, of course", ["Paris"]), includes("nothing", ["no"])
    (True, False)
    """
    for gap in ("", " "):  # "U.S." is one word and "yes/no" are two
        held = f" {_words(text, gap)} "
        if any((words := _words(answer, gap)) and f" {words} " in held for answer in answers):
            return True
    return False


def abstains(text: str, phrases: Sequence[str] = ABSTENTIONS) -> bool:
    """Whether a text declines to answer: it holds one of the phrases; a phrase of one word must be all of it.

    >>> abstains("Sorry, I don't know."), abstains("The unknown soldier")
    (True, False)
    """
    long = [phrase for phrase in phrases if " " in normalise(phrase)]
    return includes(text, long) or matches(text, [phrase for phrase in phrases if phrase not in long])


def check_comparable(texts: Iterable[str], what: str) -> None:
    """Refuse texts of which nothing is left to compare, naming them as `what`."""
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{what} must be texts, got {short(text)}")
        if not _words(text):
            raise InputError(
                f"{what}: {short(text)} is empty once case, articles and punctuation are set aside, so no text could "
                "be compared with it: give a word or a number"
            )


def cut(text: str, stop: str | None = "\n") -> str:
    """The first part of a text that has something in it; without a stop all of it.

    >>> cut("\\n Paris\\nQuestion: and of Spain?")
    'Paris'
    """
    return next((part.strip() for part in _parts(text, stop) if part.strip()), "")


def is_over(text: str, stop: str | None = "\n") -> bool:
    """Whether the stop stands behind something, so that what follows would be cut off.

    >>> is_over("\\n Paris"), is_over("\\n Paris\\n")
    (False, True)
    """
    return any(part.strip() for part in _parts(text, stop)[:-1])


def _parts(text: str, stop: str | None) -> list[str]:
    return text.split(stop) if stop else [text]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _words(text: str, gap: str = "") -> str:
    """What is left of a text, where punctuation becomes `gap`; "" if nothing is."""
    folded, pieces, end = _folded(text), [], 0
    for number in _NUMBER.finditer(folded):
        pieces += [_bare(folded[end : number.start()], gap) or " ", _value(*number.groups())]  # "1/2" is not 12
        end = number.end()
    pieces.append(_bare(folded[end:], gap))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", "".join(pieces)).split())


def _bare(text: str, gap: str) -> str:
    kept = []
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Pd":
            kept.append(" ")
        elif kind[0] not in "PS":
            kept.append(character)
        elif character not in _APOSTROPHES:
            kept.append(gap)
    return "".join(kept)


def _value(sign: str, digits: str) -> str:
    whole, _, fraction = digits.replace(",", "").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return f"-{value}" if sign and value != "0" else value
