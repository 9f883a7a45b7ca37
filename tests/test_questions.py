"""Questions: files and datasets in, every layout, every bad row one clear line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuronllm.data.loading import load_questions, save_questions
from neuronllm.data.questions import Question, fingerprint
from tests.checks import bad

SKY = {
    "id": "sky",
    "question": "Which colour has the sky?",
    "choices": ["red", "blue"],
    "answer": 1,
    "subject": "nature",
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# ------------------------------------------------------------------------------------------------------------- Question


def test_a_question_is_stripped_and_frozen() -> None:
    question = Question("  Which?\n", [" a ", "b"], np.int64(1), " s ", " id ")  # type: ignore[arg-type]
    assert question == Question("Which?", ("a", "b"), 1, "s", "id")
    assert type(question.answer) is int and hash(question) == hash(Question("Which?", ("a", "b"), 1, "s", "id"))
    with pytest.raises(FrozenInstanceError):
        question.answer = 0  # type: ignore[misc]


def test_any_number_of_choices_and_an_open_question_for_none() -> None:
    choices = tuple(str(number) for number in range(40))
    assert len(Question("?", choices, 39).choices) == 40 and not Question("?", choices[:2], 1).open
    assert Question("?", answer=" Paris ") == Question("?", ("Paris",), 0)  # type: ignore[arg-type]
    assert Question("?", ("Paris",), 0).open
    assert "needs choices, or the text of its answer" in bad(lambda: Question("?", (), 0))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stem": ""}, "the question is empty"),
        ({"stem": " \n"}, "the question is empty"),
        ({"stem": 5}, "the question must be a text"),
        ({"stem": "half \ud83d"}, "not valid Unicode"),
        ({"choices": "ab"}, "choices must be a list"),
        ({"choices": None}, "choices must be a list"),
        ({"choices": ("a", "")}, "choice 1 is empty"),
        ({"choices": ("a", 2)}, "choice 1 must be a text"),
        ({"choices": ("a", "b", "a ")}, "choices 0 and 2 are both 'a'"),
        ({"answer": 2}, "answer 2 is out of range"),
        ({"answer": -1}, "answer -1 is out of range"),
        ({"answer": "B"}, "whole number"),
        ({"answer": 1.0}, "whole number"),
        ({"answer": True}, "whole number"),
        ({"answer": None}, "whole number"),
        ({"subject": " "}, "the subject is empty"),
        ({"id": 3}, "id must be a text"),
    ],
)
def test_bad_questions(changed: dict[str, Any], said: str) -> None:
    assert said in bad(lambda: Question(**({"stem": "Which?", "choices": ("a", "b"), "answer": 0} | changed)))


# --------------------------------------------------------------------------------------------------------------- files


def test_a_file_of_our_own_rows(tmp_path: Path) -> None:
    bare = {"stem": "Warm?", "choices": ["yes", "no", "maybe"], "answer": 0}
    path = write(tmp_path / "task.jsonl", SKY, "", bare)
    questions = load_questions(path)
    assert questions[0] == Question("Which colour has the sky?", ("red", "blue"), 1, "nature", "sky")
    assert questions[1] == Question("Warm?", ("yes", "no", "maybe"), 0, None, "task:3")  # its line
    assert load_questions(str(path), limit=1) == questions[:1]


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    questions = [
        Question("Größe {x}?\nTwo lines", ("ä", "漢字", '"q"'), 2, "s", "1"),
        Question("Warm?", ("yes", "no"), 0, None, "2"),
    ]
    path = tmp_path / "q.jsonl"
    save_questions(path, questions)
    assert load_questions(path) == questions
    assert fingerprint(load_questions(path)) == fingerprint(questions)
    save_questions(path, [replace(questions[1], id="")])
    assert load_questions(path) == [replace(questions[1], id="q:1")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["q.jsonl"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", SKY)
    with pytest.raises(AttributeError):
        save_questions(path, [Question("Warm?", ("yes", "no"), 0), None])  # type: ignore[list-item]
    assert load_questions(path)[0].id == "sky"
    assert [entry.name for entry in tmp_path.iterdir()] == ["q.jsonl"]
    assert "cannot be written" in bad(lambda: save_questions(tmp_path / "no" / "q.jsonl", []))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "x", ', "not valid JSON"),
        ("[1, 2]", "one JSON object"),
        ('"text"', "one JSON object"),
        ('{"question": "x", "choices": ["a", "b"]}', "no field answer"),
        ('{"choices": ["a", "b"], "answer": 0}', "no field question"),
        ('{"stem": "x", "answer": 0}', "no field choices"),
        ("{}", "no field question and no field choices and no field answer"),
        ('{"question": "x", "choices": ["a", "b"], "answer": 2}', "answer 2 is out of range"),
        ('{"question": "x", "choices": ["a", "b"], "answer": -1}', "unlabelled"),
        ('{"question": "x", "choices": ["a", "b"], "answer": ""}', "unlabelled"),
        ('{"question": "x", "choices": ["a", "b"], "answer": null}', "unlabelled"),
        ('{"question": "x", "choices": ["a", "b"], "answer": "A"}', "answer and choices contradict: 'A' is none"),
        ('{"question": "x", "choices": ["a", "b"], "answer": NaN}', "whole number"),
        ('{"question": "x", "choices": ["a", "a"], "answer": 0}', "both 'a'"),
        ('{"question": "x", "choices": [], "answer": 0}', "without choices the answer must be a text, got 0"),
        ('{"question": "x", "choices": ["a"], "answer": 0}', "a single choice is nothing to choose from"),
        ('{"question": "x", "choices": ["a", ""], "answer": 0}', "choice 1 is empty"),
        ('{"question": "", "choices": ["a", "b"], "answer": 0}', "the question is empty"),
        ('{"question": "x", "choices": ["a", "b"], "answer": 0, "id": "sky"}', "id 'sky' was already used at"),
        ('{"question": "x", "choices": ["a", "b"], "answer": 0, "id": [1]}', "id must be"),
        ('{"question": "x", "choices": {"a": 1}, "answer": 0}', "choices must be a list"),
        ('{"question": "x", "choices": null, "answerKey": "A"}', "text and label"),
        ('{"question": "x", "mc1_targets": 3}', "looks like TruthfulQA"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path / "task.jsonl", SKY, line)
    message = bad(lambda: load_questions(path))
    assert message.startswith(f"{path}:2: ") and said in message


def test_bad_files(tmp_path: Path) -> None:
    assert "no such file" in bad(lambda: load_questions(tmp_path / "missing.jsonl"))
    assert "cannot be read" in bad(lambda: load_questions(tmp_path))
    assert "0 questions" in bad(lambda: load_questions(write(tmp_path / "empty.jsonl", "", "  ")))
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "Gr\xf6sse"}\n')
    assert "latin.jsonl:1: not UTF-8" in bad(lambda: load_questions(tmp_path / "latin.jsonl"))
    assert "is a path" in bad(lambda: load_questions(write(tmp_path / "a.jsonl", SKY), split="test"))
    for limit in (0, -1, 1.5, True):
        assert "limit" in bad(lambda limit=limit: load_questions([SKY], limit=limit))


def test_a_byte_order_mark_and_windows_lines_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(SKY).encode() + b"\r\n\r\n")
    assert load_questions(path)[0].id == "sky"


# ------------------------------------------------------------------------------------------------------ rows in memory


class Dataset:
    """What a Hugging Face dataset offers here: iteration over dicts."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


