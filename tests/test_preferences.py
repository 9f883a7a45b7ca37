"""The written pairs of examples/real_model, and the two examples that they and H-Neurons are about, on small models."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm.common.statistics import auroc
from tests.checks import untouched
from tests.tiny import tiny
from tests.tiny_tokenizers import chat

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "real_model"
PAGES = ("behaviours", "page", "pooled", "pictures")
MODULES = ("preferences", "h_neurons", "study", "rows", "setting", "reference", "asking", *PAGES)


@pytest.fixture(scope="module")
def here() -> Iterator[SimpleNamespace]:
    """The modules, as a script beside them imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        modules = SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name, value in {"steps": 2, "batch": 4, "seeds": 2}.items():
            patch.setitem(modules.rows.RECIPE, name, value)
        yield modules
        for name in MODULES:
            sys.modules.pop(name)


# ---- the pairs ----


def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / "politeness.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_pairs_are_questions() -> None:
    questions, pairs = nl.load_questions(FOLDER / "politeness.jsonl"), rows()
    assert len(questions) == len(pairs) >= 200
    for question, pair in zip(questions, pairs, strict=True):
        assert question.stem == pair["prompt"] and question.choices[question.answer] == pair["chosen"]
        assert question.id == pair["id"]
    assert 0.4 < sum(question.answer for question in questions) / len(questions) < 0.6  # where the polite one stands


def test_length_does_not_tell_which_is_polite() -> None:
    pairs = rows()
    longer = [len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs]
    assert 0.45 < sum(longer) / len(pairs) < 0.55
    assert all(len({pair[name] for pair in pairs}) > 0.98 * len(pairs) for name in ("prompt", "chosen", "rejected"))


# ---- their page ----


def row(name: str, fold: int, right: list[int], **more: Any) -> dict[str, Any]:
    facts = {"task": "politeness", "row": name, "fold": fold, "right": right, "collapsed": False}
    return facts | {"questions": [f"politeness/{fold}/{n}" for n in range(len(right))]} | more


def test_the_page_counts_by_hand(here: SimpleNamespace) -> None:
    texts = {"before": [-3.0, -2.0], "after": [-3.5, -2.0]}
    preferences = [
        *(row("base", fold, [1, 1, 0, 0, 0]) for fold in (0, 1)),
        *(row("learned-256-one", fold, [0, 1, 1, 1, fold], texts=texts) for fold in (0, 1)),
        *(row("random-00", fold, [1, 1, 0, 0, 1]) for fold in (0, 1)),
        row("random-01", 0, [1, 1, 1, 1, 1]),  # one fold alone is no set to compare with
    ]
    shares = {"right": 5, "made_up": 7}
    detection = {"row": "detection", "fold": 0, "searched": shares, "tested": shares, "weight": [0.5, -0.5, 2.0]}
    before, after = (
        {"inclusion": 0.5, "wrong": 0.25, "abstained": 0.25},
        {"inclusion": 0.4, "wrong": 0, "abstained": 0.6},
    )
    among = {"inclusion": 10.0, "wrong": 100.0, "abstained": None}
    edited = {"row": "suppressed", "fold": 0, "neurons": 2, "base": before, "edited": after, "texts": texts}
    edited |= {"controls": {name: {"percentile_of_edit": place} for name, place in among.items()}}
    text = here.behaviours.page(preferences, [detection | {"auroc": 0.75, "auroc_of_logprob": 0.5}, edited])
    assert "10 pairs. Random sets: 2 of fold 0, 1 of fold 1." in text
    (line,) = (line for line in text.splitlines() if line.startswith("| `learned-256-one`"))
    p = math.comb(7, 0) + math.comb(7, 1) + math.comb(7, 2)  # of 7 that changed 2 were lost, on either side
    assert f"| +30.0 | +5 -2 | {2 * p / 2**7:.3f} | 100 | -0.250 |" in line
    assert "| 0 | 7 and 5 | 7 and 5 | 2 | 0.750 | 0.500 |" in text
    assert "| suppressed | 0 | 2 | 0.500 to 0.400 (10) | 0.250 to 0.000 (100) | 0.250 to 0.600 | -0.250 |" in text
    assert here.behaviours.page([], []).count("Nothing has been committed yet.") == 2


def test_the_committed_page_is_of_the_committed_files(here: SimpleNamespace) -> None:
    committed = (here.pooled.read(FOLDER / name) for name in ("preferences", "h_neurons"))
    text = (FOLDER.parents[1] / "docs" / "behaviours.md").read_text(encoding="utf-8")
    assert text == here.behaviours.page(*committed)


# ---- the examples ----


