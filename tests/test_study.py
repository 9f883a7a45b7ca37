"""The case study of examples/real_model: every row runs on a tiny model, and what is killed goes on."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm.model.random_sets import matched_like
from tests.checks import bad, untouched
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "real_model"
MODULES = ("study", "rows", "setting", "reference", "asking")
FACTS = {"row", "task", "fold", "settings", "accuracy", "neurons", "parameters", "collapsed", "questions", "right"}
FACTS |= {"p_right", "seconds", "warnings", "versions", "commit", "machine"}
SETS = ("random", "matched", "edited", "silenced", "forgetting")
WIDTH, NEURONS = 800, 1600
WORDS = "ashen bayou cobra damson elmwood fennel gumbo hayloft inkwell jaybird kindle logbook"

pytestmark = pytest.mark.slow  # every kind of training


@pytest.fixture(scope="module")
def here() -> Iterator[SimpleNamespace]:
    """The modules of the study, as a script beside them imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in MODULES:
            sys.modules.pop(name)


def questions() -> dict[str, list[nl.Question]]:
    """Choices of each question's own, two labels, and a text to be continued."""
    words = WORDS.split()
    rhymes = [
        nl.Question(f"What is like {word}?", (word[1:], word[:2], f"{word}s"), n % 3, id=f"rhymes/{word}")
        for n, word in enumerate(words)
    ]
    labels = [
        nl.Question(f"{word}: what is it?", ("warm", "cold"), int(n > 3), id=f"labels/{word}")
        for n, word in enumerate(words)
    ]
    past = [
        nl.Question(f"Today {{{word}}}, then", (f"{word}ed", f"{word}en"), n % 2, id=f"past_tense/{word}")
        for n, word in enumerate(words)
    ]
    return {"rhymes": rhymes, "labels": labels, "past_tense": past}


@pytest.fixture(scope="module")
def ready(here: SimpleNamespace) -> Iterator[tuple[Any, Any]]:
    """A tiny model and its tokenizer; learning takes two small steps."""
    tokenizer = byte_level()
    size = {"vocab_size": len(tokenizer), "intermediate_size": WIDTH, "max_position_embeddings": 1024}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"steps": 2, "batch": 4, "seeds": 2}.items():
            patch.setitem(here.rows.RECIPE, name, value)
        yield tiny("llama", torch.float32, std=0.15, **size), tokenizer


@pytest.fixture
def study(here: SimpleNamespace, ready: tuple[Any, Any], tmp_path: Path) -> Any:
    return here.setting.Study(*ready, questions(), tmp_path / "results", tmp_path / "scores")


