"""Whether a written text answers right: tables of pairs, and what is refused."""

from __future__ import annotations

import pytest

from neuronllm.data.matching import ABSTENTIONS, abstains, check_comparable, cut, includes, is_over, matches
from tests.checks import refused

pytestmark = pytest.mark.noext


@pytest.mark.parametrize(
    ("text", "answer", "same"),
    [
        ("Paris", "paris", True),
        (" The Seine. ", "seine", True),
        ("The  U.S.A.", "usa", True),
        ("“Paris”", "Paris", True),
        ("don’t", "don't", True),
        ("Paris, France", "Paris", False),
        ("", "Paris", False),
        ("1,000", "1000.0", True),
        ("$1000", "1,000", True),
        ("-$5", "-5.00", True),
        ("-5", "5", False),
        ("1.5", "15", False),
        ("1.5", "1.50", True),
        (".5", "0.5", True),
        ("007", "7", True),
        ("-0", "0", True),
        ("1/2", "12", False),
        ("1/2", "1:2", True),
        ("10,00", "1000", True),  # no number as it stands: its signs are set aside like any others
        ("1,000,000", "1000000", True),
        ("12 apples", "12.0 apples", True),
        ("1.50km", "1.5km", True),
        ("covid-19", "covid 19", True),
        ("3-4", "3 4", True),
        ("20%", "20", True),
        ("99999999999999999999999999999999999.1", "99999999999999999999999999999999999.10", True),
        ("1000 dollars", "1000", False),
        ("+", "-", False),
        ("+", "+", True),
    ],
)
def test_exact_match(text: str, answer: str, same: bool) -> None:
    assert matches(text, [answer]) is same and matches(answer, ["something else", text]) is same


@pytest.mark.parametrize(
    ("text", "answer", "held"),
    [
        ("It is Paris.", "Paris", True),
        ("Paris, France", "Paris", True),
        ("Paris/Lyon", "Lyon", True),
        ("yes,no", "no", True),
        ("nothing", "no", False),
        ("I know", "no", False),
        ("Parisian", "Paris", False),
        ("the New York Times", "New York", True),
        ("York is new", "New York", False),
        ("in the U.S. of today", "U.S.", True),
        ("in the US", "U.S.", True),
        ("It's Rome", "s", False),
        ("I don't", "don", False),
        ("about $1,000.00 or so", "1000", True),
        ("about 11000", "1000", False),
        ("1000.5", "1000", False),
        ("minus is -5", "5", False),
        ("between 1-5", "5", True),
        ("the 1990s", "1990", False),
        ("", "Paris", False),
        ("...", "Paris", False),
        ("Paris", "Paris, France", False),
    ],
)
def test_inclusion_goes_by_whole_words(text: str, answer: str, held: bool) -> None:
    assert includes(text, [answer]) is held and includes(text, ["something else", answer]) is held


def test_an_answer_without_words_is_never_held() -> None:
    assert not includes("anything at all", ["..."]) and not includes("the", ["the"]) and not includes("x", [])


@pytest.mark.parametrize(
    ("text", "declines"),
    [
        ("I don't know", True),
        ("I don’t know.", True),
        ("Sorry, I do not know that one", True),
        ("I'm not sure, but Lyon", True),
        ("Unknown.", True),
        ("N/A", True),
        ("The Unknown Soldier", False),
        ("I know", False),
        ("Paris", False),
        ("", False),
    ],
)
def test_abstentions(text: str, declines: bool) -> None:
    assert abstains(text) is declines


def test_own_phrases() -> None:
    assert abstains("Keine Ahnung, leider", ["keine Ahnung"]) and not abstains("I don't know", ["keine Ahnung"])
    assert abstains("Pass!", ["pass"]) and not abstains("the pass road", ["pass"])
    assert not abstains("I don't know", [])
    check_comparable(ABSTENTIONS, "abstentions")


@pytest.mark.parametrize("text", ["...", "The", "  ", "+"])
def test_texts_that_cannot_be_compared_are_refused(text: str) -> None:
    with refused("question q7: accepted answers", repr(text), "empty"):
        check_comparable(["Paris", text], "question q7: accepted answers")
    with refused("abstentions must be texts", "5"):
        check_comparable([5], "abstentions")  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("text", "stop", "first", "over"),
    [
        (" Paris\nQuestion: more", "\n", "Paris", True),
        ("\n\n Paris\nQuestion", "\n", "Paris", True),
        ("\n \n", "\n", "", False),
        (" Paris", "\n", "Paris", False),
        (" Paris\n", "\n", "Paris", True),
        (" Paris. And Rome. ", ".", "Paris", True),
        (" Paris\nand Rome ", None, "Paris\nand Rome", False),
        (" Paris\nand Rome ", "", "Paris\nand Rome", False),
        ("", "\n", "", False),
    ],
)
def test_what_is_written_ends_once_something_stands_before_the_stop(text, stop, first, over) -> None:
    assert cut(text, stop) == first and is_over(text, stop) is over