LAYOUT_ROWS: dict[str, tuple[dict[str, Any], Question]] = {
    "MMLU": (
        {"question": "2 + 2?", "subject": "algebra", "choices": ["1", "2", "3", "4"], "answer": 3},
        Question("2 + 2?", ("1", "2", "3", "4"), 3, "algebra", "0"),
    ),
    "MMLU-Pro": (
        {"question": "Which?", "options": list("pqrstuvwxy"), "answer": "I", "answer_index": 8, "category": "law"},
        Question("Which?", tuple("pqrstuvwxy"), 8, "law", "0"),
    ),
    "ARC with letters": (
        {
            "id": "M_1",
            "question": "Which?",
            "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]},
            "answerKey": "C",
        },
        Question("Which?", ("x", "y", "z"), 2, None, "M_1"),
    ),
    "ARC with digits": (
        {
            "id": "N_1",
            "question": "Which?",
            "choices": {"text": ["x", "y", "z", "w"], "label": ["1", "2", "3", "4"]},
            "answerKey": "3",
        },
        Question("Which?", ("x", "y", "z", "w"), 2, None, "N_1"),
    ),
    "OpenBookQA": (
        {
            "id": "7-9",
            "question_stem": "The sun",
            "choices": {"text": ["x", "y"], "label": ["A", "B"]},
            "answerKey": "B ",
        },
        Question("The sun", ("x", "y"), 1, None, "7-9"),
    ),
    "CommonsenseQA": (
        {
            "id": "c",
            "question": "Where?",
            "question_concept": "place",
            "choices": {"label": list("ABCDE"), "text": list("vwxyz")},
            "answerKey": "A",
        },
        Question("Where?", tuple("vwxyz"), 0, None, "c"),
    ),
    "HellaSwag": (
        {
            "ind": 4,
            "activity_label": "Sharpening knives",
            "ctx_a": "[header] How to hone [title] Find a stone. [step] Wet it.",
            "ctx_b": "then Bob",
            "ctx": "unused",
            "endings": ["cuts  [substeps] bread.", "sings.", "[title] Sleep.", "eats."],
            "label": "2",
        },
        Question(
            "Sharpening knives: How to hone. Find a stone. Wet it. Then Bob",
            ("cuts bread.", "sings.", "Sleep.", "eats."),
            2,
            "Sharpening knives",
            "0",
        ),
    ),
    "PIQA": (
        {"goal": "Open a jar", "sol1": "twist", "sol2": "sing", "label": 0},
        Question("Open a jar", ("twist", "sing"), 0, None, "0"),
    ),
    "WinoGrande": (
        {"sentence": "Ann thanked Bea since _ helped.", "option1": "Ann", "option2": "Bea", "answer": "2"},
        Question("Ann thanked Bea since _ helped.", ("Ann", "Bea"), 1, None, "0"),
    ),
}


