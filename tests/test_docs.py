"""The documents tell the truth: their Python runs, their links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path

import numpy
import pytest
import torch

import neuronllm

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/tutorial.md"])
def test_python_blocks_run_in_order(document, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(document):
        exec(compile(block, document, "exec"), names)
    assert "nl" in names and capsys.readouterr().out


def doors() -> list[object]:
    """The sections of the page about other libraries that hold Python."""
    sections = re.split(r"^## ", (ROOT / "docs" / "doors.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [pytest.param(text, id=text.splitlines()[0]) for text in sections if "```python" in text]


@pytest.mark.slow
@pytest.mark.parametrize("section", doors())
def test_every_door_opens(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert blocks
    for block in blocks:
        for library in re.findall(r"^(?:import|from) (\w+)|nl\.(captum)\.", block, re.MULTILINE):
            pytest.importorskip("".join(library))
        source = tmp_path / "door.py"  # nnsight reads what it runs
        source.write_text(block, encoding="utf-8")
        exec(compile(block, str(source), "exec"), names)


@pytest.mark.slow
def test_shell_commands_of_the_readme_run(tmp_path, monkeypatch, capsys):
    from neuronllm.cli.main import main

    monkeypatch.chdir(tmp_path)
    text = "".join(re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL))
    commands = [line for line in text.splitlines() if line.startswith("neuronllm ")]
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    assert len(commands) >= 6 and "McNemar" in capsys.readouterr().out


def modules() -> list[str]:
    package = ROOT / "neuronllm"
    paths = [path.relative_to(ROOT).with_suffix("") for path in package.rglob("*.py") if path.name != "__main__.py"]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def test_examples_in_docstrings_are_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tried = 0
    for name in modules():
        module = importlib.import_module(name)
        context = {"nl": neuronllm, "torch": torch, "np": numpy}
        found = doctest.testmod(module, extraglobs=context, optionflags=doctest.NORMALIZE_WHITESPACE)
        assert not found.failed, name
        tried += found.attempted
    assert tried > 30


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
