"""Reports show themselves: a sentence, every number of the page from the report, changed answers before and after."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.judging.shown import report_shown, sentence
from neuronllm.model.anatomy import Anatomy
from tests.test_page import Parsed, numbers_of
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

CHOICES = ("red", "blue", "<b>")


@pytest.fixture(scope="module")
def reports() -> dict[str, Any]:
    """Of a strong edit of a random model: in letters, in texts, written, and of the model without an edit."""
    tokenizer = byte_level()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=512)
    ids = torch.arange(0, 56, 4)
    neurons = nl.NeuronSet(ids, np.full(len(ids), "good"), torch.zeros(len(ids)), Anatomy.of(model))
    questions = [nl.Question(f"Which is <i>number {n}?", CHOICES, n % 3, id=f"q{n}") for n in range(24)]
    how: dict[str, Any] = {"good": -6.0, "controls": 3, "progress": False}
    more = {"letters": {"unrelated": questions[:6]}, "texts": {}, "generate": {"max_new_tokens": 3}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        made = {
            answers: nl.evaluate(model, tokenizer, questions, neurons, answers=answers, **how, **given)
            for answers, given in more.items()
        }
        return {**made, "none": nl.evaluate(model, tokenizer, questions, progress=False)}


def rows_of(html: str, table: str) -> list[list[str]]:
    """The texts of a table's cells, row by row."""
    (found,) = re.findall(rf'id="table-{table}">(.*?)</table>', html, re.DOTALL)
    body = found.partition("<tbody>")[2]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall("<tr>(.*?)</tr>", body, re.DOTALL)]


@pytest.mark.parametrize("name", ["letters", "texts", "generate", "none"])
def test_every_number_is_in_the_report(reports: dict[str, Any], name: str) -> None:
    report = reports[name]
    known = numbers_of(json.loads(json.dumps(report.to_dict())))
    parsed = Parsed(report._repr_html_())
    assert len(parsed.numbers) >= (4 if name == "none" else 30)
    for behind, text in parsed.numbers:
        raw = [float(value) for value in behind.split()]
        assert set(raw) <= known
        for value, shown in zip(raw, re.findall(r"[+−]?\d[\d,]*\.?\d*(?:e[+−]?\d+)?", text), strict=True):
            plain = shown.replace("−", "-").replace(",", "")
            digits, _, exponent = plain.partition("e")
            last = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
            assert abs(float(plain) - value) <= 0.5000001 * last, (value, text)


def test_the_file_loads_nothing(reports: dict[str, Any], tmp_path: Path) -> None:
    path, report = tmp_path / "report.html", reports["letters"]
    report.show(path)
    text = path.read_text(encoding="utf-8")
    tags = Parsed(text).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "img", "iframe", "b", "i"})
    assert not [attrs for _, attrs in tags if {"src", "href", "srcset", "data"} & set(attrs)]
    policies = [attrs["content"] for _, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert report._repr_html_() in text and report.show().html == report._repr_html_()
    with pytest.raises(nl.InputError, match="something stands there"):
        report.show(path)
    report.show(path, overwrite=True)


def test_changed_answers_before_and_after(reports: dict[str, Any]) -> None:
    for name in ("letters", "texts"):
        report = reports[name]
        right = {f"q{n}": CHOICES[n % 3] for n in range(24)}
        became = {row["id"]: "right" for row in report.flipped["wrong_to_right"]}
        became |= {row["id"]: "wrong" for row in report.flipped["right_to_wrong"]}
        assert became and set(became) <= {row["id"] for row in report.changed}
        for row in report.changed:
            assert {row["before"], row["after"]} <= set(CHOICES) and row["before"] != row["after"]
            assert row["right"] == right[row["id"]]
            assert (row["after"] == row["right"]) == (became.get(row["id"]) == "right")
        expected = [
            [row["question"], row["before"], row["after"], row["right"], became.get(row["id"], "other")]
            for row in report.changed
        ]
        shown = rows_of(report._repr_html_(), "changed")
        assert [[cell.replace("&lt;", "<").replace("&gt;", ">") for cell in row] for row in shown] == expected
    written = reports["generate"]
    assert len(rows_of(written._repr_html_(), "changed")) == len(written.changed) > 5


def facts(after: float, band: tuple[float, float] | None, p: float, **more: Any) -> dict[str, Any]:
    drawn = band and {"sets": 20, "accuracy": {"p2.5": band[0], "p97.5": band[1]}}
    ci = {whose: {"accuracy": (-0.25, 0.25)} for whose in ("base", "edited", "change")}
    shown = {"base": {"accuracy": 0.5}, "edit": {}, "questions": 60, "ci": ci, "controls": drawn, "mcnemar": p}
    return {"accuracy": after, **shown, **more}


def test_the_sentence_says_whether_it_is_more_than_luck() -> None:
    def said(*given: Any, **more: Any) -> str:
        return sentence(facts(*given, **more), {"accuracy": "accuracy"})

    assert said(0.75, (0.4, 0.6), 0.01) == (
        "Accuracy 0.500 → 0.750, 95 % of the change −0.250 to +0.250, p = 0.010, 20 random sets 0.400 to 0.600: "
        "raised beyond random sets and chance."
    )
    assert said(0.25, (0.4, 0.6), 0.01).endswith(": lowered beyond random sets and chance.")
    none = ": no effect beyond random sets and chance is shown."
    assert said(0.75, (0.4, 0.8), 0.01).endswith(none) and said(0.75, (0.4, 0.6), 0.05).endswith(none)
    assert said(0.75, None, 0.01).endswith("p = 0.010: no effect is shown, as no random sets stand beside it.")
    assert "lean on one option" in said(0.75, (0.4, 0.6), 0.01, collapsed=True)
    learned = {"forced": {"accuracy": 0.75}, "matched": {"accuracy": {"p2.5": 0.5, "p97.5": 0.8125}}}
    line = said(0.75, (0.4, 0.6), 0.01, learned=learned, holm={"McNemar": 0.03})
    assert "p (Holm) = 0.030, matched sets learned the same way 0.500 to 0.812" in line and line.endswith(none)


def test_long_lists_are_cut_and_say_so() -> None:
    changed = [{"id": "", "number": n, "question": None, "before": "a", "after": "b", "right": "c"} for n in range(50)]
    given = facts(0.5, None, 1.0, flips={"right_to_wrong": 0, "wrong_to_right": 0}, changed=changed)
    _, shown = report_shown("title", {}, [], given, {"accuracy": "accuracy"})
    table = shown["tables"][-1]
    assert len(table.rows) == 40 and table.caption == "Questions that are answered otherwise, 40 of 50"
    assert table.rows[1].cells[0].text == "number 1"
