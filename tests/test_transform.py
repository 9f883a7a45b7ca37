"""Other tasks as questions: labels, answers with drawn distractors, true and false statements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from neuronllm.data.questions import Question
from neuronllm.data.transform import from_answers, from_labels, from_pairs, from_true_false, normalise
from tests.checks import bad

# -------------------------------------------------------------------------------------------------------------- labels


class ClassLabel:
    names = ["World", "Sports"]


class Dataset(list[dict[str, Any]]):
    """A dataset with its own label names, as Hugging Face's are."""

    features = {"text": object(), "label": ClassLabel()}


REVIEWS = [
    {"text": "Dull.", "label": 0, "genre": "film"},
    {"text": " {text} was lovely! ", "label": 1, "genre": None, "id": "r2"},
]


def test_integer_labels_with_names() -> None:
    questions = from_labels(REVIEWS, text="text", label="label", names=["negative", "positive"], subject="genre")
    assert questions == [
        Question("Text: Dull.\nWhich label fits the text?", ("negative", "positive"), 0, "film", "0"),
        Question("Text: {text} was lovely!\nWhich label fits the text?", ("negative", "positive"), 1, None, "r2"),
    ]


def test_the_datasets_own_label_names() -> None:
    questions = from_labels(Dataset(REVIEWS), text="text", label="label")
    assert [(question.choices, question.answer) for question in questions] == [
        (("World", "Sports"), 0),
        (("World", "Sports"), 1),
    ]


def test_text_labels_name_themselves_in_an_order_that_no_row_changes() -> None:
    rows = [{"t": "x", "y": "pos"}, {"t": "y", "y": "neg "}, {"t": "z", "y": "mixed"}]
    for given in (rows, rows[::-1]):
        questions = from_labels(given, text="t", label="y")
        assert {question.choices for question in questions} == {("mixed", "neg", "pos")}
    assert [question.choices[question.answer] for question in from_labels(rows, text="t", label="y")] == [
        "pos",
        "neg",
        "mixed",
    ]
    ordered = from_labels(rows, text="t", label="y", names=["pos", "neg", "mixed", "none"])
    assert ordered[1].choices == ("pos", "neg", "mixed", "none") and ordered[1].answer == 1


def test_a_mapping_renames_and_merges_labels() -> None:
    rows = [{"t": str(stars), "y": stars} for stars in (1, 2, 3, 4)]
    questions = from_labels(rows, text="t", label="y", names={1: "bad", 2: "bad", 3: "fair", 4: "good"})
    assert [question.answer for question in questions] == [0, 0, 1, 2]
    assert questions[0].choices == ("bad", "fair", "good")


def test_labels_of_a_csv_file_are_numbers_where_they_are_written_so(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("review,stars\nDull.,1\nLovely.,2\n")
    questions = from_labels(path, text="review", label="stars", names={"1": "bad", 2: "good"})
    assert [(question.choices, question.answer) for question in questions] == [
        (("bad", "good"), 0),
        (("bad", "good"), 1),
    ]
    assert "say what they mean with names=[...]" in bad(lambda: from_labels(path, text="review", label="stars"))


def test_two_texts_and_an_own_wording() -> None:
    rows = [{"premise": "It rains.", "hypothesis": "It is wet.", "label": True}]
    keywords: dict[str, Any] = {
        "text": "premise",
        "second_text": "hypothesis",
        "label": "label",
        "names": ["no", "yes"],
    }
    (question,) = from_labels(rows, question="If: {text} Does it follow: {second_text}", **keywords)
    assert question.stem == "If: It rains. Does it follow: It is wet." and question.answer == 1
    (question,) = from_labels(rows, **keywords)
    assert "It rains." in question.stem and "It is wet." in question.stem


def test_rows_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in REVIEWS))
    assert [q.id for q in from_labels(path, text="text", label="label", names=["a", "b"])] == ["reviews:1", "r2"]
    path.write_text(json.dumps(REVIEWS[0]) + "\n{\n")
    assert f"{path}:2: not valid JSON" in bad(lambda: from_labels(path, text="text", label="label", names=["a", "b"]))


