"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


BAKED = "neuronllm_bake.json"  # in the folder of a model into which neurons were folded: which, and how hard

# The file that marks a folder of ours -> patterns of the files beside it; None: whatever stands there is ours.
MARKS: dict[str, tuple[str, ...] | None] = {
    "scores.json": ("scores.safetensors", "run.json", "part-*.safetensors"),
    "neuron_config.json": ("neurons.safetensors", "controls.safetensors", "README.md"),
    BAKED: None,
    "neuronllm_adapter.json": ("adapter_config.json", "adapter_model.safetensors", "README.md"),
    "neuronllm_hooks.json": ("factors.safetensors", "README.md"),
    "comparison.json": ("timings.json", "compare.json", "report.html", "sets"),
}
OVERWRITE = "overwrite=True (--overwrite) to replace it"


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


def take_place(folder: Path, target: Path) -> None:
    """Give a folder the name of `target`; what stands there is set aside until then, under a name of its own."""
    aside = target.with_name(f".{target.name}.replaced")
    try:
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
        folder.rename(target)
    except OSError as error:
        raise InputError(f"output {target}: cannot be replaced: {error.strerror}") from error
    clear_aside(target)


def clear_aside(target: Path) -> None:
    """Take away what an earlier `take_place` may have left when it was killed."""
    shutil.rmtree(target.with_name(f".{target.name}.replaced"), ignore_errors=True)


def check_new_folder(path: str | os.PathLike[str], mark: str, replace: bool = True) -> None:
    """Refuse a place for output that holds something else than what would take its place, before any work is done.

    Without `replace` an earlier result of the same kind is refused too.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise InputError(f"output {target}: a file stands there, name a folder")
    if target.resolve() == Path.cwd():
        raise InputError(f"output {target}: this is the current folder, name one inside it")
    names = {entry.name for entry in target.iterdir()} if target.is_dir() else set()
    if names and mark not in names:
        raise InputError(f"output {target}: the folder is not empty and not one of ours of this kind, name a new one")
    beside = MARKS[mark]
    foreign = sorted(n for n in names if not any(fnmatch(n, known) for known in (mark, *(beside or "*"))))
    if foreign:
        raise InputError(f"output {target}: the folder also holds {foreign[0]}, which is not ours; name a new one")
    if names and not replace:
        raise InputError(f"output {target}: an earlier result stands there: name a new folder, or give {OVERWRITE}")
    check_writable(target)


def check_writable(target: Path) -> None:
    """Refuse a place where nothing can be made."""
    above = next(folder for folder in (target, *target.absolute().parents) if os.path.exists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "is not a folder" if not above.is_dir() else "cannot be written to"
        raise InputError(f"output {target}: cannot be made, {above} {why}")


def write_json(path: Path, data: Any, indent: int | None = 2) -> None:
    write_text(path, json.dumps(data, indent=indent, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    with _whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file that appears whole or not at all; the same tensors give the same bytes."""
    from safetensors.torch import save_file

    with _whole(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        temporary.chmod(0o644)  # safetensors makes its files private


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what the body writes there is flushed to the disk and takes its place."""
    from safetensors import SafetensorError

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(path)
        flush_to_disk(path.parent)
    except (OSError, SafetensorError) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0]
        raise InputError(f"output {path}: cannot be written: {why}") from error
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Make what a file holds, or which names a folder has, outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    """The tensors of a safetensors file of a folder that we wrote."""
    with open_tensors(Path(folder) / name, what) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary


@contextmanager
def open_tensors(path: Path, what: str) -> Iterator[Any]:
    """A safetensors file that we wrote, mapped into memory, or one clear line on why it is not one."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path.parent}: no {what} there (missing {path.name})")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(f"{path}: not a valid safetensors file ({error}); write the {what} again") from error
