"""The page of the case study: numbers that are computed here by hand, and everything that is missing said."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neuronllm.common.statistics import holm
from tests.checks import bad

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "real_model"
MODULES = ("page", "pooled", "pictures", "rows", "setting", "reference", "asking")
TASKS = ("one", "two", "three")
BASE = "1111100000"
MORE, LESS = "1111111100", "0111111100"  # 3 questions more; 3 more and 1 less


@pytest.fixture(scope="module")
def here() -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in MODULES:
            sys.modules.pop(name)


def row(task: str, name: str, fold: int, right: str, **more: Any) -> dict[str, Any]:
    facts = {"task": task, "row": name, "fold": fold, "right": [int(digit) for digit in right], "collapsed": False}
    facts |= {"questions": [f"{task}/{fold}/{n}" for n in range(len(right))], "neurons": 0, "parameters": None}
    facts |= {"seconds": {"making": 100.0, "scoring": 10.0, "judging": 10.0}, "versions": {"torch": "9.9"}}
    return facts | {"commit": "0123456789abcdef", "machine": {"threads": 1, "cores": 2}} | more


def folds(task: str, name: str, *rights: str, **more: Any) -> list[dict[str, Any]]:
    return [row(task, name, fold, right, **more) for fold, right in enumerate(rights)]


def made_up() -> list[dict[str, Any]]:
    """Task one: 23 of 30 after 15. Task two: 2 folds, 16 of 20 after 10. Of task three nothing is there."""
    kept = {"ids": [3, 700], "factor": [0.5, 1.5], "role": ["bad", "good"], "layer": [0, 1], "neurons": 256}
    turned = {"good_up": 40, "good_down": 10, "bad_up": 30, "bad_down": 20}
    elsewhere = {"two": {"before": [1, 1, 1, 0], "after": [1, 0, 0, 0]}}
    effects = {"elsewhere": elsewhere, "texts": {"before": [-3.0, -2.0], "after": [-3.5, -2.5]}}
    learned = kept | {"learned": {"turned": turned}} | effects
    return [
        *folds("one", "base", BASE, BASE, BASE),
        *folds("one", "learned-256", MORE, MORE, LESS, **learned),
        *folds("one", "learned-256-one", MORE, MORE, LESS, **kept),
        *folds("one", "bias", BASE[:-1] + "1", BASE[:-1] + "1", BASE[:-1] + "1", parameters=3),
        *folds("one", "degraded-256", "0" * 10, "0" * 10, "0" * 10, neurons=256, collapsed=True),
        *folds("one", "gradient-degrade", "0" * 10, "0" * 10, "0" * 10, neurons=32),
        *folds("one", "gradient-enhance", "0" * 10, "0" * 10, "0" * 10, neurons=32),
        *folds("two", "base", BASE, BASE),
        *folds("two", "learned-256", MORE, MORE, **learned),
    ]


def sets(kind: str, *totals: int) -> list[dict[str, Any]]:
    """Random sets of task one with so many right answers of 30."""
    found = []
    for number, total in enumerate(totals):
        digits = "1" * total + "0" * (30 - total)
        found += folds("one", f"{kind}-{number:02d}", digits[:10], digits[10:20], digits[20:], neurons=256)
    return found


def cells(text: str, heading: str, name: str) -> list[list[str]]:
    """The rows of the tables under a heading that begin with this name."""
    part = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [re.split(r" \| ", line[2:-2]) for line in part.splitlines() if line.startswith(f"| `{name}` |")]


def test_numbers_are_those_by_hand(here: SimpleNamespace) -> None:
    results = here.pooled.Results(made_up() + sets("random", 20, 22, 23, 10), TASKS)
    own = results.of("one", "learned-256")
    assert (own.won, own.lost, own.accuracy, own.gain) == (9, 1, 23 / 30, pytest.approx(8 / 30))
    p_one, p_two = 2 * (1 + 10) / 2**10, 2 * 1 / 2**6  # 1 or fewer of 10, and none of 6, on both sides
    assert own.p == p_one and results.of("two", "learned-256").p == p_two
    # Three tasks: the smallest p three times, the next one twice, the missing one as 1.
    assert results.holm("learned-256") == {"one": 3 * p_one, "two": max(3 * p_one, 2 * p_two)}
    assert results.among("one", "learned-256", "random") == 100 * 3.5 / 4  # three below it, one as good
    assert results.among("one", "learned-256", "matched") is None
    assert results.among("one", "learned-32", "random") is None  # which is not learned like them
    assert here.page.beyond_bias(results, "one", own) == pytest.approx((23 - 18) / 30)
    assert results.seconds == (25 + 12) * 120


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([]) == []


def test_what_counts_as_worked(here: SimpleNamespace) -> None:
    def verdicts(*more: dict[str, Any], tasks: tuple[str, ...] = ("one", "two")) -> list[str | None]:
        results = here.pooled.Results([*made_up(), *more], tasks)
        names = ("learned-256", "degraded-256", "gradient-degrade", "gradient-enhance", "base", "bias", "lora")
        return [results.verdict("one", name) for name in names]

    assert verdicts() == ["yes", "no", "yes", "harm", None, None, None]  # what collapses does not work
    assert verdicts(tasks=TASKS)[0] == "no"  # p of .064 by the third task
    assert verdicts(*sets("random", 20, 22, 23, 10))[0] == "no"
    assert verdicts(*sets("random", 20, 22, 15, 10))[0] == "yes"
    assert verdicts(*sets("random", 20), *sets("matched", 30))[0] == "no"
    assert verdicts(*sets("edited", 30))[0] == "yes"  # a comparison that decides nothing


def test_the_page_says_them(here: SimpleNamespace) -> None:
    results = here.pooled.Results(made_up() + sets("random", 20, 22, 15, 10), ("one", "two"))
    text = here.page.page(results)
    did, cost = cells(text, "one", "learned-256")
    assert did[1] == "3" and did[2].startswith("0.767 (0.") and did[3:5] == ["+26.7", "+9 -1"]
    assert did[5:] == ["0.021", "0.043", "100", "n/a", "n/a", "n/a", "n/a", "+16.7", "yes"]
    assert cost[1] == "256" and cost[2].startswith("-50.0 (-") and cost[3] == "-0.500 (-0.500 to -0.500)"
    assert cost[4] == "100"
    assert cells(text, "one", "degraded-256")[0][-1] == "no, one answer"
    assert cells(text, "one", "bias")[1][1] == "3 parameters"
    assert cells(text, "one", "random") == [["`random`", "4 of 20", "0.333", "0.583", "0.733"]]
    assert cells(text, "one", "lora") == [] == cells(text, "In short", "lora")  # named under "Missing" only
    assert cells(text, "Which way factors went", "learned-256")[0][1:] == ["60% of 300", "60% of 200"]
    assert cells(text, "In short", "learned-256")[0][2:] == ["+26.7 yes", "+30.0 yes (2 of 3 folds)"]
    assert cells(text, "In short", "gradient-enhance")[0][2:] == ["-50.0 harm", "missing"]
    assert cells(text, "In short", "base")[0][2:] == ["0.500", "0.500"]
    enhancing = sum(facts.aim == "enhance" for facts in here.rows.ROWS.values())
    told = "of 4 pairs of a row and a task, 3 worked, 0 did not, and 1 did the opposite"
    assert f"- **enhance**: {told}; {2 * enhancing - 4} pairs are missing." in text
    assert "`lora` 6" in text and "`random` 108" in text and "`learned-256` 1," in text and "`base` 1" in text
    assert "torch 9.9" in text and "0123456789." in text


def test_a_page_of_nothing(here: SimpleNamespace) -> None:
    assert here.page.page(here.pooled.Results([])).endswith("\nNo results have been committed yet.\n")


def test_other_questions_are_refused(here: SimpleNamespace) -> None:
    rows = [row("one", "base", 0, BASE), row("one", "bias", 0, BASE, questions=["else"] * 10)]
    assert "one, fold 0: bias was asked other questions" in bad(lambda: here.pooled.Results(rows).of("one", "bias"))


def test_pictures(here: SimpleNamespace) -> None:
    pytest.importorskip("matplotlib")
    results = here.pooled.Results(made_up() + sets("random", 20, 22, 15, 10), TASKS)
    for name in here.pictures.PICTURES:
        text = here.pictures.drawn(name, results)
        assert text.startswith("<?xml") and text == here.pictures.drawn(name, results)
        assert ">one<" in text and ">two<" in text and ">three<" not in text
        assert f"](images/{name})" in here.page.page(results)
        assert here.pictures.drawn(name, here.pooled.Results(folds("one", "base", BASE))) is None


def test_the_committed_page_is_of_the_committed_files(here: SimpleNamespace) -> None:
    results = here.pooled.Results(here.pooled.read(FOLDER / "results"))
    assert (ROOT / "docs" / "case_study.md").read_text(encoding="utf-8") == here.page.page(results)
