"""The page of a comparison: every number is in the JSON, nothing is loaded, nobody's text becomes a tag."""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from neuronllm.common.errors import InputError
from neuronllm.page.charts import coarser
from neuronllm.page.page import write_page
from neuronllm.page.parts import Part, part
from neuronllm.page.rendering import style

from .comparisons import NASTY, comparison, timings

MOST_BYTES = 5_000_000
VOID = {"meta", "link", "img", "br", "rect", "line"}


class Parsed(HTMLParser):
    """Every tag, the text of every element with numbers behind it, and the text of scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: list[tuple[str, str]] = []  # data-v, text
        self.scripts: dict[str | None, str] = {}
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs), []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1][2].append(data)

    def handle_endtag(self, tag: str) -> None:
        name, attrs, pieces = self.open.pop()
        assert name == tag, f"<{name}> is ended by </{tag}>"
        text = "".join(pieces).strip()
        classes = (attrs.get("class") or "").split()
        if "data-v" in attrs and "number" in classes:
            self.numbers.append((attrs["data-v"] or "", text))
        if tag == "script":
            self.scripts[attrs.get("id")] = text


def numbers_of(data: Any) -> set[float]:
    if isinstance(data, dict):
        return set().union(*map(numbers_of, data.values())) if data else set()
    if isinstance(data, list):
        return set().union(*map(numbers_of, data)) if data else set()
    return {float(data)} if isinstance(data, (int, float)) and not isinstance(data, bool) else set()


def written(folder: Path, size: str = "small", **changed: Any) -> str:
    facts = comparison(size) | changed
    (folder / "comparison.json").write_text(json.dumps(facts))
    (folder / "timings.json").write_text(json.dumps(timings(facts)))
    return write_page(folder).read_text(encoding="utf-8")


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Parsed:
    return Parsed(written(tmp_path_factory.mktemp("page")))


def test_every_number_of_the_tables_is_in_the_json(page: Parsed) -> None:
    facts = comparison("small")
    known = numbers_of([facts, timings(facts)])
    assert len(page.numbers) > 800
    for behind, text in page.numbers:
        raw = [float(value) for value in behind.split()]
        assert set(raw) <= known
        for value, shown in zip(raw, re.findall(r"[+−]?\d[\d,]*\.?\d*(?:e[+−]?\d+)?", text), strict=True):
            plain = shown.replace("−", "-").replace(",", "")
            digits, _, exponent = plain.partition("e")
            last = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))  # what its last digit counts
            assert abs(float(plain) - value) <= 0.5000001 * last, (value, text)


def test_questions_that_stand_twice_are_said_where_that_is_known(tmp_path: Path) -> None:
    facts = comparison()
    text = written(tmp_path)
    assert text.count(facts["tasks"][0]["shared"][0]["said"]) == 2  # in the summary, and where it says how it was made
    assert "Questions of sentiment that stand twice</dt><dd>none</dd>" in text
    for task in facts["tasks"]:
        del task["shared"]  # as of a comparison that was made before it was counted
    assert "that stand twice" not in written(tmp_path, tasks=facts["tasks"])


def test_a_card_says_what_its_exact_effects_are_of() -> None:
    card = next(one for one in comparison()["cards"] if any(said["exact"] is not None for said in one["methods"]))
    sentence = "an exact effect over the few of them on which the neuron was really silenced"
    html = part("card", card | {"judged": 1})
    assert sentence in html and "<dd>on 1 question</dd>" in html
    assert "<dd>on 8 questions</dd>" in part("card", card)
    assert sentence not in part("card", card | {"methods": [said | {"exact": None} for said in card["methods"]]})


@pytest.mark.slow
def test_what_has_no_agreement_has_its_reason(tmp_path: Path) -> None:
    facts = comparison("7b")
    assert written(tmp_path, "7b").count("random has no agreement: it is random here.") == 1  # not once a task
    for found in facts["methods"]:
        del found["no_agreement"]  # as of a comparison that was made before it was kept
    assert "has no agreement" not in written(tmp_path, "7b", methods=facts["methods"])


def test_the_length_of_answers_has_a_column_where_there_is_one(page: Parsed, tmp_path: Path) -> None:
    assert page.numbers.count(("0.62 0.38", "longest 0.62 (right 0.38)")) == 15  # of 3 methods, 5 edits of one task
    facts = comparison("small")
    text = written(tmp_path, edits=[edit | {"lengths": None} for edit in facts["edits"]])
    assert ">Length</button>" not in text and not [cell for _, cell in Parsed(text).numbers if "longest" in cell]


def test_nothing_is_loaded(page: Parsed) -> None:
    for tag, attrs in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:,")), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
    assert "url(" not in style() and "@import" not in style()
    (policy,) = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert re.fullmatch(
        r"default-src 'none'; script-src ('sha256-[\w+/]{43}='[ ]?){2}; style-src 'unsafe-inline'; "
        r"img-src data: blob:; base-uri 'none'; form-action 'none'",
        policy,
    )


def test_texts_of_others_stay_texts(page: Parsed) -> None:
    assert [attrs.get("id") for tag, attrs in page.tags if tag == "script"] == ["payload", "library", None]
    payload = unpacked(page.scripts["payload"])
    assert len(payload["cards"]) == len(comparison("small")["cards"])
    for card in payload["cards"]:
        assert {tag for tag, _ in Parsed(card).tags}.isdisjoint({"script", "img"})
    assert sum(tag == "article" for tag, _ in page.tags) == 1  # the first card stands there, also without scripts
    assert any("&lt;/script&gt;" in card for card in payload["cards"])
    assert any("\\u202e\\x07&amp;amp;" in card and "\u202e" not in card for card in payload["cards"])
    assert gzip.decompress(base64.b64decode(page.scripts["library"])).startswith(b"/**\n* plotly.js")


def test_names_of_others_stay_texts(tmp_path: Path) -> None:
    facts = json.loads(json.dumps(comparison("small")).replace('"facts"', json.dumps(NASTY[1])))
    facts["model"]["name"] = NASTY[0] + "\ud800"
    parsed = Parsed(written(tmp_path, **facts))
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"img"})
    assert sum(tag == "script" for tag, _ in parsed.tags) == 3
    names = json.dumps([figure["data"] for figure in unpacked(parsed.scripts["payload"])["figures"]["curves"]])
    assert "<img" not in names


def test_tables_are_fit_for_keyboard_and_screen_reader(page: Parsed) -> None:
    tags = page.tags
    assert sum(tag == "caption" for tag, _ in tags) == sum(tag == "table" for tag, _ in tags) > 5
    heads = [attrs for tag, attrs in tags if tag == "th"]
    assert all(attrs["scope"] in ("col", "row") for attrs in heads)
    assert sum(attrs.get("aria-sort") == "none" for attrs in heads) > 50
    regions = [attrs for _, attrs in tags if attrs.get("class") == "scroll"]
    assert all(attrs["tabindex"] == "0" and attrs["role"] == "region" and attrs["aria-label"] for attrs in regions)
    pictures = [attrs for tag, attrs in tags if tag == "svg" or attrs.get("class") == "plot"]
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") == "true" for attrs in pictures)
    (document,) = [attrs for tag, attrs in tags if tag == "html"]
    assert document["lang"] == "en"


def test_the_figures_hold_the_numbers_of_the_json(page: Parsed) -> None:
    facts, figures = comparison("small"), unpacked(page.scripts["payload"])["figures"]
    for found, figure in zip(facts["maps"], figures["maps"], strict=True):
        rows = [[float(f"{value:.3g}") for value in row["values"]] for row in found["rows"]]
        image, good, bad = figure["data"]
        assert image["z"] == rows and (figure["group"], figure["name"]) == (found["task"], found["method"])
        for trace, role in ((good, "good"), (bad, "bad")):
            cards = [facts["cards"][n] for n in trace["customdata"]]
            said = [[one["role"] for one in card["methods"] if one["method"] == found["method"]] for card in cards]
            assert trace["x"] == [card["index"] for card in cards] and said == [[role]] * len(cards) and cards
            assert {card["task"] for card in cards} == {found["task"]}
    of_curves = {(c["task"], c["method"], c["edit"]): [p["accuracy"] for p in c["points"][1:]] for c in facts["curves"]}
    alone = [figure for figure in figures["curves"] if figure["name"] != "all methods"]
    lines = {
        (figure["group"], figure["name"], trace["name"]): trace["y"]
        for figure in alone
        for trace in figure["data"]
        if trace["mode"] == "lines+markers"
    }
    assert lines == of_curves
    bands = [trace for trace in alone[0]["data"] if trace.get("fill")]
    assert len(bands) == 4  # of two edits, over questions and of random sets


def test_bins_are_joined_by_the_largest_whatever_its_sign() -> None:
    assert coarser([1.0, -2.0, None, 0.12345, None, None, 7.0], 2) == [-2.0, 0.123, None, 7.0]


@pytest.mark.slow
def test_the_page_of_a_large_model_is_small(tmp_path: Path) -> None:
    text = written(tmp_path, "7b")
    assert 2_000_000 < len(text.encode()) < MOST_BYTES
    maps = unpacked(Parsed(text).scripts["payload"])["figures"]["maps"]
    assert len(maps) == 24 and {len(figure["data"][0]["z"]) for figure in maps} == {32}
    assert all(figure["data"][0]["dx"] == figure["bin"] == 32 for figure in maps)  # 24 maps: two bins of 16 are one


def test_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path) == written(tmp_path)


def test_without_plotly_the_tables_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    text = written(tmp_path)
    assert text.count("Figures need plotly: pip install &#39;neuronllm[report]&#39;") == 2
    parsed = Parsed(text)
    assert list(parsed.scripts) == ["payload", None] and len(parsed.numbers) > 800


def test_a_comparison_of_little(tmp_path: Path) -> None:
    """One task, one method, nothing measured: the page says what is not there."""
    facts = comparison("small")
    (task, *_), (method, *_), (edit, *_) = facts["tasks"], facts["methods"], facts["edits"]
    method |= {"agreement": None, "stability": None, "layers": None}
    edit |= {"controls": None, "elsewhere": {}, "examples": [], "pcr": None, "interval": None}
    little = {"tasks": [task], "methods": [method], "edits": [edit]}
    text = written(tmp_path, **little, curves=[], maps=[], cards=[], across_tasks=[], across_methods=[])
    for said in ("None were made", "No cards were made", "There is one task only", "No answer was changed"):
        assert said in text
    assert len(text) < 100_000  # no figure, no library


def test_parts_for_a_notebook(tmp_path: Path) -> None:
    facts = comparison("small")
    whole, card = part("comparison", facts), part("card", facts["cards"][0])
    assert not {tag for tag, _ in Parsed(whole + card).tags} & {"script", "button", "html", "body"}
    assert "Layer" in card and facts["tasks"][0]["summary"] in whole
    cards = Parsed(part("cards", {"title": NASTY[0], "cards": facts["cards"]}))
    assert sum(tag == "article" for tag, _ in cards.tags) == len(facts["cards"]) and not cards.scripts

    rows = [{"layer": 3, "expert": 5, "index": 17, "role": "good", "score": 0.01234, "factor": None}]
    told = {"title": "A set", "about": {"method": "ace"}, "layers": {"good": [0, 2], "bad": [1, 0]}, "rows": rows}
    made = Part(part("neurons", told))
    assert "3 · expert 5 · 17" in made.html and "by layer, good: 0, 2; bad: 1, 0" in made.html
    assert "Factor" not in made.html  # no neuron has one
    made.save(tmp_path / "set.html")
    alone = Parsed((tmp_path / "set.html").read_text(encoding="utf-8"))
    assert made.html in (tmp_path / "set.html").read_text(encoding="utf-8") and alone.tags[0][0] == "html"
    with pytest.raises(InputError, match="something stands there"):
        made.save(tmp_path / "set.html")
    (tmp_path / "set.html").write_text("earlier")
    made.save(tmp_path / "set.html", overwrite=True)
    assert made.html in (tmp_path / "set.html").read_text(encoding="utf-8") and len(repr(made)) < 100


def test_bad_facts_of_a_part_are_one_line() -> None:
    with pytest.raises(InputError, match="part 'map': known parts are comparison, card, cards, neurons, tables"):
        part("map", {})
    with pytest.raises(InputError, match=r"part card: not as neuronllm compare writes it \(missing 'spans'\)"):
        part("card", {"layer": 3})


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no comparison there \(missing comparison.json\)"):
        write_page(tmp_path)
    refused = [
        ({"format": "other"}, "not a comparison, its format is not 'neuronllm-comparison'"),
        ({"version": 2}, "version 2 is not known here; update neuronllm"),
        ({"edits": None}, r"not as neuronllm compare writes it \(TypeError: "),
        ({"model": {}}, r"not as neuronllm compare writes it \(UndefinedError: .* has no attribute 'name'\)"),
    ]
    for changed, why in refused:
        with pytest.raises(InputError, match=why) as error:
            written(tmp_path, **changed)
        assert str(error.value).startswith(f"{tmp_path}/comparison.json: ") and "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()
