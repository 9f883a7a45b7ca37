"""Calling the command line, and what it is called with."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from neuronllm.cli.main import main

ROWS = [
    {"id": f"q{n}", "question": f"Which of these is word {n}?", "choices": ["red", "blue", "seven"], "answer": n % 3}
    for n in range(6)
]


def write_questions(path: Path, rows=ROWS) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


def refused(capsys, *args: object) -> str:
    """The single line of an error, after checking that it is one and that the exit code says so."""
    capsys.readouterr()
    assert run(*args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and "error: " in lines[0], lines
    return lines[0]


def asked(model_folder, questions, *flags: object) -> tuple[object, ...]:
    return ("attribute", "--model", model_folder, "--questions", questions, "--method", "gradient", "--quiet", *flags)


def copied(folder: Path, target: Path, change) -> Path:
    """A copy of a saved model with its weights changed."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(target / "model.safetensors")
    save_file(change(weights), target / "model.safetensors", metadata={"format": "pt"})
    return target