@pytest.mark.parametrize(
    ("rows", "keywords", "said"),
    [
        ([], {}, "0 rows"),
        ([{"text": "x", "label": 2}], {}, "row 0: label 2 has no name"),
        ([{"text": "x", "label": -1}], {}, "row 0: the row is unlabelled"),
        ([{"text": "x", "label": None}], {}, "row 0: the row is unlabelled"),
        ([{"text": "x", "label": [0]}], {}, "row 0: label must be"),
        ([{"text": "x", "label": 0.5}], {}, "row 0: label must be"),
        ([{"text": "x"}], {}, "row 0: no field 'label'"),
        ([{"label": 0}], {}, "row 0: no field 'text'"),
        ([{"text": " ", "label": 0}], {}, "row 0: text must be a text"),
        ([{"text": "x", "label": 0}], {"names": None}, "say what they mean with names=[...]"),
        ([{"text": "x", "label": 0}], {"names": "ab"}, "names must be a list"),
        ([{"text": "x", "label": 0}], {"names": ["a"]}, "the only label is ['a']"),
        ([{"text": "x", "label": 0}], {"names": ["a", "a"]}, "the only label is ['a']"),
        ([{"text": "x", "label": "maybe"}], {}, "row 0: label 'maybe' has no name"),
        ([{"text": "x", "label": 0}], {"question": "no place"}, "{text} is missing"),
        ([{"text": "x", "label": 0}], {"question": "{text} {second_text}"}, "unknown placeholder {second_text}"),
        ([{"text": "x", "label": 0, "id": "i"}] * 2, {}, "id 'i' appears twice"),
        (["x"], {}, "row 0: must be a dict"),
    ],
)
def test_bad_labels(rows: list[Any], keywords: dict[str, Any], said: str) -> None:
    assert said in bad(
        lambda: from_labels(rows, **({"text": "text", "label": "label", "names": ["a", "b"]} | keywords))
    )


# ------------------------------------------------------------------------------------------------------------- answers


def capitals(count: int = 40) -> list[dict[str, Any]]:
    rows = [{"q": f"Capital of {i}?", "a": f"City {i}", "s": "geography"} for i in range(count)]
    return rows + [{"q": f"Who wrote {i}?", "a": f"Author {i}", "s": "books"} for i in range(count)]


def test_distractors_come_from_the_same_subject() -> None:
    for row, question in zip(capitals(), from_answers(capitals(), question="q", answer="a", subject="s"), strict=True):
        assert question.stem == row["q"] and question.choices[question.answer] == row["a"]
        assert question.subject == row["s"] and len(set(question.choices)) == 4
        assert {choice.split()[0] for choice in question.choices} == {row["a"].split()[0]}
    mixed = from_answers(capitals(), question="q", answer="a", n_choices=10)
    assert {len(question.choices) for question in mixed} == {10}
    assert any({choice.split()[0] for choice in question.choices} == {"City", "Author"} for question in mixed)


def test_the_right_choice_has_no_place_of_its_own() -> None:
    places = Counter(question.answer for question in from_answers(capitals(100), question="q", answer="a"))
    assert set(places) == {0, 1, 2, 3} and min(places.values()) >= 30  # of 200


