"""`neuronllm demo`: what it prints and leaves behind, and that the command on its page makes the same again."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import neuronllm as nl
from neuronllm.cli.demo import EDITS, demonstrate, tell
from neuronllm.cli.main import main
from neuronllm.comparing import run as comparing

FEW = "quick,search=8,validation=8,test=8,elsewhere=4,judged=2,effects=2000,controls=2,curve_controls=1"
TASKS = ["sentiment"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> nl.Comparison:
    return demonstrate(tmp_path_factory.mktemp("demo") / "made", TASKS, FEW, progress=False)


def test_it_ends_with_the_page(made: nl.Comparison, capsys: Any) -> None:
    assert made.folder is not None and (made.folder / "report.html").is_file()
    assert {path.name for path in (made.folder / "sets" / "sentiment" / "gradient").iterdir()} == set(EDITS)
    tell(made)
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert [row[0] for row in rows] == ["sentiment", *EDITS]
    edits = {edit["edit"]: edit for edit in made.data["edits"]}
    assert rows[0][2] == f"{made.data['tasks'][0]['base']['accuracy']:.3f}"
    for row in rows[1:]:
        edit = edits[row[0]]
        assert row[1:3] == [str(edit["neurons"]), f"{edit['accuracy']:.3f}"]
        assert row[3] == (f"{edit['gain']:+.3f}" if edit["neurons"] else "")
        assert edit["verdict"].startswith(row[6])
    assert max(map(len, lines)) <= 120 and not any("plotly" in line for line in lines)


def test_without_plotly_it_says_what_is_missing(made: nl.Comparison, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    tell(made)
    assert "its figures: they need plotly, pip install 'neuronllm[report]'" in capsys.readouterr().out


def test_the_command_of_the_page_asks_for_the_same(made: nl.Comparison, tmp_path: Path, monkeypatch: Any) -> None:
    name, command, *given = shlex.split(made.data["made"]["command"])
    assert (name, command) == ("neuronllm", "compare")
    asked: dict[str, Any] = {}

    def compared(model: Any, tokenizer: Any, tasks: Any, request: Any) -> nl.Comparison:
        asked["settings"] = json.loads(json.dumps(request.settings()))
        asked["dtype"] = str(model.dtype)
        asked["tasks"] = {name: task.settings() for name, task in tasks.items()}
        return made

    monkeypatch.setattr("neuronllm.cli.compare.compared", compared)
    assert main([command, *given[:-1], str(tmp_path / "again")]) == 0
    begun = json.loads((made.folder / "compare.json").read_text())
    assert asked["tasks"] == begun["tasks"] and asked["dtype"] == f"torch.{begun['dtype']}" == "torch.float32"
    assert asked["settings"] == made.data["made"]["settings"]


@pytest.mark.slow
def test_what_was_stopped_goes_on_and_what_is_done_is_replaced(
    made: nl.Comparison, tmp_path: Path, monkeypatch: Any
) -> None:
    output, do, left = tmp_path / "demo", comparing._do, [5]

    def stopped(setting: Any, stage: Any) -> None:
        if not left.pop(0):
            raise KeyboardInterrupt
        left.append(0)
        do(setting, stage)

    monkeypatch.setattr(comparing, "_do", stopped)
    with pytest.raises(KeyboardInterrupt, match="interrupted, 1 of [0-9]+ pieces of work are done; the same command"):
        demonstrate(output, TASKS, FEW, progress=False)
    monkeypatch.setattr(comparing, "_do", do)
    demonstrate(output, TASKS, FEW, progress=False)
    assert (output / "comparison.json").read_bytes() == (made.folder / "comparison.json").read_bytes()


def test_bad_input_is_one_line(tmp_path: Path, capsys: Any) -> None:
    assert main(["demo", "--tasks", "fact", "--output", str(tmp_path / "out")]) == 2
    assert "demo task 'fact': the bundled tasks are entailment, facts" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "not one of ours" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