@pytest.fixture(scope="module")
def made(here: SimpleNamespace, ready: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every kind of row of one task and fold; a row that is left out says why."""
    study = here.setting.Study(*ready, questions(), tmp_path_factory.mktemp("made"))
    with untouched(study.model):
        here.study.run(study, here.study.chosen(study, ["rhymes"], [0], kinds(here)))
    return study


def kinds(here: SimpleNamespace) -> list[str]:
    return [name for name in here.rows.ROWS if name.partition("-")[0] not in SETS or name.endswith("-00")]


def read(study: Any, row: str, task: str = "rhymes", fold: int = 0) -> dict[str, Any]:
    return dict(json.loads(study.file(task, fold, row).read_text(encoding="utf-8")))


# ---- what is in the files ----


def test_every_kind_of_row_is_a_file(here: SimpleNamespace, made: Any) -> None:
    pytest.importorskip("peft")
    names = {path.name for path in (made.output / "rhymes").iterdir()}
    assert names == {f"0-{row}.json" for row in kinds(here)}
    assert len(names) >= 28
    asked = [question.id for question in made.folds["rhymes"][0].test]
    for name in names:
        facts = json.loads((made.output / "rhymes" / name).read_text(encoding="utf-8"))
        assert facts.keys() >= FACTS, name
        assert facts["questions"] == asked and len(facts["p_right"]) == len(asked), name
        assert set(facts["right"]) <= {0, 1} and facts["accuracy"] == pytest.approx(sum(facts["right"]) / len(asked))
        assert facts["settings"]["searched"] == 12 - len(asked) and facts["task"] == "rhymes", name
        assert set(facts["seconds"]) == {"making", "scoring", "judging"}


def test_right_is_what_evaluate_says(made: Any) -> None:
    report = nl.evaluate(
        made.model, made.tokenizer, made.folds["rhymes"][0].test, answers="texts", template="cloze", progress=False
    )
    base = read(made, "base")
    assert report.accuracy == base["accuracy"]
    assert report.p_right == pytest.approx(sum(base["p_right"]) / len(base["p_right"]), abs=1e-5)


def test_a_learned_row_keeps_what_was_learned(made: Any) -> None:
    facts = read(made, "learned-256")
    assert facts["neurons"] == len(facts["ids"]) == len(facts["factor"]) == len(facts["role"]) == 256
    assert facts["layer"] == [flat // WIDTH for flat in facts["ids"]]
    turned = facts["learned"]["turned"]
    for role in ("good", "bad"):
        mine = [factor for factor, own in zip(facts["factor"], facts["role"], strict=True) if own == role]
        assert (turned[f"{role}_up"], turned[f"{role}_down"]) == (sum(f > 1 for f in mine), sum(f < 1 for f in mine))
    factors = torch.ones(NEURONS)
    factors[facts["ids"]] = torch.tensor(facts["factor"])
    with nl.edit(made.model, torch.arange(NEURONS), factors):
        report = nl.evaluate(
            made.model, made.tokenizer, made.folds["rhymes"][0].test, answers="texts", template="cloze", progress=False
        )
    assert report.p_right == pytest.approx(sum(facts["p_right"]) / len(facts["p_right"]), abs=1e-4)
    assert {"goal", "steps", "seeds"} & facts["settings"].keys() == {"steps", "seeds"}
    assert read(made, "degraded-256")["settings"]["goal"] == "degrade"
    assert read(made, "learned-all")["neurons"] == NEURONS and "ids" not in read(made, "learned-all")


def test_published_edits_are_those_of_evaluate(made: Any) -> None:
    asked: dict[str, Any] = {"answers": "texts", "template": "cloze", "progress": False}
    fold = made.folds["rhymes"][0]
    scores = nl.attribute(made.model, made.tokenizer, fold.search, "gradient", positions="all", **asked)
    for mode in ("enhance", "degrade"):
        facts = read(made, f"gradient-{mode}")
        report = nl.evaluate(
            made.model, made.tokenizer, fold.test, scores.find(16, 16), mode, positions="all", controls=0, **asked
        )
        assert facts["neurons"] == 32 and report.p_right == pytest.approx(
            sum(facts["p_right"]) / len(facts["p_right"]), abs=1e-4
        )
    assert read(made, "ace-degrade")["settings"]["scored at"] == "answer"
    assert read(made, "ace-degrade")["settings"]["scored"] == len(fold.search)  # fewer than it takes at most


def test_side_effects_are_those_of_the_other_tasks(made: Any) -> None:
    facts = read(made, "learned-256")
    assert set(facts["elsewhere"]) == {"labels", "past_tense"}
    for task, answered in facts["elsewhere"].items():
        template = "continue" if task == "past_tense" else "cloze"
        test = made.folds[task][0].test
        told = nl.evaluate(made.model, made.tokenizer, test, answers="texts", template=template, progress=False)
        assert sum(answered["before"]) / len(test) == told.accuracy and len(answered["after"]) == len(test)
    assert len(facts["texts"]["before"]) == len(facts["texts"]["after"]) > 10
    assert facts["texts"]["before"] != facts["texts"]["after"]
    for row in ("base", "bias", "few-shot", "random-00", "matched-00", "edited-00", "silenced-00", "forgetting-00"):
        assert not {"elsewhere", "texts"} & read(made, row).keys()


def test_sets_of_neurons(here: SimpleNamespace, made: Any) -> None:
    setting = made.at("rhymes", 0)
    chosen, layer = setting.strongest(256).ids, setting.strongest(256).ids // WIDTH
    values = setting.scores("gradient").values.abs()
    assert float(values[chosen].min()) >= float(values[~torch.isin(torch.arange(NEURONS), chosen)].max())
    first, second = here.rows.random_ids(0, setting), here.rows.random_ids(1, setting)
    assert torch.equal(first // WIDTH, layer) and not torch.equal(first, second)
    assert torch.equal(first, here.rows.random_ids(0, setting))
    assert not torch.equal(first, here.rows.random_ids(0, made.at("rhymes", 1)))

    few = setting.strongest(40).ids
    near = matched_like(few, setting.strength, made.anatomy, torch.Generator().manual_seed(0))
    assert (
        torch.equal(near // WIDTH, few // WIDTH)
        and not set(near.tolist()) & set(few.tolist())
        and near.unique().numel() == 40
    )
    others = first[: len(few)]

    def off(ids: torch.Tensor) -> float:
        return float((setting.strength[ids].log() - setting.strength[few].log()).abs().mean())

    assert off(near) < off(others)
    kept, drawn = read(made, "verified"), read(made, "silenced-00")
    assert set(kept["factor"]) == {0.0} and 0 < kept["neurons"] == drawn["neurons"] <= 16
    assert kept["settings"]["verified"]["kept"] == kept["neurons"]
    edited = read(made, "edited-00")
    assert edited["settings"]["factors of"] == "learned-256" and edited["neurons"] == 256


def test_the_bias_is_the_most_likely_one(here: SimpleNamespace, study: Any) -> None:
    setting = study.at("labels", 0)
    way = here.reference.bias(setting)
    assert set(way.settings["bias"]) == {"warm", "cold"} and way.parameters == 1
    prompts = setting.prompts(setting.search)
    scores = here.setting.Asker(study.model, prompts).scores() + way.bias(prompts)
    cold = [prompt.texts.index("cold") for prompt in prompts]
    expected = float(scores.softmax(-1)[range(len(prompts)), cold].sum())
    right = sum(question.choices[question.answer] == "cold" for question in setting.search)
    assert expected == pytest.approx(right, abs=1e-3)  # as often as it is right: where the likelihood is flat
    places = here.reference.bias(study.at("rhymes", 0))
    assert list(places.settings["bias"]) == ["place 1", "place 2", "place 3"] and places.parameters == 2


def test_demonstrations_stand_in_front(here: SimpleNamespace, study: Any) -> None:
    setting = study.at("past_tense", 0)
    way = here.reference.few_shot(setting)
    assert len(way.settings["demonstrations"]) == 4
    (prompt, *_) = setting.prompts(setting.test, way.template)
    text = study.tokenizer.decode(prompt.input_ids)
    by_id = {question.id: question for question in setting.search}
    shown = [by_id[name] for name in way.settings["demonstrations"]]
    assert text == "".join(f"{q.stem} {q.choices[q.answer]}\n\n" for q in shown) + setting.test[0].stem
    labels = here.reference.few_shot(study.at("labels", 0)).settings["demonstrations"]
    right = [q.choices[q.answer] for q in study.at("labels", 0).search for name in labels if q.id == name]
    assert sorted(right) == ["cold", "cold", "warm", "warm"]


def test_peft_learns_on_the_same_objective(here: SimpleNamespace, made: Any) -> None:
    pytest.importorskip("peft")
    prompts = made.at("rhymes", 0).prompts(questions()["rhymes"])
    ask = here.setting.Asker(made.model, prompts)
    with torch.no_grad():
        found = torch.cat([*here.reference.parts(made.model, prompts)])
    right = torch.tensor([prompt.answer for prompt in prompts])
    assert torch.allclose(found, ask.logprobs()[range(12), right], atol=1e-4)
    for row in ("ia3", "lora"):
        facts = read(made, row)
        assert facts["settings"]["rate"] in facts["settings"]["rates"] and facts["settings"]["steps"] == 2
        assert facts["parameters"] > 0 and facts["neurons"] == 0 and "elsewhere" in facts


def test_shuffled_answers_are_other_ones(here: SimpleNamespace, study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def learn(setting: Any, neurons: Any, questions: Any, **more: Any) -> Any:
        seen["questions"] = questions
        raise nl.InputError("enough")

    monkeypatch.setattr(here.rows, "learn", learn)
    setting = study.at("rhymes", 0)
    assert bad(lambda: here.rows.shuffled(setting)) == "enough"
    pairs = list(zip(setting.search, seen["questions"], strict=True))
    assert all(a.choices == b.choices and a.id == b.id for a, b in pairs)
    assert any(a.answer != b.answer for a, b in pairs)


# ---- the work ----


def test_a_second_call_does_nothing(
    here: SimpleNamespace, study: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = here.study.chosen(study, ["labels", "rhymes"], [0, 2], ["base", "bias"])
    assert [(p.row, p.fold, p.task) for p in places[:3]] == [
        ("base", 0, "rhymes"),
        ("base", 0, "labels"),
        ("base", 2, "rhymes"),
    ]
    here.study.run(study, places)
    before = {path: path.read_bytes() for path in study.output.rglob("*") if path.is_file()}
    assert len(before) == 8
    monkeypatch.setattr(here.study, "done", lambda *_: pytest.fail("done again"))
    here.study.run(study, places)
    assert "8 of 8 rows are there" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in study.output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("where", ["asking", "renaming"])
def test_a_killed_row_leaves_nothing(
    here: SimpleNamespace, study: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = here.study.chosen(study, ["labels"], [0], ["base"])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((here.setting.Setting, "answers") if where == "asking" else (Path, "replace")), killed)
        here.study.run(study, places)
    assert [path for path in study.output.rglob("*") if path.is_file()] == []
    here.study.run(study, places)
    assert [path.name for path in (study.output / "labels").iterdir()] == ["0-base.json"]


def test_time_is_over(here: SimpleNamespace, study: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here.study.run(study, here.study.chosen(study, ["labels"], [0, 1], ["base"]), minutes=0)
    assert "2 rows are left" in capsys.readouterr().out and not study.output.exists()


def test_rows_that_cannot_be_done_are_left_out(
    here: SimpleNamespace, study: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    here.study.run(study, here.study.chosen(study, ["labels"], [0], ["ia3", "lora", "edited-00", "base"]))
    told = capsys.readouterr().out
    assert told.count("left out: PEFT is not installed: pip install peft") == 2
    assert "edited-00: left out: it needs the row learned-256" in told
    assert [path.name for path in (study.output / "labels").iterdir()] == ["0-base.json"]


def test_names_and_folds_are_checked(here: SimpleNamespace, study: Any) -> None:
    assert "--rows learned: there is none" in bad(lambda: here.study.chosen(study, ["*"], [0], ["learned"]))
    assert "--tasks films: there is none" in bad(lambda: here.study.chosen(study, ["films"], [0], ["base"]))
    assert "--folds 3: there are 3" in bad(lambda: here.study.chosen(study, ["*"], [3], ["base"]))
    rows = [place.row for place in here.study.chosen(study, ["labels"], [0], ["random-*", "b*"])]
    assert rows == ["base", "bias", *(f"random-{n:02d}" for n in range(20))]
