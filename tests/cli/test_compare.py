"""`neuronllm compare`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import neuronllm as nl
from neuronllm.cli.compare import tasks_of
from neuronllm.comparing.request import CompareRequest
from tests.cli.tools import refused, run, write_questions

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    {"id": f"q{n}", "question": f"Which of these is word {n}?", "choices": ["red", "blue", "seven"], "answer": n % 3}
    for n in range(9)
]


@pytest.fixture
def command(model_folder, tmp_path):
    one = write_questions(tmp_path / "one.jsonl", ROWS)
    sides = [write_questions(tmp_path / f"{side}.jsonl", ROWS[3 * n : 3 * n + 3]) for n, side in enumerate("abc")]
    tasks = (f"one={one}", f"two={','.join(map(str, sides))}")
    return ("compare", "--model", model_folder, "--quiet", "--task", *tasks, "--budget", "quick", "--controls", 2)


def test_compared_and_taken_up_again(command, tmp_path, capsys) -> None:
    output = tmp_path / "comparison"
    asked = (*command, "--methods", "ace", "random", "--options", "ace.steps=2", "--edits", "degrade", "--k", 2)
    assert run(*asked, "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "task one: 4 search, 2 validation, 3 test questions, split by id" in plan
    assert "exact effects at positions all: of all neurons, on 3 questions of each task" in plan
    assert "pieces of work" in plan and "time: roughly" in plan and not output.exists()
    assert run(*asked, "--output", output) == 0
    said = capsys.readouterr().out
    assert "PCR" in said and "Comparison(2 tasks, 2 methods, 4 edits of" in said
    data = json.loads((output / "comparison.json").read_text())
    assert data["made"]["command"].startswith("neuronllm compare --model llama (config ")
    assert "--k 2 --budget quick --controls 2 --options ace.steps=2 --output DIR" in data["made"]["command"]
    assert data["methods"][0]["positions"] == "answer"
    assert "an earlier result stands there" in refused(capsys, *asked, "--output", output)
    assert run(*asked, "--output", output, "--resume") == 0


def test_splits_of_bundled_tasks_are_sources(command, capsys) -> None:
    """Under a name, or under that of the task; the command that repeats it names them alike."""
    asked = (*command, "--methods", "gradient", "--budget", "quick,search=10,validation=5,test=20", "--dry-run")
    sources = ("x=demo:facts/search,demo:facts/test", "demo:facts/validation")
    assert run(*asked, "--k", 2, "--task", *sources) == 0
    plan = capsys.readouterr().out
    assert "task x: 10 search, 5 validation, 20 test questions, split but the test by id" in plan
    assert "task facts: 10 search, 5 validation, 20 test questions, split by id" in plan
    tasks = tasks_of(Namespace(task=sources), CompareRequest().checked())
    assert tasks["x"].files == {"search": "demo:facts/search", "test": "demo:facts/test"}
    assert tasks["x"].splits.test == nl.load_questions(nl.demo_task("facts", "test"))
    assert tasks["facts"].files == {"all": "demo:facts/validation"}
    said = refused(capsys, *asked, "--k", 100)
    assert "k=100: so many good and as many bad neurons are asked for, and the model has 56 FFN neurons" in said


def test_interrupted_it_says_how_to_go_on(command, tmp_path, capsys, monkeypatch) -> None:
    from neuronllm.comparing import run as running

    def interrupted(setting, stage):
        raise KeyboardInterrupt

    output = tmp_path / "comparison"
    monkeypatch.setattr(running, "_do", interrupted)
    assert run(*command, "--methods", "random", "--output", output) == 130
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "0 of " in said and "go on with resume=True (--resume)" in said
    assert not output.exists() and (tmp_path / "comparison.partial" / "compare.json").is_file()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--methods", "gradnt"), "method='gradnt': known methods are"),
        (("--edits", "enhanc"), "edits: 'enhanc' is none"),
        (("--preset", "gpt"), "preset='gpt': known presets are"),
        (("--positions", "all", "--methods", "ace"), "positions='all': method 'ace' takes 'answer'"),
        (("--task", "three=a.jsonl,b.jsonl,c.jsonl,d.jsonl"), "task 'three': give one file"),
        (("--task", "three=a.jsonl,,b.jsonl"), "a split is missing"),
        (("--task", "three=none.jsonl"), "none.jsonl"),
        (("--task", "one=none.jsonl"), "'one' is the name of another task"),
        (("--task", "none.jsonl"), "write NAME=FILE"),
        (("--task", "demo:chess"), "demo task 'chess'"),
        (("--task", "x=demo:facts/exam"), "demo split 'exam': known splits are search, validation, test"),
        (("--task", "x=demo:facts,demo:ordering"), "demo:facts has three splits, name the one that is meant: demo:fac"),
        (("--task", "x=demo:facts/search,"), "task 'x': '' is no file: a split is missing"),
        (("--options", "steps=2"), "write METHOD.NAME=VALUE"),
        (("--split-by", "subject"), "task 'one': split_by=\"subject\": question q0 has no subject"),
        (("--template", "nothing"), "nothing"),
        (("--output", "."), "output"),
    ],
)
def test_refused_before_the_model_is_loaded(command, tmp_path, capsys, monkeypatch, flags, said) -> None:
    monkeypatch.setattr("neuronllm.cli.main._model", lambda args: pytest.fail("the model was loaded"))
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *command, "--output", tmp_path / "none", *flags)
    assert not (tmp_path / "none").exists() and not (tmp_path / "none.partial").exists()


def test_a_task_of_lm_eval_needs_the_library(command, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = refused(capsys, *command, "--output", tmp_path / "none", "--task", "arc=lm-eval:arc_easy")
    assert '--task arc=lm-eval:arc_easy needs lm-eval, which is not installed: pip install "neuronllm[lm-eval]"' in said


@pytest.mark.slow
def test_tasks_of_lm_eval(model_folder, tmp_path, capsys) -> None:
    """Judged on what lm-eval evaluates; searched on what it trains on, or on a part of the only split there is."""
    pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "neuronllm[lm-eval]"')
    from tests.harness import write_yaml

    kind = {"output_type": "multiple_choice", "doc_to_target": "answer", "doc_to_choice": "choices"}
    kind |= {"doc_to_text": "Question: {{question}}\nAnswer:", "metric_list": [{"metric": "acc"}]}
    sides = {"train": ROWS[:6], "test": ROWS[6:]}
    write_yaml(tmp_path, "both", sides, training_split="train", test_split="test", **kind)
    write_yaml(tmp_path, "alone", {"test": ROWS}, test_split="test", **kind)
    sources = ("lm-eval:both", "one=lm-eval:alone")
    asked = ("compare", "--model", model_folder, "--quiet", "--task", *sources, "--include-path", tmp_path)
    asked = (*asked, "--budget", "quick", "--controls", 2, "--methods", "gradient", "--edits", "degrade", "--k", 2)
    assert run(*asked, "--output", tmp_path / "comparison") == 0
    data = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    both, one = data["tasks"]
    assert both["questions"] == {"search": 4, "validation": 2, "test": 3} and both["answers"] == "texts"
    assert sum(one["questions"].values()) == 9 and one["split"] == "by id"
    assert "--task both=lm-eval:both --task one=lm-eval:alone" in data["made"]["command"]
    file = write_questions(tmp_path / "file.jsonl", ROWS)
    said = refused(capsys, *asked, "--output", tmp_path / "none", "--task", f"file={file}", "--answers", "texts")
    assert "'both' comes in words of its own (a task of lm-eval) and 'file' in ours" in said


def numbers(value, path=""):
    """Every number of nested data by its path, in order."""
    if isinstance(value, dict):
        return [found for key in sorted(value) for found in numbers(value[key], f"{path}/{key}")]
    if isinstance(value, list):
        return [found for n, one in enumerate(value) for found in numbers(one, f"{path}/{n}")]
    return [(path, value)] if isinstance(value, float) else []


@pytest.mark.slow
def test_two_processes_share_a_comparison(command, tmp_path, capsys) -> None:
    asked = (*command, "--methods", "gradient", "--edits", "degrade", "learned", "--k", 2)
    assert run(*asked, "--output", tmp_path / "alone") == 0
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def torchrun(*flags: object) -> subprocess.CompletedProcess[str]:
        whole = [str(part) for part in (*launcher, "-m", "neuronllm", *asked, *flags)]
        return subprocess.run(whole, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    done = torchrun("--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Comparison(2 tasks, 1 methods, 4 edits of") == 1
    alone, two = (json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("alone", "two"))
    for what in ("tasks", "methods", "edits", "curves"):
        assert numbers(two[what]) == [(path, pytest.approx(value, abs=1e-4)) for path, value in numbers(alone[what])]
    refusal = torchrun("--output", tmp_path / "two")
    assert refusal.returncode != 0 and refusal.stderr.count("an earlier result stands there") == 1
