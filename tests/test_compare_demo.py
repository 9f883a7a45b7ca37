"""`nl.compare` on the bundled model: killed at any moment it ends with the same bytes, which its page shows."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import signal
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import neuronllm as nl
from neuronllm.comparing.budget import Budget
from tests.killing import forked

pytestmark = pytest.mark.slow

TINY = Budget(
    search=8, expensive=4, validation=6, test=12, elsewhere=6, judged=1, effects=3200, controls=2, curve_controls=1
)
SIDES = ("search", "validation", "test")
TASKS = {task: [nl.demo_task(task, side) for side in SIDES] for task in ("facts", "ordering")}
ASKED = {"edits": ["enhance"], "k": 4, "template": "plain", "budget": TINY, "progress": False}
KILLS = 10


@pytest.fixture(scope="module")
def demo():
    return nl.load_model("demo")


@pytest.fixture(scope="module")
def made(demo, tmp_path_factory):
    return nl.compare(*demo, TASKS, ["gradient", "random"], output=tmp_path_factory.mktemp("made") / "whole", **ASKED)


def test_killed_at_random_moments(demo, made, tmp_path) -> None:
    """kill -9 after a while that is drawn by a seed; --resume goes on, and is killed itself every other time."""

    def work(output: Path, resume: bool = False):
        return lambda: nl.compare(*demo, TASKS, ["gradient", "random"], output=output, resume=resume, **ASKED)

    whole, generator, start = (made.folder / "comparison.json").read_bytes(), random.Random(0), time.perf_counter()
    assert forked(work(tmp_path / "timed")) == 0
    seconds, killed = time.perf_counter() - start, 0
    for number in range(KILLS):
        output, resume = tmp_path / str(number // 2), number % 2 == 1
        killed += forked(work(output, resume), generator.uniform(0, seconds / 2)) == -signal.SIGKILL
        if resume:
            assert forked(work(output, resume=True)) == 0
            assert (output / "comparison.json").read_bytes() == whole
            assert {path.name for path in output.iterdir()} == {path.name for path in made.folder.iterdir()}
    assert killed


class Cells(HTMLParser):
    """The numbers of every numeric cell, as written, with the marks of its row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.marks: dict[str, str | None] = {}
        self.found: list[tuple[dict[str, str | None], str]] = []
        self.payload, self.inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        if tag == "tr":
            self.marks = {name.removeprefix("data-"): about[name] for name in about if name.startswith("data-")}
        if tag in ("td", "span") and {"n", "number"} & set((about.get("class") or "").split()):
            self.inside = "number"
            self.found.append((self.marks, ""))
        elif tag == "script" and about.get("id") == "payload":
            self.inside = "payload"

    def handle_data(self, data: str) -> None:
        if self.inside == "number":
            marks, text = self.found.pop()
            self.found.append((marks, text + data))
        elif self.inside == "payload":
            self.payload += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def numbers(data: Any) -> set[float]:
    if isinstance(data, (dict, list)):
        return set().union(*map(numbers, data.values() if isinstance(data, dict) else data))
    return {float(data)} if isinstance(data, (int, float)) and not isinstance(data, bool) else set()


def is_one_of(written: str, known: set[float]) -> bool:
    """Whether it is one of these, rounded to as many digits as are written."""
    plain = written.replace("\N{MINUS SIGN}", "-").replace(",", "")
    digits, _, exponent = plain.partition("e")
    last = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    if "." not in digits and "e" not in plain:  # three digits that count: -1,230
        last = max(last, 10.0 ** (len(digits.lstrip("+-")) - 3))
    return any(abs(float(plain) - value) <= 0.5000001 * last for value in known)


def test_every_number_of_the_page_is_in_the_json(made) -> None:
    """Of a row those of its own task, method and edit; of cards and figures, those of that card and that figure."""
    page = Cells((made.folder / "report.html").read_text(encoding="utf-8"))
    clock = json.loads((made.folder / "timings.json").read_text())["methods"]
    timed = [{"task": t, "method": m, **found} for m, tasks in clock.items() for t, found in tasks.items()]
    said = [{"task": card["task"], **one} for card in made.data["cards"] for one in card["methods"]]
    rows = [*(made.data[name] for name in ("edits", "methods", "curves")), timed, said]
    bases = [{"task": task["name"], "method": "none", "edit": "no edit", **task} for task in made.data["tasks"]]
    side_by_side = numbers([made.data["across_tasks"], made.data["across_methods"]])
    checked = 0
    for marks, text in page.found:
        mine = [one for entries in (*rows, bases) for one in entries if not {*marks.items()} - {*_names(one)}]
        known = numbers(mine) if marks else side_by_side | numbers([made.data["cards"], made.data["tasks"]])
        for written in re.findall(r"[+\N{MINUS SIGN}]?\d[\d,]*\.?\d*(?:e[+\N{MINUS SIGN}]?\d+)?", text):
            assert is_one_of(written, known), (marks, text)
            checked += 1
    assert checked > 400
    payload = json.loads(gzip.decompress(base64.b64decode(page.payload)))
    for card, html in zip(made.data["cards"], payload["cards"], strict=True):
        for _, text in Cells(html).found:
            for written in re.findall(r"[+\N{MINUS SIGN}]?\d[\d,]*\.?\d*(?:e[+\N{MINUS SIGN}]?\d+)?", text):
                assert is_one_of(written, numbers(card)), text
    for found, figure in zip(made.data["maps"], payload["figures"]["maps"], strict=True):
        assert numbers(figure["data"][0]["z"]) <= numbers(found["rows"])
    for figure in payload["figures"]["curves"]:
        mine = [curve for curve in made.data["curves"] if curve["task"] == figure["group"]]
        known = numbers(mine) | numbers([task for task in made.data["tasks"] if task["name"] == figure["group"]])
        assert {y for trace in figure["data"] for y in trace["y"]} <= known


def _names(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """What a row of the page may be marked by."""
    return [(name, entry[name]) for name in ("task", "method", "edit", "role") if name in entry]
