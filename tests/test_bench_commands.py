"""The commands of bench/: bad input is one line, what is left out is named.

Whatever runs here runs on toy sizes; no test looks at a clock.
"""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.benches import modules, refused_line
from tests.checks import refused
from tests.test_bench import known

pytestmark = pytest.mark.slow  # whole runs of benchmarks

ROOT = Path(__file__).resolve().parents[1]
ONCE = ["--shape", "toy", "--rounds", "1", "--threads", "1", "--output"]


@pytest.fixture(scope="module")
def bench() -> Any:
    return modules("arguments", "harness", "plain", "record", "report", "select", "shapes", "suites", "__main__")


@pytest.fixture
def result(bench: Any) -> Any:
    return known(bench)


@pytest.fixture
def nothing_runs(bench: Any, monkeypatch: Any) -> None:
    def measured(*args: Any, **options: Any) -> Any:
        raise AssertionError("something was measured")

    monkeypatch.setattr(bench.main, "_measured", measured)


def test_examples_of_the_flags_are_true(bench: Any) -> None:
    found = doctest.testmod(bench.arguments)
    assert found.failed == 0 and found.attempted > 3


# ---- run ----


def test_every_benchmark_has_a_place_to_run(bench: Any) -> None:
    known = bench.shapes.SHAPES.keys() | bench.select.ARRAYS.keys() | {"demo", "smollm2-trained"}
    for benchmark in bench.suites.ALL.values():
        assert any(benchmark.shapes.values()) and set(sum(benchmark.shapes.values(), ())) <= known
    assert len(bench.suites.chosen(["quick"])) < len(bench.suites.chosen(["all"])) == len(bench.suites.ALL)
    with refused("nonsense"):
        bench.suites.chosen(["nonsense"])


