"""The files of results: what was bent, edited, cut short or is none is refused in one line.

No test looks at a clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benches import modules, refused_line
from tests.checks import bad, refused
from tests.test_bench import known


@pytest.fixture(scope="module")
def bench() -> Any:
    return modules("harness", "record", "shapes", "__main__")


@pytest.fixture(scope="module")
def text(bench: Any) -> str:
    """A result as JSON: it takes seconds, so it is made once."""
    return json.dumps(known(bench))


@pytest.fixture
def result(text: str) -> Any:
    """A result of one's own to bend."""
    return json.loads(text)


def test_results_of_another_format_are_refused(bench: Any, result: Any, tmp_path: Path) -> None:
    bench.record.write(tmp_path, "old.json", result | {"format": 0})
    with refused("old.json was written in another format"):
        bench.record.read(tmp_path)


def test_a_file_is_read_as_it_was_written(bench: Any, result: Any, tmp_path: Path) -> None:
    bench.record.write(tmp_path, "known.json", result)
    assert bench.record.read(tmp_path) == [result]
    assert result["versions"]["numpy"]


def test_files_of_before_more_was_kept_are_read(bench: Any, result: Any, tmp_path: Path) -> None:
    del result["versions"]["numpy"], result["machine"]["waiting"]
    result["sides"]["ours"]["rate"] = 5e8  # without the bytes
    bench.record.write(tmp_path, "old.json", result)
    assert bench.record.read(tmp_path) == [result]


def test_the_bytes_of_a_rate_are_kept(bench: Any, result: Any, tmp_path: Path) -> None:
    result["sides"]["ours"] |= {"reads": 10**9, "rate": 5e8}
    bench.record.write(tmp_path, "known.json", result)
    assert bench.record.read(tmp_path) == [result]
    result["sides"]["ours"]["rate"] = 6e8
    bench.record.write(tmp_path, "known.json", result)
    assert "known.json: sides, ours, rate is not what" in bad(lambda: bench.record.read(tmp_path))


def test_libraries_to_compare_with_are_noted_where_they_are(bench: Any, monkeypatch: Any) -> None:
    installed = {"torch": "2", "transformers": "5", "neuronllm": "1", "numpy": "2", "faiss-cpu": "1.9"}
    monkeypatch.setattr(bench.record, "package_version", installed.get)
    assert bench.record.versions().items() >= installed.items()
    assert len(bench.record.versions()) == len(installed) + 1  # Python


def edited(*keys: Any) -> Callable[[dict[str, Any], Any], None]:
    def edit(result: Any, value: Any) -> None:
        for key in keys[:-1]:
            result = result[key]
        result[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        (("sides", "ours", "median"), 0.4, "sides, ours, median"),
        (("sides", "ours", "p20"), 0.4, "sides, ours, p20"),
        (("sides", "ours", "p80"), 0.6, "sides, ours, p80"),
        (("sides", "ours", "times"), [2.0, 2.0, 3.0, 3.0], "sides, ours, median"),
        (("sides", "ours", "peak"), 2**20, "views, 2, ratio"),
        (("views", 0, "ratio"), 60.0, "views, 1, ratio"),
        (("views", 0, "met"), True, "views, 1, met"),
        (("views", 0, "bar", "value"), 3, "views, 1, met"),
        (("views", 1, "ratio"), 1.0, "views, 2, ratio"),
        (("views", 2, "slope"), 0.4, "views, 3, slope"),
        (("views", 2, "spread"), 1.0, "views, 3, spread"),
        (("views", 2, "points", 1, 1), 2.0, "views, 3, points, 2, 2"),
        (("views", 3, "seconds"), 1.0, "views, 4, seconds"),
        (("views", 3, "met"), False, "views, 4, met"),
        (("checks", 0, "value"), 1.0, "checks"),
        (("pilots",), {"plain": {"chosen": "a", "per_unit": {"a": 2.0, "b": 1.0}}}, "pilots, plain"),
    ],
)
def test_figures_that_the_raw_ones_do_not_give_are_refused(
    bench: Any, result: Any, tmp_path: Path, keys: tuple[Any, ...], value: Any, told: str
) -> None:
    edited(*keys)(result, value)
    bench.record.write(tmp_path, "bent.json", result)
    assert f"bent.json: {told} is not what the raw figures" in bad(lambda: bench.record.read(tmp_path))


@pytest.mark.parametrize("what", ["views", "checks", "notes", "machine", "facts", "sha256"])
def test_what_was_edited_is_refused(bench: Any, result: Any, tmp_path: Path, what: str) -> None:
    """Also what no other figure in the file speaks of: a view taken away, a condition, a table."""
    file = bench.record.write(tmp_path, "bent.json", result)
    stored = json.loads(file.read_text())
    bent: dict[str, Any] = {"machine": stored["machine"] | {"cores": 64}, "facts": {"columns": {}, "rows": []}}
    bent |= {"views": stored["views"][1:], "checks": [], "notes": ["on an idle machine"], "sha256": None}
    file.write_text(json.dumps(stored | {what: bent[what]}))
    with refused("bent.json is not as it was written"):
        bench.record.read(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("sides", "ours", "times"), []),
        (("sides", "ours", "times"), [float("nan")]),
        (("sides", "ours"), None),
        (("views", 0, "baseline"), "absent"),
        (("views", 2, "sides"), [[2.0, "absent"]]),
        (("views", 0, "view"), "other"),
        (("views", 0), {"view": "comparison"}),
        (("checks", 0), {}),
        (("facts", "rows"), [["a", "b", "c"]]),
        (("machine",), None),
        (("commit",), {"id": None}),
    ],
)
def test_a_file_that_holds_no_result_is_refused(
    bench: Any, result: Any, tmp_path: Path, keys: tuple[Any, ...], value: Any
) -> None:
    edited(*keys)(result, value)
    bench.record.write(tmp_path, "bent.json", result)
    assert "bent.json" in bad(lambda: bench.record.read(tmp_path))


@pytest.mark.parametrize("needed", ["benchmark", "machine", "sides", "views", "facts", "date"])
def test_an_incomplete_file_is_refused(bench: Any, result: Any, tmp_path: Path, needed: str) -> None:
    del result[needed]
    bench.record.write(tmp_path, "short.json", result)
    with refused("short.json is incomplete", needed):
        bench.record.read(tmp_path)


@pytest.mark.parametrize("content", ['{"format": 1, "ben', "", "[]", "null", "\xff"])
def test_a_report_names_the_file_that_it_cannot_read(
    bench: Any, monkeypatch: Any, capsys: Any, tmp_path: Path, content: str
) -> None:
    (tmp_path / "cut.json").write_bytes(content.encode("latin-1"))
    monkeypatch.setattr(bench.record, "RESULTS", tmp_path)
    assert f"{tmp_path / 'cut.json'} " in refused_line(bench, capsys, ["report", "--check"])