@pytest.mark.parametrize("name", LAYOUT_ROWS)
def test_known_layouts(name: str, tmp_path: Path) -> None:
    row, expected = LAYOUT_ROWS[name]
    assert load_questions(Dataset([row])) == [expected]
    (from_file,) = load_questions(write(tmp_path / "f.jsonl", row))
    assert replace(from_file, id="") == replace(expected, id="")


def test_sets_that_give_the_right_choice_first_have_it_spread() -> None:
    sciq = [
        {"question": f"q{i}", "correct_answer": f"right {i}", "support": "Because." if i else ""}
        | {f"distractor{d}": f"wrong {d}" for d in (1, 2, 3)}
        for i in range(80)
    ]
    truthful = [
        {"question": f"q{i}", "mc1_targets": {"choices": [f"right {i}", "w1", "w2"], "labels": [1, 0, 0]}}
        for i in range(80)
    ]
    for rows, count in ((sciq, 4), (truthful, 3)):
        questions = load_questions(Dataset(rows))
        assert all(question.choices[question.answer] == f"right {i}" for i, question in enumerate(questions))
        assert all(len(question.choices) == count for question in questions)
        assert min([question.answer for question in questions].count(place) for place in range(count)) >= 8
        assert load_questions(Dataset(rows[5:6]))[0].answer == questions[5].answer  # by content, not by place
    assert [question.stem for question in load_questions(Dataset(sciq[:2]))] == ["q0", "Because.\nq1"]


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("HellaSwag", {"label": ""}, "unlabelled"),
        ("PIQA", {"label": -1}, "unlabelled"),
        ("PIQA", {"label": np.int64(-1)}, "unlabelled"),
        ("CommonsenseQA", {"answerKey": ""}, "unlabelled"),
        ("WinoGrande", {"answer": ""}, "unlabelled"),
        ("ARC with digits", {"answerKey": "5"}, "not one of the labels 1, 2, 3, 4"),
        ("ARC with digits", {"answerKey": "A"}, "not one of the labels 1, 2, 3, 4"),
        ("MMLU", {"answer": -1}, "unlabelled"),
        ("MMLU-Pro", {"answer_index": 10}, "out of range"),
    ],
)
def test_bad_dataset_rows(name: str, changed: dict[str, Any], said: str) -> None:
    row = LAYOUT_ROWS[name][0]
    good = {**row, "id": "good"}
    message = bad(lambda: load_questions(Dataset([good, row | changed])))
    assert message.startswith("row 1: ") and said in message


