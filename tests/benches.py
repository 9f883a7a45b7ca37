"""What the tests of bench/ share: its modules, and a command of it that must be refused."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def modules(*names: str) -> Any:
    """Modules of bench/, which is not installed and stands beside the package."""
    sys.path.append(str(ROOT))  # last: neuronllm is whichever is tested
    try:
        return SimpleNamespace(**{name.strip("_"): importlib.import_module(f"bench.{name}") for name in names})
    finally:
        sys.path.remove(str(ROOT))


def refused_line(bench: Any, capsys: Any, command: list[str]) -> str:
    """The one line on stderr of a command that must end with code 2."""
    try:
        code = bench.main.main(command)
    except SystemExit as end:  # of argparse
        code = end.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1, err
    return str(err)
