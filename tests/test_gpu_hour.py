"""The command for a machine with a GPU: what fails, hangs or crashes is told and costs one case; the budget is kept."""

from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.benches import ROOT, modules

gpu = modules("gpu.estimates", "gpu.folder", "gpu.hour", "gpu.page", "gpu.stages", "gpu.worker", "shapes", "tuning")
folder, hour, stages = (getattr(gpu, f"gpu.{name}") for name in ("folder", "hour", "stages"))
COMMAND = [sys.executable, str(ROOT / "tools" / "gpu_hour.py")]


def stage(name: str = "bad", seconds: float = 1.0, patience: float = 60.0, **more: Any) -> Any:
    estimate = getattr(gpu, "gpu.estimates").fixed(seconds, "a guess")
    module = more.pop("module", "tests.gpu_stages")
    return stages.Stage(name, name, module, estimate, stages.HOST, seconds, patience=patience, **more)


def run(tmp_path: Path, names: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[int, dict[str, Any], str]:
    """Exit code, the cases by name, and all that is said of failures."""
    monkeypatch.setenv("NEURONLLM_TEST_CASES", names)
    code = hour.run([stage(**more)], folder.Folder(tmp_path / "out"), 1.0, pretend=True)
    (line,) = folder.results(tmp_path / "out")
    cases = {case["case"]: case for case in line["cases"]} | {"stage": line}
    return code, cases, (tmp_path / "out" / "failures.txt").read_text("utf-8")


def test_what_fails_is_told_and_the_rest_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, cases, failures = run(tmp_path, "first wrong full absent last", monkeypatch)
    assert code == 1 and cases["stage"]["verdict"] == "failed"
    verdicts = {name: case["verdict"] for name, case in cases.items() if name != "stage"}
    assert verdicts == {"first": "passed", "wrong": "failed", "full": "failed", "absent": "skipped", "last": "passed"}
    assert cases["last"]["figures"] == {"line": "last ran", "number": 7}
    assert cases["wrong"]["why"] == "Wrong: two results differ" and "diagnosis" not in cases["wrong"]
    for told in (
        "1 of 2 elements differ by more than 0, between (1, 0) and (1, 0)\n  at (1, 0): 2.0, should be 3.0",
        "found: torch.float32 (2, 1), strides (1, 2), on cpu",
        "tests/gpu_stages.py, wrong",
        "Traceback (most recent call last)",
    ):
        assert told in failures
    assert "memory" in cases["full"]["why"]


@pytest.mark.slow
def test_a_case_that_hangs_is_ended_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, cases, failures = run(tmp_path, "first hangs last", monkeypatch, patience=8.0, seconds=30.0)
    assert code == 1 and cases["stage"]["verdict"] == "timed out"
    assert cases["hangs"]["why"] == "hangs: ended after 8 s" and cases["last"]["verdict"] == "passed"
    assert "tests/gpu_stages.py" in failures and "most recent call first" in failures


@pytest.mark.slow
def test_a_case_that_crashes_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, cases, failures = run(tmp_path, "crashes last", monkeypatch)
    assert code == 1 and cases["crashes"]["why"] == "the process was ended by SIGSEGV"
    assert cases["last"]["verdict"] == "passed" and "Segmentation fault" in failures


def test_a_stage_that_cannot_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, cases, failures = run(tmp_path, "first", monkeypatch, module="tests.no_such_stage")
    assert code == 1 and cases["the process"]["verdict"] == "failed" and "No module named" in failures


@pytest.mark.slow
def test_a_failing_case_runs_once_more_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, failures = run(tmp_path, "first wrong last", monkeypatch, rerun=True)
    assert failures.count("==== bad: wrong") == 2 and "once more, alone" in failures


@pytest.mark.slow
def test_the_budget_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A stage that does not fit is named and no failure; one that takes longer than is left is ended in time."""
    monkeypatch.setenv("NEURONLLM_TEST_CASES", "first hangs last")
    start = time.monotonic()
    some = [stage("slow", 500), stage("endless", 2), stage("late", 5)]
    code = hour.run(some, folder.Folder(tmp_path), 14 / 60, pretend=True)
    assert time.monotonic() - start < 20
    lines = {line["stage"]: line for line in folder.results(tmp_path)}
    assert code == 1 and lines["endless"]["verdict"] == "timed out"
    assert [case["verdict"] for case in lines["endless"]["cases"]] == ["passed", "timed out", "not run"]
    assert [lines[name]["verdict"] for name in ("slow", "late")] == ["skipped", "skipped"]
    assert lines["slow"]["why"].startswith("does not fit: 500 s estimated")
    assert "2 skipped (slow, late); 1 timed out (endless)" in capsys.readouterr().out


def test_nothing_but_what_does_not_fit_is_no_failure(tmp_path: Path) -> None:
    assert hour.run([stage("slow", 500)], folder.Folder(tmp_path), 0.1, pretend=True) == 0


@pytest.mark.slow
def test_resuming_skips_what_passed_and_adds_to_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [stage("one"), stage("two")]
    monkeypatch.setenv("NEURONLLM_TEST_CASES", "wrong")
    assert hour.run(some[1:], folder.Folder(tmp_path, pretend=True), 1.0, pretend=True) == 1
    monkeypatch.setenv("NEURONLLM_TEST_CASES", "first")
    assert hour.run(some, folder.Folder(tmp_path, tmp_path, True), 1.0, pretend=True) == 0
    monkeypatch.setenv("NEURONLLM_TEST_CASES", "wrong")  # they would fail if they ran again
    assert hour.run(some, folder.Folder(tmp_path, tmp_path, True), 1.0, pretend=True) == 0
    lines = [(line["stage"], line["verdict"]) for line in folder.results(tmp_path)]
    assert lines == [("two", "failed"), ("one", "passed"), ("two", "passed")]
    assert "two results differ" in (tmp_path / "failures.txt").read_text("utf-8")
    assert "resumed: 2 stages passed before" in (tmp_path / "report.txt").read_text("utf-8")
    assert folder.Folder(tmp_path, tmp_path).passed == set()  # what passed without a GPU says nothing of one
    with pytest.raises(folder.InputError, match="holds an earlier run"):
        folder.Folder(tmp_path)


@pytest.mark.slow
def test_a_device_that_is_missing_leaves_what_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONLLM_TEST_CASES", "facts first")
    some = [stage("machine"), stage("build", needs_device=False), stage("kernels")]
    assert hour.run(some, folder.Folder(tmp_path), 1.0, pretend=True) == 1
    lines = {line["stage"]: line for line in folder.results(tmp_path)}
    assert lines["build"]["cases"] and lines["kernels"]["why"] == "there is no device to run on"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_what_is_known_is_kept_when_the_run_is_ended(name: str, tmp_path: Path) -> None:
    """The command itself, on its first stage: no process of its stays, and the summary is written."""
    command = [*COMMAND, "--pretend", "--only", "kernels", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = tmp_path / "out" / "running.jsonl"
    while '"passed"' not in (running.read_text("utf-8") if running.exists() else ""):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume goes on" in err
    (line,) = folder.results(tmp_path / "out")
    assert line["verdict"] == "interrupted" and line["cases"][0]["verdict"] == "passed"
    assert "1 interrupted (kernels)" in out and not running.exists()
    held = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(running) in _read(path)]
    assert not held


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:  # it ended meanwhile
        return ""


def test_files_stay_few_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LARGEST", 5000)
    out = folder.Folder(tmp_path)
    for _ in range(20):
        cases = [{"case": "a", "verdict": "failed", "why": "x", "diagnosis": "y" * 3000}]
        out.stage({"stage": "s", "verdict": "failed", "seconds": 1.0, "cases": cases}, b"z" * 3000)
    assert len(list(tmp_path.iterdir())) <= 6
    assert all(path.stat().st_size < 5000 + 2**16 for path in tmp_path.iterdir())
    assert "left out: the file is full" in (tmp_path / "failures.txt").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--minutes", "0"], "--minutes 0: give a number above 0"),
        (["--only", "nothing"], "invalid choice: 'nothing'"),
        (["--resume", "no-such-folder"], "no results of a run there"),
        (["--out", str(ROOT / "README.md")], "give a folder"),
        (["--only", "machine", "--from", "smoke"], "no stage of machine comes at or behind smoke"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(COMMAND[1])["main"]
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert code == 2 and told in said.err and said.err.count("\n") == 1 and not said.out


def test_the_list_says_how_times_were_estimated() -> None:
    done = subprocess.run([*COMMAND, "--list"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(stages.STAGES) + 1 and all(" s: " in line for line in lines[:-1])
    assert all(word in done.stdout for word in ("FLOP/s", "bytes/s", "weights made"))


def test_parameters_are_those_of_the_models() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    count = getattr(gpu, "gpu.estimates").parameters
    for name, right in (("llama-2-7b", 6.74e9), ("qwen3-30b-a3b", 30.5e9), ("small", None)):
        shape = gpu.shapes.SHAPES[name]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.family, **shape.config))
        whole = sum(p.numel() for p in model.parameters())
        assert count(shape.config)["all"] == pytest.approx(whole, rel=2e-3)
        assert right is None or whole == pytest.approx(right, rel=0.01)


def test_block_sizes_of_another_machine_are_put_into_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    table, found = tmp_path / "kernels" / "glu_score" / "configs.json", tmp_path / "block_sizes.json"
    table.parent.mkdir(parents=True)
    table.write_text((ROOT / "kernels" / "glu_score" / "configs.json").read_text("utf-8"))
    before = json.loads(table.read_text("utf-8"))
    sizes = {"bfloat16": {"rows": 8, "columns": 64, "chunk": 32, "num_warps": 4, "num_stages": 2}}
    entry = {"op": "glu_score", "device": "NVIDIA X", "best": sizes, "wins": True, "text": "1.5x"}
    found.write_text(json.dumps([entry]))
    monkeypatch.setattr(gpu.tuning, "ROOT", tmp_path)
    assert gpu.tuning.main(["--apply", str(found)]) == 0 and "glu_score on NVIDIA X: wins" in capsys.readouterr().out
    assert json.loads(table.read_text("utf-8")) == before | {"NVIDIA X": sizes, "wins": {"NVIDIA X": "1.5x"}}
    found.write_text(json.dumps([entry | {"op": "other"}]))
    for wrong in (found, tmp_path / "nothing.json"):
        assert gpu.tuning.main(["--apply", str(wrong)]) == 2
        assert f"--apply {wrong}" in capsys.readouterr().err


def test_the_page_is_current() -> None:
    page = getattr(gpu, "gpu.page")
    assert page.PAGE.read_text("utf-8") == page.text(), "python tools/gpu_hour.py --page"


def test_the_page_shows_runs_on_a_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = getattr(gpu, "gpu.page")
    facts = {"line": "NVIDIA X, 80 GiB", "commit": {"id": "a" * 40, "dirty": False}}
    machine = {"stage": "machine", "verdict": "passed", "seconds": 9.0, "pretended": False}
    machine["cases"] = [{"case": "facts", "verdict": "passed", "figures": facts}]
    engine = {"stage": "engine", "verdict": "failed", "seconds": 30.0, "pretended": False}
    engine["cases"] = [
        {"case": "gradient", "verdict": "passed", "figures": {"line": "gradient 1.02x inference"}},
        {"case": "exact", "verdict": "failed", "why": "Wrong: ranks"},
    ]
    lines = [machine, engine, engine | {"stage": "smoke", "pretended": True}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(page, "RUNS", tmp_path)
    text = page.text()
    assert "### x\n\nNVIDIA X, 80 GiB, commit aaaaaaaaaaaa.\n" in text and "Nothing: no run" not in text
    assert "| engine | failed | 30 s | **exact: Wrong: ranks**; gradient 1.02x inference |" in text
    assert "| smoke | failed" not in text


@pytest.mark.slow
def test_every_stage_is_walked_without_a_gpu(tmp_path: Path) -> None:
    """All stages on a pretended device. The budget is large, since the machine may be busy."""
    out = tmp_path / "out"
    done = subprocess.run(
        [*COMMAND, "--pretend", "--minutes", "15", "--out", str(out)], capture_output=True, text=True, cwd=ROOT
    )
    lines = folder.results(out)
    failures = (out / "failures.txt").read_text("utf-8")
    assert done.returncode == 0 and not failures, done.stdout + failures
    assert [line["stage"] for line in lines] == [stage.name for stage in stages.STAGES]
    verdicts = {line["stage"]: line["verdict"] for line in lines}
    assert verdicts == {name: "skipped" if name == "tests" else "passed" for name in verdicts} | {
        "tests": verdicts["tests"]
    }
    assert len(list(out.iterdir())) <= 6 and sum(len(line["cases"]) for line in lines) > 60
