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


# The file that marks a folder of ours -> the files beside it; None: whatever stands there is ours.
MARKS: dict[str, tuple[str, ...] | None] = {
    "scores.json": ("scores.safetensors",),
    "neuron_config.json": ("neurons.safetensors", "README.md"),
    "neuronllm_bake.json": None,
    "neuronllm-demo.json": None,
}


@contextmanager
def new_folder(path: str | os.PathLike[str], mark: str) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the body ends well, and vanishes otherwise.

    Only an empty folder, or one of the same kind that holds nothing but our own files, is ever replaced.
    """
    target = Path(path)
    check_new_folder(target, mark)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise InputError(f"output {target}: cannot be made: {error.strerror}") from error
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private, and safetensors its files
        for file in temporary.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        if target.exists():
            _exchange(target, temporary)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(target: Path, new: Path) -> None:
    """Put `new` in the place of `target`; if that fails, `target` is back where it was."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    try:
        target.rename(aside / "old")
        try:
            new.rename(target)
        except OSError:
            (aside / "old").rename(target)
            raise
    except OSError:
        if not any(aside.iterdir()):
            aside.rmdir()
        raise
    shutil.rmtree(aside)


def check_new_folder(path: str | os.PathLike[str], mark: str) -> None:
    """Refuse a place for output that holds something else than what would take its place, before any work is done."""
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise InputError(f"output {target}: a file stands there, name a folder")
    if target.resolve() == Path.cwd():
        raise InputError(f"output {target}: this is the current folder, name one inside it")
    names = {entry.name for entry in target.iterdir()} if target.is_dir() else set()
    if names and mark not in names:
        raise InputError(f"output {target}: the folder is not empty and not one of ours of this kind, name a new one")
    beside = MARKS[mark]
    foreign = sorted(names - {mark, *beside}) if beside is not None else []
    if foreign:
        raise InputError(f"output {target}: the folder also holds {foreign[0]}, which is not ours; name a new one")


def write_json(path: Path, data: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"output {path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_new_file(path: str | os.PathLike[str]) -> None:
    """Refuse a place for an output file where something stands or nothing can be, before any work is done."""
    target = Path(path)
    if target.exists():
        raise InputError(f"output {target}: something stands there, name a new file")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"output {target}: its folder does not exist or cannot be written to")


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