def test_drawing_is_seeded_per_item_and_alike_in_every_process() -> None:
    rows = [{**row, "id": f"item {number}"} for number, row in enumerate(capitals())]
    questions = from_answers(rows, question="q", answer="a", subject="s", seed=4)
    backwards = from_answers(rows[::-1], question="q", answer="a", subject="s", seed=4)
    assert backwards[::-1] == questions
    other = from_answers(rows, question="q", answer="a", subject="s", seed=5)
    assert sum(one.choices != two.choices for one, two in zip(questions, other, strict=True)) > 70
    code = (
        "import json, sys; from neuronllm.data.transform import from_answers\n"
        "rows = json.load(sys.stdin)\n"
        "print(json.dumps([q.choices for q in from_answers(rows, question='q', answer='a', subject='s', seed=4)]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(rows).encode(), env=environment, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == [list(question.choices) for question in questions]


def test_no_distractor_is_right_in_another_spelling() -> None:
    same = ["The Beatles", "beatles", "BEATLES!", "the  Beatles", "Beatles."]
    rows = [{"q": f"q{i}", "a": text} for i, text in enumerate([*same, "Queen", "queen", "Abba", "The Who", "A Who"])]
    for seed in range(20):
        for question in from_answers(rows, question="q", answer="a", seed=seed):
            assert len({normalise(choice) for choice in question.choices}) == 4


def test_every_right_answer_of_an_item_is_kept_out() -> None:
    rows: list[dict[str, Any]] = [{"q": "Largest land?", "a": ["USSR", "Soviet Union", "Russia"]}]
    rows += [{"q": f"q{i}", "a": text} for i, text in enumerate(["soviet union", "russia", "Peru", "Chad", "Mali"])]
    rows += [{"q": "A river?", "a": "Nile"}, {"q": "a river", "a": "Volga"}]  # one question, two right answers
    for seed in range(20):
        questions = from_answers(rows, question="q", answer="a", seed=seed)
        assert questions[0].choices[questions[0].answer] == "USSR"
        assert not {"soviet union", "russia"} & set(questions[0].choices)
        assert "Volga" not in questions[-2].choices and "Nile" not in questions[-1].choices


def test_open_questions_accept_all_answers() -> None:
    rows: list[dict[str, Any]] = [{"q": "Largest land?", "a": ["USSR", "Russia", "USSR"], "s": "maps", "id": 4}]
    rows += [{"q": "A river?", "a": " Nile ", "s": None}]
    assert from_answers(rows, question="q", answer="a", subject="s", n_choices=1) == [
        Question("Largest land?", ("USSR",), 0, "maps", "4", ("Russia", "USSR")),
        Question("A river?", ("Nile",), 0, None, "1"),
    ]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The  U.S.A.", "usa", True),
        ("twenty-one", "Twenty one", True),
        ("An apple", "apple", True),
        ("Ångström", "ångström", True),
        ("ﬁre", "fire", True),
        ("theatre", "atre", False),
        ("Paris", "Parma", False),
        ("+", "-", False),
        ("A", "The", False),
        ("1.5", "15", False),
        ("1,000", "$1000.0", True),
    ],
)
def test_normalise(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same
    assert normalise(one)


@pytest.mark.parametrize(
    ("rows", "keywords", "said"),
    [
        ([], {}, "0 rows"),
        ([{"q": "x", "a": text} for text in ("one", "two", "Two")], {"n_choices": 3}, "only 1 other distinct answers"),
        ([{"q": "x", "a": "b", "s": "t"}], {"subject": "s"}, "row 0: subject 't' holds only 0 other"),
        ([{"q": "x", "a": ""}], {}, "row 0: a must be a text or a list"),
        ([{"q": "x", "a": []}], {}, "row 0: a must be a text or a list"),
        ([{"q": "x", "a": ["b", 3]}], {}, "row 0: a must be a text or a list"),
        ([{"q": "x", "a": 3}], {}, "row 0: a must be a text or a list"),
        ([{"q": None, "a": "b"}], {}, "row 0: q must be a text"),
        ([{"a": "b"}], {}, "row 0: no field 'q'"),
        ([{"q": "x", "a": "b"}], {"subject": "s"}, "row 0: no field 's'"),
        ([{"q": "x", "a": "b"}], {"n_choices": 0}, "n_choices"),
        ([{"q": "x", "a": "b"}], {"n_choices": True}, "n_choices"),
        ([{"q": "x", "a": "b"}], {"n_choices": "4"}, "n_choices"),
    ],
)
def test_bad_answers(rows: list[Any], keywords: dict[str, Any], said: str) -> None:
    if said == "only 1 other distinct answers":  # different questions, or the other answer would be right too
        rows = [{**row, "q": f"q{number}"} for number, row in enumerate(rows)]
    assert said in bad(lambda: from_answers(rows, question="q", answer="a", **keywords))


# --------------------------------------------------------------------------------------------------------------- pairs


def test_pairs() -> None:
    rows: list[dict[str, Any]] = [
        {"ask": "Warm?", "good": f"Good {n}.", "poor": f"Bad {n}.", "area": "s"} for n in range(60)
    ]
    questions = from_pairs(rows, prompt="ask", chosen="good", rejected="poor", subject="area")
    assert [question.choices[question.answer] for question in questions] == [row["good"] for row in rows]
    assert [question.choices[1 - question.answer] for question in questions] == [row["poor"] for row in rows]
    assert {(question.stem, question.subject) for question in questions} == {("Warm?", "s")}
    assert 15 <= sum(question.answer for question in questions) <= 45
    chat = [{"role": "user", "content": "Warm?"}, {"role": "assistant", "content": "Good."}]
    (question,) = from_pairs(
        [{"good": chat, "poor": [chat[0], {**chat[1], "content": "Bad."}]}], chosen="good", rejected="poor"
    )
    assert question.stem == "Warm?" and question.choices[question.answer] == "Good."


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"p": "x", "c": "a"}, "row 0: no field 'r'"),
        ({"c": "a", "r": "b"}, "row 0: no field 'p'"),
        ({"p": "x", "c": "a", "r": "a"}, "row 0: choices 0 and 1 are both 'a'"),
        ({"p": "x", "c": "a", "r": 3}, "row 0: rejected must be a text or a list of messages"),
        ({"p": " ", "c": "a", "r": "b"}, "row 0: prompt must be a text"),
    ],
)
def test_bad_pairs(row: dict[str, Any], said: str) -> None:
    assert said in bad(lambda: from_pairs([row], prompt="p", chosen="c", rejected="r"))


