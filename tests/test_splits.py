"""One file of questions becomes three sides, and no item is on two of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronllm.common.errors import InputError
from neuronllm.comparing.splits import SIDES, Splits, split, together
from neuronllm.comparing.tasks import Task, shared
from neuronllm.data.questions import Question
from tests.checks import refused

WORDS = st.sampled_from(["river", "River", "  river ", "hill", "Hill", "town", "gate", "well", "barn"])


@st.composite
def some_questions(draw: st.DrawFn) -> list[Question]:
    """Few words, so that stems, ids and subjects come again and again, in other spellings and orders."""
    found = []
    for _ in range(draw(st.integers(3, 40))):
        choices = draw(st.permutations(["yes", "no", "maybe"]))[: draw(st.integers(2, 3))]
        item = draw(st.sampled_from(["", "a", "b", "c", "d", "e"]))
        number = draw(st.sampled_from(["", "#1", "#2"]))
        subject = draw(st.sampled_from(["map", "zoo", "sea", "art"]))
        end = draw(st.sampled_from(["?", " ?", "", "..."]))
        found.append(Question(f"Is the {draw(WORDS)} far{end}", tuple(choices), 0, subject, item and item + number))
    return found


def item(question: Question) -> set[object]:
    """All by which a reader would say that two questions are about the same, written down once more."""
    stem = "".join(letter for letter in question.stem.lower() if letter.isalpha())
    names: set[object] = {(stem, frozenset(question.choices)), (stem, question.choices[question.answer])}
    return names | ({question.id.partition("#")[0]} if question.id else set())


@settings(max_examples=150, deadline=None)
@given(some_questions(), st.integers(0, 5), st.sampled_from(["id", "subject"]))
def test_no_item_is_on_two_sides(questions: list[Question], seed: int, by: str) -> None:
    try:
        found = split(questions, seed, by)
    except InputError as error:
        assert len(together(questions, by)) < 3 and "three" in str(error)
        return
    sides = [found.search, found.validation, found.test]
    assert all(sides)
    ids = [[id(question) for question in side] for side in sides]
    assert sorted(sum(ids, [])) == sorted(map(id, questions))  # every question once
    for names in (item, lambda question: {question.subject}) if by == "subject" else (item,):
        seen = [set().union(*map(names, side)) for side in sides]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert split(questions, seed, by) == found
    assert shared({"one": Task("one", found, {})}) == {"one": []}


def test_shares_seeds_and_order() -> None:
    questions = [Question(f"What is {n}?", ("odd", "even"), n % 2, id=str(n)) for n in range(200)]
    found = split(questions, 0)
    assert [len(getattr(found, side)) for side in SIDES] == [80, 40, 80]
    assert [int(question.id) for question in found.test] == sorted(int(question.id) for question in found.test)
    assert found.how == "by id" and split(questions, 1).test != found.test


def test_one_large_group_leaves_something_for_every_side() -> None:
    questions = [
        Question(f"What is {n}?", ("odd", "even"), 0, "big" if n < 50 else str(n), id=str(n)) for n in range(52)
    ]
    for seed in range(6):
        found = split(questions, seed, "subject")
        assert sorted(len(getattr(found, side)) for side in SIDES) == [1, 1, 50]


def test_questions_that_given_files_share() -> None:
    first, second, third, fourth = (Question(f"What is {n}?", ("odd", "even"), 0) for n in range(4))
    again = Question("what  is 0?", ("even", "odd"), 1)
    one = Task("one", Splits([first], [second], [again, second, second, third]), {})
    assert shared({"one": one}) == {
        "one": [
            {
                "split": "test",
                "questions": 1,
                "also_in": {"task": "one", "split": "search"},
                "said": "1 test question of one stands in its search too",
            },
            {
                "split": "test",
                "questions": 2,
                "also_in": {"task": "one", "split": "validation"},
                "said": "2 test questions of one stand in its validation too",
            },
        ]
    }
    two = Task("two", Splits([fourth], [first], [third]), {})
    found = shared({"one": one, "two": two})
    assert [each["said"] for each in found["two"]] == [
        "1 validation question of two stands in one's search too",
        "1 validation question of two stands in one's test too",
        "1 test question of two stands in one's test too",
    ]
    assert [each["said"] for each in found["one"] if each["also_in"]["task"] == "two"] == [
        "1 search question of one stands in two's validation too",
        "1 test question of one stands in two's validation too",
        "1 test question of one stands in two's test too",
    ]


@pytest.mark.parametrize(
    ("questions", "by", "said"),
    [
        ([Question("Warm?", ("yes", "no"))] * 9, "id", "1 different items in 9 questions"),
        ([Question(f"{n}?", ("a", "b"), 0, "zoo") for n in range(9)], "subject", "1 subjects in 9 questions"),
        ([Question("a?", ("a", "b"), id="q7")], "subject", "question q7 has no subject"),
        ([], "letter", "split_by='letter': known values are id, subject"),
    ],
)
def test_refused(questions: list[Question], by: str, said: str) -> None:
    with refused(said):
        split(questions, 0, by)