def test_column_maps() -> None:
    rows = [
        {"q": "Which?", "x": "a", "y": "b", "gold": 1, "topic": "t", "key": 17},
        {"q": "What?", "x": "c", "y": "d", "gold": "A", "topic": None, "key": "k"},
        {"q": "Who?", "x": "e", "y": "f", "gold": "f", "topic": "t", "key": None},
        {"q": "How?", "x": "g", "y": "h", "gold": "0", "topic": "t", "key": ""},
    ]
    columns = {"question": "q", "choices": ["x", "y"], "answer": "gold", "subject": "topic", "id": "key"}
    questions = load_questions(rows, columns=columns)
    assert [question.answer for question in questions] == [1, 0, 1, 0]
    assert [question.subject for question in questions] == ["t", None, "t", "t"]
    assert [question.id for question in questions] == ["17", "k", "2", "3"]
    listed = [{"q": "Which?", "opts": np.array(["a", "b", "c"], dtype=object), "gold": np.int64(2)}]
    (question,) = load_questions(listed, columns={"question": "q", "choices": "opts", "answer": "gold"})
    assert question == Question("Which?", ("a", "b", "c"), 2, None, "0")


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        ("Z", "out of range"),
        ("zebra", "none of the choices"),
        ("1", "ambiguous: it can mean choice 0 or 1"),
        ("", "unlabelled"),
        (None, "unlabelled"),
        (2.5, "a number, a letter or the text"),
    ],
)
def test_bad_answers_in_a_column(gold: Any, said: str) -> None:
    columns = {"question": "q", "choices": "c", "answer": "gold"}
    assert said in bad(lambda: load_questions([{"q": "Which?", "c": ["1", "2"], "gold": gold}], columns=columns))


def test_bad_columns() -> None:
    assert "must map question and answer" in bad(lambda: load_questions([SKY], columns={"question": "q"}))
    extra = {"question": "question", "choices": "choices", "answer": "answer", "anwser": "x"}
    assert "anwser" in bad(lambda: load_questions([SKY], columns=extra))
    missing = {"question": "prompt", "choices": "choices", "answer": "answer"}
    message = bad(lambda: load_questions([SKY], columns=missing))
    assert "row 0" in message and "'prompt'" in message and "question, choices" in message


def test_splits_of_a_dictionary() -> None:
    splits = {"train": Dataset([SKY]), "test": Dataset([{**SKY, "id": None, "answer": 0}])}
    (question,) = load_questions(splits, split="test")
    assert (question.answer, question.id) == (0, "test:0")
    assert load_questions({"only": [SKY]})[0].id == "sky"
    assert "train, test" in bad(lambda: load_questions(splits))
    assert "train, test" in bad(lambda: load_questions(splits, split="dev"))
    assert "give the split itself" in bad(lambda: load_questions([SKY], split="test"))
    assert "single dict" in bad(lambda: load_questions(SKY))
    assert "row train:0: " in bad(lambda: load_questions({"train": [{}]}))


def test_bad_sources() -> None:
    assert "row 0: must be a dict, got str" in bad(lambda: load_questions(["a"]))
    assert "got int" in bad(lambda: load_questions(3))
    assert "0 questions" in bad(lambda: load_questions([]))


def test_bad_rows_can_be_skipped_with_one_warning() -> None:
    rows = [SKY, {**SKY, "id": "2", "choices": ["a", "a"]}, {**SKY, "id": "3", "answer": 9}, {**SKY, "id": "4"}]
    with pytest.warns(UserWarning, match="left out 2 rows.*row 1: choices 0 and 1 are both 'a'") as caught:
        questions = load_questions(rows, skip_bad=True, limit=2)
    assert [question.id for question in questions] == ["sky", "4"] and len(caught) == 1
    assert "row 1" in bad(lambda: load_questions(rows))


# --------------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_of_the_content() -> None:
    one, two = Question("Which?", ("a", "b"), 0, "s", "1"), Question("What?", ("c", "d"), 1, None, "2")
    assert len(fingerprint([one])) == 64
    assert fingerprint([one, two]) != fingerprint([two, one])
    assert fingerprint([one]) == fingerprint([replace(one, id="other")])
    changes: list[dict[str, Any]] = [
        {"stem": "Why?"}, {"choices": ("b", "a")}, {"answer": 1}, {"subject": None}, {"choices": ("a", "b", "c")}
    ]  # fmt: skip
    assert len({fingerprint([replace(one, **change)]) for change in changes} | {fingerprint([one])}) == 6
    # Written down once: a saved neuron set must still recognise its questions after an update.
    assert fingerprint([one, two]) == "6362586c86d5e78d932d580f4534f685b4a1ce4d6dfa588f3dd369a2deeaee78"


def test_reading_questions_imports_no_heavy_package() -> None:
    code = (
        "import sys; from neuronllm.data.loading import load_questions\n"
        f"load_questions([{SKY!r}])\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'triton'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