# ---------------------------------------------------------------------------------------------------------- true, false


@pytest.mark.parametrize(
    ("label", "answer"),
    [(True, 0), (False, 1), (1, 0), (0, 1), ("true", 0), ("False ", 1), ("yes", 0), ("NO", 1), ("1", 0), ("0", 1)],
)
def test_statements(label: Any, answer: int) -> None:
    (question,) = from_true_false([{"claim": "Ice is cold.", "ok": label}], statement="claim", label="ok")
    expected = "Statement: Ice is cold.\nIs the statement true or false?"
    assert question == Question(expected, ("True", "False"), answer, None, "0")


def test_statements_in_own_words() -> None:
    rows = [{"claim": "Ice is cold.", "ok": False, "area": "physics"}]
    keywords: dict[str, Any] = {"names": ("right", "wrong"), "question": "{text} Is that so?", "subject": "area"}
    (question,) = from_true_false(rows, statement="claim", label="ok", **keywords)
    assert question == Question("Ice is cold. Is that so?", ("right", "wrong"), 1, "physics", "0")


@pytest.mark.parametrize(
    ("row", "keywords", "said"),
    [
        ({"claim": "x", "ok": "maybe"}, {}, "row 0: label must be true or false"),
        ({"claim": "x", "ok": 2}, {}, "row 0: label must be true or false"),
        ({"claim": "x", "ok": -1}, {}, "row 0: the row is unlabelled"),
        ({"claim": "x"}, {}, "row 0: no field 'ok'"),
        ({"claim": "", "ok": True}, {}, "row 0: claim must be a text"),
        ({"claim": "x", "ok": True}, {"names": ("a", "a")}, "row 0: choices 0 and 1"),
        ({"claim": "x", "ok": True}, {"names": "ab"}, "names must be two texts"),
        ({"claim": "x", "ok": True}, {"question": "{statement}"}, "unknown placeholder"),
    ],
)
def test_bad_statements(row: dict[str, Any], keywords: dict[str, Any], said: str) -> None:
    assert said in bad(lambda: from_true_false([row], statement="claim", label="ok", **keywords))
