"""Questions whose answers are texts: open ones, those of data sets, pairs of texts, statements."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuronllm.data.forms import form_of
from neuronllm.data.loading import load_questions, save_questions
from neuronllm.data.questions import Question, fingerprint
from neuronllm.data.rendering import render
from tests import tiny_tokenizers
from tests.checks import bad


def open_question(stem: str, answer: str, *answers: str, **more: Any) -> Question:
    return Question(stem, (answer,), 0, answers=answers, **{"id": "0", **more})


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


TRUTH = "\nIs the statement true or false?"
YES = ("yes", "no")

ROWS: dict[str, tuple[dict[str, Any], Question]] = {
    "right answer only": ({"question": "Capital?", "answer": " Paris "}, open_question("Capital?", "Paris")),
    "right answer, stem": ({"stem": "2 - 3 =", "answer": "-1"}, open_question("2 - 3 =", "-1")),
    "accepted answers": (
        {"question": "Largest land?", "answer": "Russia", "answers": ["Russia", "USSR"], "subject": "maps", "id": 7},
        open_question("Largest land?", "Russia", "Russia", "USSR", subject="maps", id="7"),
    ),
    "one accepted answer": ({"question": "Q?", "answer": "a b", "answers": "b a"}, open_question("Q?", "a b", "b a")),
    "context": (
        {"question": "Who?", "context": " Ann sang. ", "answer": "Ann"},
        open_question("Ann sang.\nWho?", "Ann"),
    ),
    "choices that are not there": ({"question": "Q?", "choices": None, "answer": "yes"}, open_question("Q?", "yes")),
    "a choice by its text": (
        {"question": "Q?", "choices": ["1 ", "0"], "answer": "0", "answers": ["zero"]},
        Question("Q?", ("1", "0"), 1, id="0", answers=("zero",)),
    ),
    "a choice that looks hidden": (
        {"question": "Q?", "choices": ["-1", "1"], "answer": "-1"},
        Question("Q?", ("-1", "1"), 0, id="0"),
    ),
    "TriviaQA": (
        {
            "question": "Who?",
            "question_id": "tc_1",
            "question_source": "web",
            "entity_pages": {"title": []},
            "answer": {"value": "S. Lewis", "aliases": ["Lewis", "", "S. Lewis"], "normalized_aliases": ["lewis"]},
        },
        open_question("Who?", "S. Lewis", "Lewis", "lewis"),
    ),
    "NQ-open": ({"question": "when?", "answer": ["1972", "in 1972"]}, open_question("when?", "1972", "in 1972")),
    "NQ-open of a Parquet file": (
        {"question": "when?", "answer": np.array(["1972", "in 1972"], dtype=object)},
        open_question("when?", "1972", "in 1972"),
    ),
    "WebQuestions": (
        {"url": "x", "question": "what?", "answers": ["Jazz", "Blues"]},
        open_question("what?", "Jazz", "Blues"),
    ),
    "SQuAD": (
        {
            "id": "56be",
            "title": "T",
            "context": "Ann sang in Rome.",
            "question": "Where?",
            "answers": {"text": ["Rome", "in Rome", "Rome"], "answer_start": [12, 9, 12]},
        },
        open_question("Ann sang in Rome.\nWhere?", "Rome", "in Rome", id="56be"),
    ),
    "SQuAD without its context": (
        {"question": "Where?", "answers": {"text": np.array(["Rome"], dtype=object)}},
        open_question("Where?", "Rome"),
    ),
    "GSM8K": (
        {"question": "How many?", "answer": "2 + 1199 = <<2+1199=1201>>1201\n#### 1,201"},
        open_question("How many?", "1,201", "1201"),
    ),
    "LAMBADA": (
        {"text": "He opened the door and saw  Ann", "domain": "none"},
        open_question("He opened the door and saw", "Ann"),
    ),
    "WMT": (
        {"translation": {"de": "Guten Tag.", "en": "Good day."}},
        open_question("Translate from German to English: Guten Tag.", "Good day."),
    ),
    "WMT of a rare language": (
        {"translation": {"en": "Good day.", "xx": "Gd."}},
        open_question("Translate from English to xx: Good day.", "Gd."),
    ),
    "BoolQ": (
        {"question": "is ice cold", "passage": "Ice is frozen.", "answer": True},
        Question("Ice is frozen.\nis ice cold?", YES, 0, id="0"),
    ),
    "BoolQ of SuperGLUE": (
        {"question": "is ice hot?", "passage": "Ice is frozen.", "idx": 3, "label": 0},
        Question("Ice is frozen.\nis ice hot?", YES, 1, id="0"),
    ),
    "yes": ({"question": "Warm?", "answer": "Yes"}, Question("Warm?", YES, 0, id="0")),
    "no": ({"question": "Warm?", "answer": "no", "subject": "s"}, Question("Warm?", YES, 1, "s", "0")),
    "true": ({"question": "Ice is cold.", "answer": "true"}, Question("Ice is cold.", ("true", "false"), 0, id="0")),
    "False": ({"question": "Ice is hot.", "answer": "False"}, Question("Ice is hot.", ("true", "false"), 1, id="0")),
    "boolean": ({"question": "Warm?", "answer": False}, Question("Warm?", YES, 1, id="0")),
    "statement": (
        {"statement": "Ice is cold.", "label": 1},
        Question(f"Statement: Ice is cold.{TRUTH}", ("true", "false"), 0, id="0"),
    ),
    "statement in words": (
        {"statement": "Ice {text} is hot.", "label": "FALSE"},
        Question(f"Statement: Ice {{text}} is hot.{TRUTH}", ("true", "false"), 1, id="0"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str, tmp_path: Path) -> None:
    row, expected = ROWS[name]
    assert load_questions([row]) == [expected]
    assert load_questions({"test": [row]})[0] == replace(expected, id="test:0" if expected.id == "0" else expected.id)
    plain = json.dumps(row, default=lambda array: array.tolist())
    (from_file,) = load_questions(write(tmp_path / "f.jsonl", plain))
    assert replace(from_file, id="") == replace(expected, id="")


@pytest.mark.parametrize("name", ROWS)
def test_saved_and_loaded_without_loss(name: str, tmp_path: Path) -> None:
    """Also where the short form would be read in another way: an open "yes", a text with "####"."""
    questions = [ROWS[name][1], open_question("Warm?", "yes", id="1"), open_question("?", "#### 5", "5", "B", id="2")]
    questions = [replace(question, id=f"own {number}") for number, question in enumerate(questions)]
    save_questions(tmp_path / "q.jsonl", questions)
    assert load_questions(tmp_path / "q.jsonl") == questions
    assert fingerprint(load_questions(tmp_path / "q.jsonl")) == fingerprint(questions)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Q?", "answer": ""}, "the answer is empty"),
        ({"question": "Q?", "answer": None}, "unlabelled"),
        ({"question": "Q?", "answer": 4}, "no field choices, and answer 4 is a number: give the choices, or"),
        ({"question": "Q?", "answer": 4.5}, "no field choices, and answer 4.5 is a number"),
        ({"question": "Q?", "answer": "x", "answers": ["y", " "]}, "an accepted answer is empty"),
        ({"question": "Q?", "answer": "x", "answers": [3]}, "an accepted answer must be a text"),
        ({"question": "Q?", "answer": "x", "answers": 3}, "answers must be a list of texts, got 3"),
        ({"question": "", "answer": "x"}, "the question is empty"),
        ({"question": 3, "answer": "x"}, "the question must be a text"),
        ({"question": "Q?", "choices": [], "answer": ""}, "the answer is empty"),
        ({"question": "Q?", "choices": ["a", "b"], "answer": "c"}, "answer and choices contradict: 'c' is none"),
        ({"question": "Q?", "choices": ["a", "b"], "answer": 0, "answers": ["b"]}, "answers holds 'b', which is a"),
        ({"question": "Q?", "choices": "a, b", "answer": "a"}, "choices must be a list of texts, got str"),
        ({"question": "Q?", "A": "red", "B": "blue", "answer": "B"}, "one of choices in other fields (A, B)"),
        ({"question": "Q?", "a": "red", "b": "blue", "answer": "b"}, "one of choices in other fields (a, b)"),
        ({"question": "Q?", "first": "red", "second": "blue", "answer": "B"}, "say which is which with columns="),
        ({"question": "Q?", "options": ["red", "blue"], "answer": "red"}, "one of choices in other fields (options)"),
        ({"question": "Q?", "answer": {"value": "<unk>", "aliases": []}}, "unlabelled"),
        ({"question": "Q?", "answer": {"text": "x"}}, "looks like TriviaQA, but its fields cannot be read: 'value'"),
        ({"question": "Q?", "answer": []}, "the row has no answer"),
        ({"question": "Q?", "answer": [3]}, "must be a text"),
        ({"question": "Q?", "context": "C.", "answers": {"text": [], "answer_start": []}}, "has no answer"),
        ({"question": "Q?", "answer": "no number ####"}, "the row has no answer"),
        ({"text": "alone"}, "text needs two words at least"),
        ({"text": 3}, "looks like LAMBADA"),
        ({"translation": {"en": "x"}}, "translation must hold two languages, got en"),
        ({"translation": {"en": "x", "de": ""}}, "the answer is empty"),
        ({"question": "Q?", "passage": "P.", "label": 2}, "must be true or false, 1 or 0, yes or no"),
        ({"statement": "S.", "label": "maybe"}, "label must be true or false"),
        ({"statement": "S.", "label": -1}, "unlabelled"),
        ({"chosen": "x", "rejected": "y"}, "no field prompt"),
        ({"prompt": "P", "chosen": "x"}, "no field rejected: a pair has a better and a worse answer"),
        ({"prompt": "P", "rejected": "x"}, "no field chosen: a pair has a better and a worse answer"),
        ({"prompt": "P", "chosen": "x", "rejected": "x "}, "choices 0 and 1 are both 'x'"),
        ({"prompt": "P", "chosen": "x", "rejected": ""}, "rejected must be a text or a list of messages, and not"),
        ({"prompt": "P", "chosen": [], "rejected": "x"}, "chosen must be a text or a list of messages, and not empty"),
        ({"prompt": "P", "chosen": [{"role": "user"}], "rejected": "x"}, "chosen must be a text or a list of messages"),
        ({"prompt": 3, "chosen": "x", "rejected": "y"}, "prompt must be a text or a list of messages"),
    ],
)  # fmt: skip
def test_bad_rows(row: dict[str, Any], said: str) -> None:
    message = bad(lambda: load_questions([{"question": "Good?", "answer": "yes, it is", "id": "good"}, row]))
    assert message.startswith("row 1: ") and said in message
    with pytest.warns(UserWarning, match="left out 1 rows"):
        assert len(load_questions([ROWS["no"][0], row], skip_bad=True)) == 1


def test_bad_questions_by_hand() -> None:
    assert "the answer is empty" in bad(lambda: Question("Q?", answer=" "))  # type: ignore[arg-type]
    assert "answers must be a list of texts, got 'Paris'" in bad(lambda: Question("Q?", ("a", "b"), 0, answers="Paris"))  # type: ignore[arg-type]
    assert "answers holds 'b'" in bad(lambda: Question("Q?", ("a", "b"), 0, answers=("a", "b ")))


def test_columns_without_choices() -> None:
    rows = [{"q": "Capital?", "gold": "Rome", "also": ["Roma"], "topic": "t", "key": "k", "more": "B"}]
    columns = {"question": "q", "answer": "gold", "answers": "also", "subject": "topic", "id": "key"}
    assert load_questions(rows, columns=columns) == [open_question("Capital?", "Rome", "Roma", subject="t", id="k")]
    choices = [{"q": "Capital?", "a": "Rome", "b": "Oslo", "gold": "A", "also": "Roma"}]
    columns = {"question": "q", "choices": ["a", "b"], "answer": "gold", "answers": "also"}
    assert load_questions(choices, columns=columns) == [Question("Capital?", ("Rome", "Oslo"), 0, None, "0", ("Roma",))]
    assert "no field 'gold'" in bad(lambda: load_questions([{"q": "x"}], columns={"question": "q", "answer": "gold"}))


# ----------------------------------------------------------------------------------------------- chosen and rejected


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def model(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "texts": ({"prompt": "Warm?", "chosen": "Good.", "rejected": "Bad."}, "Warm?"),
    "a question": ({"question": "Warm?", "chosen": "Good.", "rejected": "Bad."}, "Warm?"),
    "chats that repeat the prompt": (
        {"prompt": "Warm?", "chosen": [user("Warm?"), model("Good.")], "rejected": [user("Warm?"), model("Bad.")]},
        "Warm?",
    ),
    "chats without a prompt": (
        {"chosen": [user("Warm?"), model("Good.")], "rejected": [user("Warm?"), model("Bad.")]},
        "Warm?",
    ),
    "earlier turns": (
        {
            "chosen": [user("Hi."), model("Hello."), user("Warm?"), model("Good.")],
            "rejected": [user("Hi."), model("Hello."), user("Warm?"), model("Bad.")],
        },
        "user: Hi.\nassistant: Hello.\nuser: Warm?",
    ),
    "a prompt that is a chat": (
        {"prompt": [user("Hi."), model("Hello."), user("Warm?")], "chosen": [model("Good.")], "rejected": "Bad."},
        "user: Hi.\nassistant: Hello.\nuser: Warm?",
    ),
    "arrays of a Parquet file": (
        {"prompt": "Warm?", "chosen": np.array([model("Good.")]), "rejected": np.array([model("Bad.")])},
        "Warm?",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_chosen_and_rejected(name: str) -> None:
    row, stem = PAIRS[name]
    (question,) = load_questions([row])
    assert question.stem == stem and sorted(question.choices) == ["Bad.", "Good."]
    assert question.choices[question.answer] == "Good."


def test_the_chosen_answer_has_no_place_of_its_own() -> None:
    rows = [{"prompt": "Warm?", "chosen": f"Good {n}.", "rejected": f"Bad {n}."} for n in range(80)]
    questions = load_questions(rows)
    assert [question.choices[question.answer] for question in questions] == [row["chosen"] for row in rows]
    assert 25 <= sum(question.answer for question in questions) <= 55
    assert load_questions(rows[7:8])[0].answer == questions[7].answer  # by content, not by place


def test_pairs_are_answered_in_words_unless_letters_are_asked_for(tmp_path: Path) -> None:
    questions = load_questions([{"prompt": "Warm?", "chosen": "Good.", "rejected": "Bad."}])
    save_questions(tmp_path / "pairs.jsonl", questions)
    for asked in (questions, load_questions(tmp_path / "pairs.jsonl")):
        assert form_of(asked).answers == "texts" and form_of(asked, "letters").answers == "letters"
        assert form_of(asked, found={"answers": "letters"}).answers == "letters"  # as the neurons were found
    assert form_of([replace(questions[0], in_words=False)]).answers == "letters"


def test_pairs_that_answer_different_things() -> None:
    row = {"chosen": [user("Hi."), model("Good.")], "rejected": [user("Ho."), model("Bad.")]}
    assert "differ before their last message" in bad(lambda: load_questions([row]))


# ---------------------------------------------------------------------------------------------------- all the way down


def test_every_shape_becomes_prompts() -> None:
    """All rows of the tables above, in one list with ids of their own, are asked in words."""
    rows = [row for row, _ in [*ROWS.values(), *PAIRS.values()]]
    questions = [load_questions([row])[0] for row in rows]
    questions = [replace(question, id=str(number)) for number, question in enumerate(questions)]
    tokenizer = tiny_tokenizers.byte_level()
    for question, prompt in zip(questions, render(tokenizer, questions), strict=True):
        assert tokenizer.decode(prompt.input_ids) == f"Question: {question.stem}\nAnswer:"
        answers = [tokenizer.decode(ids) for (ids,) in prompt.option_ids]
        assert answers == [f" {choice}" for choice in question.choices]


def test_a_bare_continuation() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    questions = load_questions([ROWS["LAMBADA"][0]])
    (prompt,) = render(tokenizer, questions, template="{question}")
    assert tokenizer.decode(prompt.input_ids) == "He opened the door and saw"
    assert tokenizer.decode(prompt.option_ids[0][0]) == " Ann"