def pairs_file(path: Path) -> Path:
    words = ["ashen", "bayou", "cobra", "damson", "elmwood", "fennel", "gumbo", "hayloft", "inkwell", "jaybird"]
    words += ["kindle", "logbook"]
    pairs = [
        {"id": f"politeness/{n}", "prompt": f"What is {w}?", "chosen": f"Please, {w}s.", "rejected": f"{w[::-1]}, no."}
        for n, w in enumerate(words)
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("model"), chat()
    size = {"vocab_size": len(tokenizer), "intermediate_size": 800, "max_position_embeddings": 1024}
    tiny("llama", torch.float32, std=0.15, **size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_preferences(here: SimpleNamespace, model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "results"
    told = ["--pairs", pairs_file(tmp_path / "pairs.jsonl"), "--model", model_folder, "--output", output]
    told += ["--scores", tmp_path / "scores"]
    asked = [str(flag) for flag in told]
    kinds = ["base", "learned-256", "bias", "length", "random-00", "random-01"]
    assert here.preferences.main([*asked, "--rows", *kinds]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = {path.name for path in (output / "politeness").iterdir()}
    assert files == {f"{fold}-{kind}.json" for fold in (0, 1) for kind in kinds}

    model, tokenizer = nl.load_model(model_folder, dtype=torch.float32)
    seen = []
    for fold in (0, 1):
        facts = {kind: json.loads((output / "politeness" / f"{fold}-{kind}.json").read_text()) for kind in kinds}
        test = [q for q in nl.load_questions(told[1]) if q.id in facts["base"]["questions"]]
        seen += [question.id for question in test]
        report = nl.evaluate(
            model, tokenizer, test, answers="texts", length="tokens", template="chat:continue", progress=False
        )
        assert report.accuracy == facts["base"]["accuracy"]
        weight = facts["length"]["settings"]["a token"]
        prompts = nl.render(tokenizer, test, "none", "chat:continue", answers="texts", length="tokens")
        before = here.setting.Asker(model, prompts).scores()
        sizes = torch.tensor([[len(ids) for (ids,) in prompt.option_ids] for prompt in prompts])
        picked = (before + weight * sizes).argmax(-1).tolist()
        right = sum(choice == prompt.answer for choice, prompt in zip(picked, prompts, strict=True))
        assert facts["length"]["accuracy"] == pytest.approx(right / len(test))
        assert facts["learned-256"]["neurons"] == facts["random-00"]["neurons"] == 256
    assert sorted(seen) == sorted(question.id for question in nl.load_questions(told[1]))
    assert lines[-1].startswith("| random, least to most | ") and lines[-1].count("(2 sets)") == 2

    before = {path: path.read_bytes() for path in (output / "politeness").iterdir()}
    assert here.preferences.main([*asked, "--rows", *kinds]) == 0  # nothing is left to do
    assert {path: path.read_bytes() for path in before} == before
    assert here.preferences.main([*asked, "--folds", "2"]) == 2
    assert "there are 2, the first is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_h_neurons(here: SimpleNamespace, tmp_path: Path, capsys: Any) -> None:
    """On the bundled model: it knows some of the facts that it is asked, and makes up others."""
    questions = nl.load_questions(nl.demo_task("facts", "search"))[:60]
    asked = [
        nl.Question(q.stem, answer=q.choices[q.answer], id=f"facts/{n}", answers=q.answers)
        for n, q in enumerate(questions)
    ]
    nl.save_questions(tmp_path / "facts.jsonl", asked)
    output = tmp_path / "results"
    told = ["--model", "demo", "--task", "facts", "--questions", tmp_path / "facts.jsonl", "--output", output]
    told += ["--template", "cloze", "--samples", 1, "--max-new-tokens", 2, "--controls", 2]
    assert here.h_neurons.main([str(flag) for flag in told]) == 0
    said = capsys.readouterr().out
    facts = {row: json.loads((output / "facts" / f"0-{row}.json").read_text()) for row in ("answers", "detection")}

    # The detection, from the file of answers on.
    model, tokenizer = nl.load_model("demo", dtype=torch.float32)
    known = {question.id: question for question in asked}
    test = facts["answers"]["test"]
    shown, wrong = [], []
    for name, (text,) in zip(test["questions"], test["texts"], strict=True):
        shown.append(nl.Question(known[name].stem, answer=text, id=name))
        wrong.append(known[name].choices[0].lower() not in text.lower())
    weights = torch.zeros(nl.Anatomy.of(model).n_neurons)
    weights[facts["detection"]["ids"]] = torch.tensor(facts["detection"]["weight"])
    with untouched(model):
        prompts = nl.render(tokenizer, shown, "none", "cloze", answers="texts")
        values = nl.activations(model, tokenizer, prompts, activation="cett", progress=False)
    expected = auroc((values.double() @ weights.double()).numpy(), torch.tensor(wrong).numpy())
    assert facts["detection"]["auroc"] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert math.isfinite(expected), said
    for row in ("suppressed", "learned"):
        made = json.loads((output / "facts" / f"0-{row}.json").read_text())
        shares = made["edited"]
        assert sum(shares.values()) == pytest.approx(1) and made["controls"]["sets"] == 2
        assert len(made["ids"]) == made["neurons"] == len(made["factor"])
    assert set(json.loads((output / "facts" / "0-suppressed.json").read_text())["factor"]) == {0.0}
