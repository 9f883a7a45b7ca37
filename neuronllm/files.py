"""Folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the body ends well, and vanishes otherwise.

    Only a folder that one of our own files marks, or an empty one, is ever replaced.
    """
    target = Path(path)
    check_new_folder(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            target.rename(old / "old")
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


MARKS = ("scores.json", "neuron_config.json", "neuronllm_bake.json", "neuronllm-demo.json")


def check_new_folder(path: str | os.PathLike[str]) -> None:
    """Refuse a place for output that holds something we did not write, before any work is done."""
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise InputError(f"output {target}: a file stands there, name a folder")
    if target.is_dir() and any(target.iterdir()) and not any((target / mark).exists() for mark in MARKS):
        raise InputError(f"output {target}: the folder is not empty and not one of ours, name a new one")


def write_json(path: Path, data: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(folder: str | os.PathLike[str], name: str, what: str) -> Any:
    """A JSON file of a folder that we wrote, or one clear line on why it is not one."""
    path = Path(folder) / name
    if not path.is_file():
        raise InputError(f"{folder}: no {what} there (missing {name})")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); write the {what} again") from error


def read_tensors(folder: str | os.PathLike[str], name: str, what: str) -> dict[str, Tensor]:
    """A safetensors file of a folder that we wrote, or one clear line on why it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / name
    if not path.is_file():
        raise InputError(f"{folder}: no {what} there (missing {name})")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a valid safetensors file ({error}); write the {what} again") from error
