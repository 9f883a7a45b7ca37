"""The pages and pictures of the benchmarks: what the JSON says, how often it was measured, where, and what was not."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.benches import modules
from tests.test_bench import ROOT, known

pytestmark = pytest.mark.slow  # pictures that are drawn


@pytest.fixture(scope="module")
def bench() -> Any:
    return modules("harness", "record", "report", "suites", "units", "plots", "conditions", "pages", "shapes")


@pytest.mark.parametrize("name", ["performance.md", "leaderboard.md"])
def test_the_page_is_what_the_results_say(bench: Any, name: str) -> None:
    page = bench.pages.PAGES[name](bench.record.read(bench.record.RESULTS))
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page, "run: python -m bench report"


def test_the_pictures_show_what_the_results_say(bench: Any) -> None:
    results = bench.record.read(bench.record.RESULTS)
    assert bench.plots.pictures(results)
    assert bench.plots.stale(results, ROOT / "docs" / "images") == [], "run: python -m bench report"


def test_pictures_are_drawn_anew_where_figures_have_changed(bench: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result, plots = known(bench), bench.plots
    bars, curves = plots.pictures([result])
    (pair,) = bars.bars  # of times: memory and what did not run are left out
    assert pair["times"] == [[2.0] * 3, [0.5] * 3] and pair["verdict"] == "4.00x faster"
    assert curves.curves[0]["points"] == [[2.0, 2.0], [4.0, 3.0]]
    (tmp_path / "performance-old.svg").write_text("of a benchmark that is no more")
    (tmp_path / "other.svg").write_text("not ours")
    assert len(plots.write([result], tmp_path)) == 3 and plots.write([result], tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {bars.file, curves.file, "other.svg"}
    assert (tmp_path / bars.file).read_text() == plots.drawn(bars)  # the same figures, the same bytes
    assert "4.00x faster" in plots.drawn(bars) and "500 ms more for 1 more" in plots.drawn(curves)
    bent = dataclasses.replace(curves, curves=({**curves.curves[0], "off": 0.5, "power": 2.0},))
    assert "like steps to the power of 2.00" in plots.drawn(bent)
    page = bench.report.page([result])
    assert all(f"](images/{picture.file})" in page for picture in (bars, curves))
    drawing = (tmp_path / curves.file).read_text()
    (tmp_path / curves.file).write_text(drawing.replace("500 ms more", "100 ms more"))
    assert plots.stale([result], tmp_path) == [curves.file]  # edited by hand
    plots.write([result], tmp_path)
    assert (tmp_path / curves.file).read_text() == drawing
    slower = json.loads(json.dumps(result).replace('"median": 0.5', '"median": 0.6'))
    assert plots.stale([slower], tmp_path) == [bars.file]


def test_the_page_shows_every_figure(bench: Any) -> None:
    result = known(bench)
    page = bench.report.page([result])
    for text in (
        "| toy, 1 thread | scores | plain scores | 2 s (2 s to 2 s) a prompt, 2 runs, 1.0 MiB "
        "| 500 ms (500 ms to 500 ms) a prompt, 4 runs, 2.0 MiB | 4.00x faster | ≥ 5x, not met |",
        "| 1.0 MiB | 2.0 MiB | 2.00x the memory | ≤ 1.1x, not met |",
        "| 5 s | ≤ 5 s, met |",
        "scores against steps (toy, 1 thread); about 1 s + 500 ms x steps, off by 0.0% at most",
        "| run | peak |",
        "Checked: scores: difference 1.0e-06. Plain: by hand.",
        str(result["versions"]["torch"]),
    ):
        assert text in page
    assert "what did not run" not in page and "not met" in bench.report.as_text(result)


def test_the_page_begins_with_what_was_met_and_missed(bench: Any) -> None:
    result = known(bench)
    short, figures = bench.report.page([result]).split("## In short\n")[1].split("<details>", 1)
    bars = [view["met"] for view in result["views"] if view["bar"]]
    assert f"{sum(bars)} of {len(bars)} bars were met." in short and not all(bars)
    told = [line for line in short.splitlines() if line.startswith("| toy")]
    assert told[0] == "| toy, 1 thread | scores | plain scores | 4.00x faster | ≥ 5x, not met |"
    assert len(told) == bars.count(False)  # the first one was missed, too: those that were met are folded up below
    met = copy.deepcopy(result)
    for view in met["views"]:
        view["met"] = True
    short = bench.report.page([met]).split("## In short\n")[1].split("<details>")[0]
    assert [line for line in short.splitlines() if line.startswith("| toy")] == [told[0].replace("not met", "met")]
    assert "## In short" not in bench.report.page([])


def test_an_empty_page_says_so(bench: Any) -> None:
    assert "No results" in bench.report.page([])


def changed(result: dict[str, Any], **more: Any) -> dict[str, Any]:
    return copy.deepcopy(result) | more


def test_one_run_has_no_spread_and_says_so(bench: Any) -> None:
    result = known(bench)
    result["sides"]["plain"]["times"] = [4.0]
    page = bench.report.page([result])
    assert (
        "| plain scores | 2 s a prompt, 1 run, 1.0 MiB | 500 ms (500 ms to 500 ms) a prompt, 4 runs, 2.0 MiB |" in page
    )
    assert "| 2 | 2 s | 2 |" in page  # a point of a series, and its number of runs
    (bars, _) = bench.plots.pictures([result])
    assert bars.bars[0]["against"] == "plain scores (1 run), a prompt"


@pytest.mark.parametrize(
    ("ratio", "kind", "of", "said"),
    [
        (1.0049, "speed-up", "time", "1.00x the speed"),
        (1.005, "speed-up", "time", "1.00x faster"),
        (0.0037, "cost", "time", "0.0037x the time"),
        (0.001, "cost", "time", "0.0010x the time"),
        (0.0996, "cost", "time", "0.10x the time"),
        (19.99, "cost", "peak", "19.99x the memory"),
        (20.4, "speed-up", "peak", "20x less memory"),
        (0.5, "speed-up", "peak", "0.50x the other's memory over ours"),
    ],
)
def test_ratios_in_words(bench: Any, ratio: float, kind: str, of: str, said: str) -> None:
    assert bench.units.verdict(ratio, kind, of) == said


def test_a_busy_machine_is_marked(bench: Any) -> None:
    result = known(bench)
    cores = result["machine"]["cores"]
    loaded = changed(result, load={"before": 1.2 * cores, "after": 0.1})
    for found, times in ((result, 0), (loaded, 1)):
        assert bench.report.page([found]).count("| toy, 1 thread, busy machine | scores | plain scores | 2 s") == times
    assert bench.plots.pictures([loaded])[0].bars[0]["what"] == "scores, busy machine"
    gpu = changed(loaded, machine=loaded["machine"] | {"gpu": "a GPU", "cores": 16 * cores})
    assert bench.conditions.where(gpu) == "toy, a GPU"


def test_what_results_share_is_said_once(bench: Any) -> None:
    one = known(bench)
    one["machine"] |= {"waiting": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": None}}
    two = changed(one, threads=2, load={"before": 0.5, "after": 0.25})
    other = changed(one, benchmark="suite.other", notes=["By itself"])
    text = "\n".join(bench.conditions.conditions([one, two, other]))
    for once in (one["machine"]["cpu"], f"torch {one['versions']['torch']}", "OMP_WAIT_POLICY=PASSIVE", "a model"):
        assert text.count(once) == 1
    assert "- `suite.known`: Plain: by hand.\n" in text and "toy, 1 thread: By itself. Load 0.00 before" in text
    assert "  - toy, 2 threads: Load 0.50 before and 0.25 after." in text and "SPINCOUNT" not in text
    older = changed(one, versions=one["versions"] | {"torch": "1.0"})
    del older["machine"]["waiting"]
    text = "\n".join(bench.conditions.conditions([one, older]))
    assert text.count("torch 1.0") == 1 and text.count("Waiting threads") == 1 and text.count("a model") == 2


def test_what_was_not_measured_is_listed(bench: Any) -> None:
    result = known(bench)
    page = bench.report.page([result])
    assert "- kernels: on cuda nothing of `kernels.glu_score`, " in page and "- quality" not in page
    models = next(line for line in page.splitlines() if line.startswith("- Models without any result"))
    assert "llama-2-7b" in models and "toy" not in models
    benchmark = bench.suites.ALL["engine.ig"]
    there = [
        changed(result, benchmark=name, shape="small", threads=n)
        for name in ("engine.ig", "engine.exact")
        for n in (1, 2)
    ]
    (*_, line) = [line for line in bench.report.page(there[:-1]).splitlines() if line.startswith("- engine: ")]
    on_cpu, on_gpu = line.split("; on cuda ")
    assert benchmark.threads == (1, 2) and "`engine.ig`" not in on_cpu and "`engine.exact` (small at 2)" in on_cpu
    assert "`engine.gradient`," in on_cpu and "nothing of `engine.ig`, `engine.exact`" in on_gpu


def test_a_page_of_everything_lists_nothing(bench: Any) -> None:
    result, every = known(bench), []
    for name, benchmark in bench.suites.ALL.items():
        for device, shapes in benchmark.shapes.items():
            for threads in benchmark.threads:
                every += [{"benchmark": name, "device": device, "shape": shape, "threads": threads} for shape in shapes]
    every += [changed(result, shape=shape) for shape in bench.shapes.SHAPES]
    assert bench.conditions.missing(every, lambda suite: True) == []


def test_many_bars_are_split_by_benchmark(bench: Any) -> None:
    result = known(bench)
    many = [changed(result, benchmark=f"suite.{name}") for name in ("a", "b") for _ in range(11)]
    found = [(p.file, len(p.bars)) for p in bench.plots.pictures(many) if p.bars]
    assert found == [("performance-suite-a-cpu-1.svg", 11), ("performance-suite-b-cpu-1.svg", 11)]
    most = bench.plots.MOST
    more = [changed(result, benchmark="suite.a") for _ in range(most + 5)]
    found = [(p.file, len(p.bars)) for p in bench.plots.pictures(more) if p.bars]
    assert found == [("performance-suite-a-cpu-1.svg", most), ("performance-suite-a-cpu-1-2.svg", 5)]
    parts = changed(result, benchmark="end_to_end.attribute")
    assert not any(picture.bars for picture in bench.plots.pictures([parts]))  # a part is no rival of its whole


def test_every_committed_picture_is_on_a_page(bench: Any) -> None:
    linked = re.findall(r"\]\(images/([^)]+)\)", "".join(p.read_text() for p in (ROOT / "docs").glob("*.md")))
    there = {path.name for path in (ROOT / "docs" / "images").glob(f"{bench.plots.PREFIX}*")}
    assert there and there <= set(linked)
