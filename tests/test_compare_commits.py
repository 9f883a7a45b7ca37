"""tools/compare_commits.py: one changed bit is found, equality is accepted, and the probe gives the same twice."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import neuronllm as nl

ROOT = Path(__file__).resolve().parents[1]
GROUP = "llama/scores"


@pytest.fixture(scope="module")
def tools() -> Any:
    """The modules of the tool, which are not installed."""
    sys.path.append(str(ROOT / "tools"))
    try:
        names = ("commits", "folders", "probe")
        return SimpleNamespace(**{name: importlib.import_module(f"compare_{name}") for name in names})
    finally:
        sys.path.remove(str(ROOT / "tools"))


def example(tools: Any) -> Any:
    record = tools.probe.Record()
    values = torch.tensor([0.5, -2.0, float("nan"), 0.0, 3.0])
    record.add("gradient/answer", values=values, ids=torch.arange(5), none=torch.empty(0))
    record.add("relp/answer", values=values[:2], flag=torch.tensor(True))
    record.data = {"gradient/answer": {"noise": 1e-7, "engine": "fast", "neuronllm": "1", "threads": 1}}
    record.data["enhance/all"] = {"accuracy": 0.75, "ci": {"accuracy": [0.5, float("nan")]}, "questions": 4}
    record.refused = {"ace/all": "positions='all'"}
    return record


def compared(tools: Any, folder: Path, change: Callable[[Any], None], tolerance: float = 0.0) -> Any:
    """The outcome for the example and a copy of it after a change."""
    base, head = example(tools), example(tools)
    change(head)
    base.write(folder / "base" / GROUP)
    head.write(folder / "head" / GROUP)
    (outcome,) = tools.folders.compare_folders(folder / "base", folder / "head", [GROUP], tolerance)
    return outcome


def test_equal_folders_are_equal(tools: Any, tmp_path: Path) -> None:
    def another_day(head: Any) -> None:
        head.data["gradient/answer"] |= {"neuronllm": "2", "threads": 8}
        head.refused["ace/all"] = "the same in other words"

    outcome = compared(tools, tmp_path, another_day)
    assert (outcome.fine, outcome.text) == (True, "equal")
    assert outcome.values == 5 + 5 + 2 + 1 + 2 + 4  # tensors, then leaves: NaN equals itself


def flip_lowest_bit(head: Any) -> None:
    head.tensors["gradient/answer/values"].view(torch.int32)[1] ^= 1


def test_one_changed_bit_is_found(tools: Any, tmp_path: Path) -> None:
    outcome = compared(tools, tmp_path, flip_lowest_bit)
    assert not outcome.fine and "DIFFERS: 1 of " in outcome.text
    assert "absolute 2.38e-07 at gradient/answer/values[1]" in outcome.text and "relative 7.95e-08" in outcome.text


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda head: head.tensors["gradient/answer/values"].__setitem__(2, 1.0), "values[2]: nan against 1"),
        (
            lambda head: head.tensors["gradient/answer/values"].__setitem__(0, float("nan")),
            "values[0]: 0.5 against nan",
        ),
        (lambda head: head.tensors["gradient/answer/values"].__setitem__(3, -0.0), "values[3] (0 against -0)"),
        (lambda head: head.tensors["gradient/answer/ids"].__setitem__(4, 3), "absolute 1 at gradient/answer/ids[4]"),
        (lambda head: head.tensors.pop("relp/answer/flag"), "relp/answer/flag: is missing in head"),
        (lambda head: head.add("relp/answer", flag=torch.tensor([True])), "bool [] against bool [1]"),
        (lambda head: head.data["enhance/all"].update(accuracy=0.5), "absolute 0.25 at enhance/all/accuracy"),
        (lambda head: head.data["enhance/all"].update(questions=4.0), "enhance/all/questions: 4 against 4.0"),
        (lambda head: head.data["enhance/all"].pop("accuracy"), "enhance/all/accuracy: is missing in head"),
        (lambda head: head.data["gradient/answer"].update(engine="reference"), "'fast' against 'reference'"),
        (lambda head: head.refused.clear(), "refused/ace/all: is missing in head"),
        (lambda head: setattr(head, "error", "TypeError: oh"), "FAILED in head: 'TypeError: oh'"),
    ],
)
def test_changes_are_found(tools: Any, tmp_path: Path, change: Callable[[Any], None], shown: str) -> None:
    outcome = compared(tools, tmp_path, change)
    assert not outcome.fine and shown in outcome.text and "\n" not in outcome.text


def test_what_is_new_is_counted_and_changes_nothing(tools: Any, tmp_path: Path) -> None:
    outcome = compared(tools, tmp_path, lambda head: head.data["enhance/all"].update(pcr=None))
    assert outcome.fine and outcome.text == "equal" and outcome.notes == (f"{GROUP}: 1 entries are new in head",)


def test_tolerance_is_for_floating_numbers_only(tools: Any, tmp_path: Path) -> None:
    assert compared(tools, tmp_path, flip_lowest_bit, 1e-6).fine
    assert not compared(tools, tmp_path, flip_lowest_bit, 1e-8).fine
    outcome = compared(tools, tmp_path, lambda head: head.tensors["gradient/answer/ids"].__setitem__(0, 1), 10.0)
    assert not outcome.fine
    outcome = compared(tools, tmp_path, lambda head: head.data["enhance/all"].update(questions=5), 10.0)
    assert not outcome.fine


def test_what_a_commit_does_not_know_is_left_out_with_a_note(tools: Any, tmp_path: Path) -> None:
    def older(head: Any) -> None:
        head.unknown = ["relp", "ace"]
        head.tensors = {key: tensor for key, tensor in head.tensors.items() if not key.startswith("relp")}
        head.refused = {}

    outcome = compared(tools, tmp_path, older)
    assert outcome.fine and outcome.notes == ("head does not know relp: left out", "head does not know ace: left out")


def test_nothing_is_not_equal(tools: Any, tmp_path: Path) -> None:
    """Neither a probe that ended before a group nor one that found nothing there proves anything."""
    assert "nothing was written" in tools.folders.compare_group(tmp_path, tmp_path, GROUP).text
    tools.probe.Record().write(tmp_path / GROUP)
    outcome = tools.folders.compare_group(tmp_path, tmp_path, GROUP)
    assert not outcome.fine and "nothing to compare" in outcome.text


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["no-such-commit"], "no-such-commit: no such commit"),
        (["--", "--output=x"], "--output=x: no such commit"),
        (["HEAD", "--only", "no-such-group"], "no group matches"),
        (["HEAD", "--tolerance", "-1"], "--tolerance -1.0"),
        (["HEAD", "--frobnicate"], "--frobnicate"),
        ([], "BASE"),
    ],
)
def test_bad_arguments_are_one_line(tools: Any, capsys: Any, command: list[str], shown: str) -> None:
    assert tools.commits.main(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and shown in err


def test_groups_are_listed_and_chosen(tools: Any, capsys: Any) -> None:
    assert tools.commits.main(["--list", "--only", "*/scores"]) == 0
    subjects = [line.removesuffix("/scores") for line in capsys.readouterr().out.split()]
    assert subjects[:4] == nl.demo_tasks() and len(subjects) == 16
    quick = tools.commits.chosen_groups(None, quick=True)
    assert set(quick) < set(tools.probe.GROUPS) and {group.split("/")[0] for group in quick} == set(tools.probe.QUICK)


@pytest.mark.slow
def test_probe_gives_the_same_twice(tools: Any, tmp_path: Path) -> None:
    """Once in this process and once in one of its own, as the tool runs it; the cheaper groups of a quick subject."""
    groups = [f"gpt2/{kind}" for kind in ("pushes", "neurons", "edited")]
    assert set(groups) < set(tools.commits.chosen_groups(None, quick=True))
    tools.probe.run(nl, groups, tmp_path / "here", lambda line: None)
    tree = Path(str(nl.__file__)).resolve().parents[1]
    command = [sys.executable, str(ROOT / "tools" / "compare_probe.py"), "there", str(tree), str(tmp_path / "there")]
    environment = os.environ | tools.commits.QUIET | {"PYTHONPATH": str(tree)}
    done = subprocess.run([*command, *groups], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "there: 1/3 gpt2/pushes" in done.stderr, done.stderr
    outcomes = tools.folders.compare_folders(tmp_path / "here", tmp_path / "there", groups)
    assert {outcome.text for outcome in outcomes} == {"equal"} and sum(outcome.values for outcome in outcomes) > 5_000


def test_probe_refuses_another_tree(tools: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="neuronllm comes from"):
        tools.probe.check_origin(tmp_path)
