"""Labelled texts, whose labels are the choices, and CSV files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from neuronllm.data.loading import load_questions
from neuronllm.data.questions import Question
from tests.checks import bad
from tests.test_text_questions import YES, open_question, write

LABEL = "\nWhich label fits the text?"

REVIEWS = [
    {"text": "Lovely.", "label": "pos"},
    {"text": " Dull. ", "label": "neg"},
    {"text": "So so.", "label": "mixed"},
]


def labelled(text: str, choices: tuple[str, ...], answer: int, name: str) -> Question:
    return Question(f"Text: {text}{LABEL}", choices, answer, None, name)


def test_all_labels_are_the_choices_in_sorted_order(tmp_path: Path) -> None:
    names = ("mixed", "neg", "pos")
    texts = [("Lovely.", 2), ("Dull.", 1), ("So so.", 0)]
    assert load_questions(REVIEWS) == [labelled(text, names, n, str(i)) for i, (text, n) in enumerate(texts)]
    assert load_questions(REVIEWS, limit=1) == [labelled("Lovely.", names, 2, "0")]  # the names of all rows
    path = write(tmp_path / "r.jsonl", "".join(json.dumps(row) + "\n" for row in REVIEWS))
    assert load_questions(path) == [labelled(text, names, n, f"r:{i}") for i, (text, n) in enumerate(texts, 1)]
    path = write(tmp_path / "r.csv", "text,label\nLovely.,pos\n Dull. ,neg\nSo so.,mixed\n")
    assert load_questions(path) == [labelled(text, names, n, f"r:{i}") for i, (text, n) in enumerate(texts, 2)]
    ordered = load_questions(REVIEWS, labels=["pos", "mixed", "neg", "none"])
    assert ordered[0].choices == ("pos", "mixed", "neg", "none") and [q.answer for q in ordered] == [0, 2, 1]


def test_numbers_need_names(tmp_path: Path) -> None:
    rows = [{"text": "Lovely.", "label": 1}, {"text": "Dull.", "label": 0}]
    names = ("negative", "positive")
    expected = [labelled("Lovely.", names, 1, "0"), labelled("Dull.", names, 0, "1")]
    assert load_questions(rows, labels=list(names)) == expected
    assert load_questions(rows, labels={0: "negative", 1: "positive"}) == expected
    path = write(tmp_path / "r.csv", "id,text,label\n0,Lovely.,1\n1,Dull.,0\n")
    assert load_questions(path, labels=names) == expected
    message = bad(lambda: load_questions(path))
    assert message.startswith(f"{path}: ") and "labels=[...]" in message and "--labels" in message
    assert "row 0: label 1 has no name" in bad(lambda: load_questions(rows, labels={0: "a", 2: "b"}))


def test_a_dataset_names_its_own_labels() -> None:
    class Label:
        names = ["neg", "pos"]

    class Dataset(list[Mapping[str, Any]]):
        features = {"text": object(), "label": Label()}

    rows = Dataset([{"text": "Lovely.", "label": 1}])
    assert load_questions(rows) == [labelled("Lovely.", ("neg", "pos"), 1, "0")]
    assert load_questions({"train": rows, "test": []}, split="train")[0].answer == 1
    assert load_questions(rows, labels=["bad", "good"])[0].choices == ("bad", "good")


@pytest.mark.parametrize(
    ("rows", "labels", "said"),
    [
        ([*REVIEWS, {"text": "", "label": "pos"}], None, "row 3: text must"),
        ([*REVIEWS, {"text": "x", "label": ""}], None, "row 3: the row is unlabelled"),
        ([*REVIEWS, {"text": "x y"}], None, "row 3: no text and label, which the first row has"),
        ([{"text": "x", "label": "a"}], None, "source: the only label is ['a']"),
        ([{"text": "x", "label": 0}], ["a"], "source: the only label is ['a']"),
        ([{"text": "x", "label": 0}], "ab", "labels must be a list or a mapping"),
        ([{"question": "Q?", "answer": "x y"}, {"text": "x", "label": "a"}], None, "row 1: a text and its label among"),
        ([{"question": "Q?", "answer": "x y"}], ["a", "b"], "labels= (--labels) is for rows of text and label"),
    ],
)  # fmt: skip
def test_bad_labels(rows: list[dict[str, Any]], labels: Any, said: str) -> None:
    assert said in bad(lambda: load_questions(rows, labels=labels))


# ------------------------------------------------------------------------------------------------------------ CSV files


def test_a_csv_file_of_questions(tmp_path: Path) -> None:
    text = (
        "\ufeffid, question ,answer,answers,subject\r\n"
        'a,"Capital of ""France"", please?",Paris,,\r\n'
        "\r\n"
        '"","Two\r\nlines?",yes,,s\r\n'
        "c,2 + 2 =,4,four,\r\n"
    )
    assert load_questions(write(tmp_path / "q.CSV", text)) == [
        open_question('Capital of "France", please?', "Paris", id="a"),
        Question("Two\r\nlines?", YES, 0, "s", "q:4"),  # a row is where it begins
        open_question("2 + 2 =", "4", "four", id="c"),
    ]


def test_choices_of_a_csv_file_are_named_by_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "q.csv", "q,A,B,key\nWhich?,red,blue,B\nWhat?,1,2,0\n")
    columns = {"question": "q", "choices": ["A", "B"], "answer": "key"}
    assert [question.answer for question in load_questions(path, columns=columns)] == [1, 0]
    assert "has the fields q, A, B, key" in bad(lambda: load_questions(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Lovely film!,pos\nDull.,neg\n", "{path}:1: no layout has the fields Lovely film!, pos: a CSV file begins"),
        ("text,label,\na,b,c\n", "{path}:1: a CSV file begins with a header, a name of its own for each column"),
        ("text,text\na,b\n", "{path}:1: a CSV file begins with a header"),
        ("text,label\na,b\n\nc\n", "{path}:4: the row has 1 cells, the header 2"),
        ("text,label\na,b,c\n", "{path}:2: the row has 3 cells, the header 2"),
        ('text,label\na,b\n"c,d\n', "{path}:3: not valid CSV: unexpected end of data"),
        ('text,label\n"a"b,c\n', "{path}:2: not valid CSV"),
        ("", "{path}: 0 questions"),
        ("text,label\n", "{path}: 0 questions"),
        ("question,answer\nWarm?,yes\nCold?,\n", "{path}:3: the answer is empty"),
    ],
)  # fmt: skip
def test_bad_csv_files(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path / "r.csv", text)
    assert said.format(path=path) in bad(lambda: load_questions(path))


def test_a_csv_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"text,label\na,b\nGr\xf6sse,c\n")
    assert "latin.csv:3: not UTF-8" in bad(lambda: load_questions(tmp_path / "latin.csv"))
    assert "no such file" in bad(lambda: load_questions(tmp_path / "missing.csv"))