def test_a_run_writes_json_and_prints_it(bench: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    command = ["bench", "run", "engine.gradient_shared", *ONCE, str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert bench.main.main() == 0
    result = json.loads((tmp_path / "engine.gradient_shared.toy.cpu.1.json").read_text())
    assert result["checks"][0]["value"] <= result["checks"][0]["limit"] and result["checks"][0]["value"] > 0
    assert len(result["sides"]["ours"]["times"]) == 1 and result["pilots"]["inference"]["chosen"].startswith("batch")
    shared, *_ = result["views"]
    ours, floor = (result["sides"][name]["median"] for name in ("ours", "inference"))
    assert shared["ratio"] == pytest.approx(ours / floor) and shared["bar"] is None  # bars are set for real shapes
    assert "grad x act, shared prefixes against inference" in capsys.readouterr().out


def test_a_refused_benchmark_writes_nothing(bench: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(bench.plain, "gradient", lambda model, ids, *_: torch.ones(len(ids), 2 * 48))
    command = ["bench", "run", "engine.gradient", *ONCE, str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert bench.main.main() == 1
    assert not list(tmp_path.iterdir()) and "not timed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["engine.ig", "--shape", "1e6"], "--shape 1e6: engine.ig takes llama-2-7b, "),
        (["select.million", "--shape", "small"], "--shape small: select.million takes 1e6, "),
        (["engine.ig", "--shape", "demo"], "--shape demo: engine.ig takes "),
        (["quick", "--shape", "toy"], "--shape toy: select.million takes 1e6, "),
        (["engine.ig", "--threads", "0"], "--threads 0: give a number of at least 1"),
        (["engine.ig", "--threads", "100000"], "--threads 100000: give at most "),
        (["engine.ig", "--threads", "1", "-1"], "--threads -1: "),
        (["engine.ig", "--threads", "two"], "argument --threads: invalid int value: 'two'"),
        (["engine.ig", "--rounds", "0"], "--rounds 0: give a number of at least 1"),
        (["engine.ig", "--rounds", "-1"], "--rounds -1: "),
        (["engine.ig", "--seed", "-1"], "--seed -1: give a number from 0 to 4294967295"),
        (["engine.ig", "--device", "tpu"], "--device tpu: give cpu, cuda or cuda:N"),
        (["engine.ig", "--device", "cuda:one"], "--device cuda:one: give cpu, cuda or cuda:N"),
        (["engine.ig", "--device", "cuda:99"], "--device cuda:99: torch finds "),
        (["nonsense"], "no benchmark or suite called 'nonsense'"),
    ],
)
def test_bad_flags_of_a_run_are_one_line(
    bench: Any, nothing_runs: None, capsys: Any, tmp_path: Path, flags: list[str], told: str
) -> None:
    assert told in refused_line(bench, capsys, ["run", *flags, "--output", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_cuda_is_refused_where_there_is_none(bench: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with refused("--device cuda: torch finds no CUDA device here"):
        bench.arguments.check_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    bench.arguments.check_device("cuda:1")
    with refused("--device cuda:2: torch finds 2 CUDA devices here"):
        bench.arguments.check_device("cuda:2")


@pytest.mark.parametrize("below", ["", "folder"])
def test_a_folder_that_cannot_be_written_is_refused_before_a_run(
    bench: Any, nothing_runs: None, capsys: Any, tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_text("mine")
    told = refused_line(bench, capsys, ["run", "engine.ig", *ONCE, str(tmp_path / "file" / below)])
    assert f"--output {tmp_path / 'file' / below}: " in told and "give a folder that can be written to" in told
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_is_left_as_found_by_its_check(bench: Any, tmp_path: Path) -> None:
    bench.arguments.check_output(tmp_path / "new" / "one")
    assert not list((tmp_path / "new" / "one").iterdir())


def test_benchmarks_take_models_or_arrays(bench: Any) -> None:
    shapes = {name: bench.suites.shapes_for(bench.suites.one(name)) for name in bench.suites.ALL}
    assert shapes["engine.ig"] == bench.shapes.SHAPES.keys()
    assert shapes["select.memory"] == bench.select.ARRAYS.keys()
    assert shapes["quality.methods"] == {"demo"}


def test_what_cannot_run_here_is_named_and_running_nothing_is_no_success(
    bench: Any, nothing_runs: None, capsys: Any, tmp_path: Path
) -> None:
    assert bench.main.main(["run", "kernels", "--output", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[0] == "kernels.glu_score: left out, runs on cuda only"
    assert len(lines) == 8 and lines[-1].startswith("0 measured, 7 left out, 0 wrong, 0 failed; ")


def test_a_gpu_is_one_place(bench: Any) -> None:
    benches, args = bench.suites.chosen(["engine.ig"]), ["run", "engine.ig", "--shape", "toy", "--device"]
    threads = {}
    for device in ("cpu", "cuda"):
        flags = bench.arguments.parser("bench").parse_args([*args, device])
        threads[device] = [setup.threads for _, setup in bench.main._planned(benches, flags)[0]]
    assert threads == {"cpu": [1, 2], "cuda": [1]}


def test_what_is_for_the_cpu_only_is_not_tried_on_a_gpu(bench: Any) -> None:
    benches = bench.suites.chosen(["select.million", "peers.ig", "kernels.score_gemm"])
    flags = bench.arguments.parser("bench").parse_args(["run", "all", "--shape", "toy", "--device", "cuda"])
    planned, left = bench.main._planned(benches, flags)
    assert ([one.name for one, _ in planned], left) == (["kernels.score_gemm"], 2)


def test_what_this_machine_lacks_is_counted(bench: Any, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    def without(*args: Any, **options: Any) -> Any:
        raise bench.harness.CannotRun("nothing to compare with")

    monkeypatch.setattr(bench.main, "_measured", without)
    assert bench.main.main(["run", "peers.ig", *ONCE, str(tmp_path)]) == 1
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "peers.ig, toy, 1 thread (1 of 1): checking"
    assert second == "peers.ig, toy, 1 thread: left out, nothing to compare with"
    assert last.startswith("0 measured, 1 left out, 0 wrong, 0 failed; ")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out"), MemoryError(), RuntimeError("no memory"), KeyError(1)]
)
def test_what_fails_is_told_and_the_rest_still_runs(
    bench: Any, result: Any, error: Exception, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    def first_fails(benchmark: Any, setup: Any, peaks: bool) -> Any:
        if benchmark.name == "engine.ig":
            raise error
        return result, []

    monkeypatch.setattr(bench.main, "_measured", first_fails)
    assert bench.main.main(["run", "engine.ig", "engine.gradient", *ONCE, str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == f"engine.ig, toy, 1 thread: failed, {str(error) or 'MemoryError'}"
    assert lines[-1].startswith("1 measured, 0 left out, 0 wrong, 1 failed; ")
    assert [path.name for path in tmp_path.iterdir()] == ["engine.gradient.toy.cpu.1.json"]


def test_a_process_for_memory_that_fails_is_told(bench: Any, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    def killed(command: list[str], **options: Any) -> Any:
        return answer(command) if command[0] == "git" else SimpleNamespace(returncode=-9, stderr="no more memory")

    monkeypatch.setattr(bench.main.subprocess, "run", killed)
    assert bench.main.main(["run", "engine.memory", *ONCE, str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "engine.memory, toy, 1 thread: failed, nothing could be measured" in err and "no more memory" in err
    assert "0 measured, 0 left out, 0 wrong, 1 failed; " in err and not list(tmp_path.iterdir())


def test_times_are_kept_where_memory_cannot_be_measured(
    bench: Any, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    def answered(command: list[str], **options: Any) -> Any:
        killed = SimpleNamespace(returncode=-9, stderr="no more memory")
        return killed if "plain" in command else answer(command)

    monkeypatch.setattr(bench.main.subprocess, "run", answered)
    assert bench.main.main(["run", "engine.ig", *ONCE, str(tmp_path)]) == 1
    assert "1 measured, 0 left out, 0 wrong, 1 failed; " in capsys.readouterr().err
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text("utf-8"))
    assert result["sides"]["plain"]["times"] and "peak" not in result["sides"]["plain"]
    assert result["sides"]["ours"]["peak"] and "The memory of 'plain' could not be measured" in result["notes"]


def test_a_run_says_how_far_it_is(bench: Any, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(bench.main.subprocess, "run", lambda command, **_: answer(command))
    names = ["engine.memory", "engine.gradient"]
    assert bench.main.main(["run", *names, *ONCE, str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("neuronllm")]
    assert lines[:2] == ["engine.memory, toy, 1 thread (1 of 2): checking", "... memory of inference, with cache"]
    assert lines[-3:-1] == ["engine.gradient, toy, 1 thread (2 of 2): checking", "... timing"]
    assert lines[-1].startswith("2 measured, 0 left out, 0 wrong, 0 failed; ")
    assert out.count("== engine.") == 2  # the results, and nothing else


def answer(command: list[str]) -> Any:
    """What a process for the peak memory of a side prints; git finds nothing."""
    if command[0] == "git":
        return SimpleNamespace(returncode=1, stdout="")
    return SimpleNamespace(returncode=0, stdout='{"peak": 1024}\n')


# ---- peak ----


def test_peak_memory_runs_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "bench", "peak", "engine.memory", "gradient", "--shape", "toy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["peak"] > 10_000


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ["engine.memory", "nope", "--shape", "toy"],
            "no side called 'nope'; engine.memory has inference, with cache; ",
        ),
        (["engine.gradient", "inference", "--shape", "toy"], "no side called 'inference'"),  # a choice of several
        (["engine", "ours"], "no benchmark called 'engine'"),
        (["engine.ig", "ours", "--shape", "1e6"], "--shape 1e6: engine.ig takes "),
        (["engine.ig", "ours", "--threads", "0"], "--threads 0: "),
        (["engine.ig", "ours", "--device", "tpu"], "--device tpu: "),
    ],
)
def test_bad_flags_of_a_peak_are_one_line(bench: Any, capsys: Any, flags: list[str], told: str) -> None:
    assert told in refused_line(bench, capsys, ["peak", *flags])


# ---- report ----


def test_results_of_another_folder_are_printed(bench: Any, result: Any, capsys: Any, tmp_path: Path) -> None:
    bench.record.write(tmp_path, "known.json", result)
    pages = {path: path.read_bytes() for path in (ROOT / "docs").glob("*.md")}
    assert bench.main.main(["report", "--input", str(tmp_path)]) == 0
    assert capsys.readouterr().out == bench.report.page([result]) + "\n"
    assert {path: path.read_bytes() for path in (ROOT / "docs").glob("*.md")} == pages


def test_a_folder_without_results_is_refused(bench: Any, capsys: Any, tmp_path: Path) -> None:
    assert "no JSON files there" in refused_line(bench, capsys, ["report", "--input", str(tmp_path)])
    assert "no such folder" in refused_line(bench, capsys, ["report", "--input", str(tmp_path / "absent")])
    assert "leave --input out" in refused_line(bench, capsys, ["report", "--check", "--input", str(tmp_path)])
