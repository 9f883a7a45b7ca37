#!/usr/bin/env python3
"""Shows that a change of the code changed no number: runs the same probe in two trees and compares bit for bit.

    python tools/compare_commits.py HEAD                   the last commit and the working tree, uncommitted changes too
    python tools/compare_commits.py v1 v2 --only scores    two commits, only groups whose names hold "scores"
    python tools/compare_commits.py HEAD --quick           a minute: three subjects, without the compiled extension

Both trees are temporary copies (git worktrees of commits) with an extension of their own, so the checkout may be worked
on meanwhile and nothing that was built there is touched. The probe (compare_probe.py) is the one beside this file, for
both. One line a group; exit code 0: all is equal, 1: something differs or a probe failed, 2: a bad argument.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

from compare_folders import Outcome, compare_folders
from compare_probe import GROUPS, QUICK

ROOT = Path(__file__).resolve().parents[1]
PROBE = Path(__file__).with_name("compare_probe.py")
# One thread, no network, no GPU: what else may turn a rounding, or talk between the lines.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class BadArgument(Exception):
    """One line for the user."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadArgument(message)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="compare_commits.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", nargs="?", metavar="BASE", help="a commit")
    parser.add_argument("head", nargs="?", metavar="HEAD", help="another (default: the working tree as it is)")
    parser.add_argument("--only", metavar="PATTERN", help="groups whose names match, such as llama or '*/scores'")
    parser.add_argument("--list", action="store_true", help="print the groups and end")
    parser.add_argument("--quick", action="store_true", help="three subjects, the extension not built (torch selects)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="X",
        help="accept differences of floating numbers up to X, relative to the largest number of their tensor",
    )
    args = parser.parse_args(given)
    if not (math.isfinite(args.tolerance) and args.tolerance >= 0):
        parser.error(f"--tolerance {args.tolerance}: give a number, 0 or more")
    if args.base is None and not args.list:
        parser.error("BASE: name a commit to compare with, such as HEAD")
    return args


def chosen_groups(only: str | None, quick: bool) -> list[str]:
    known = [group for group in GROUPS if not quick or group.split("/")[0] in QUICK]
    chosen = [group for group in known if only is None or only in group or fnmatch(group, only)]
    if not chosen:
        raise BadArgument(f"--only {only}: no group matches; --list names them")
    return chosen


# ---- trees ----


def git(*command: str) -> str:
    # A hook of the user's has no business in a tree that is thrown away.
    whole = ["git", "-C", str(ROOT), "-c", f"core.hooksPath={os.devnull}", *command]
    done = subprocess.run(whole, capture_output=True, text=True)
    if done.returncode:
        raise BadArgument(f"git {command[0]}: {' '.join(done.stderr.split())}")
    return done.stdout


def resolved(name: str) -> str:
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", name + "^{commit}").strip()
    except (BadArgument, OSError) as error:
        raise BadArgument(f"{name}: no such commit here") from error


@contextmanager
def tree_of(commit: str | None, folder: Path) -> Iterator[Path]:
    """A tree of its own in `folder`: a worktree of the commit, or a copy of the files of the working tree."""
    if commit is None:
        copy_working_tree(folder)
        yield folder
        return
    try:
        git("worktree", "add", "--quiet", "--detach", str(folder), commit)
        yield folder
    finally:
        with undisturbed():
            try:
                git("worktree", "remove", "--force", str(folder))
            except BadArgument:  # it was only half made
                shutil.rmtree(folder, ignore_errors=True)
                git("worktree", "prune")


@contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C waits for nothing; git, started in here, would inherit it too."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def copy_working_tree(folder: Path) -> None:
    """All that git tracks or would add, as it lies there; what was built is ignored and so left out."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in sorted(set(filter(None, names))):
        if (ROOT / name).is_file():  # not what was deleted
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def build(tree: Path, label: str) -> None:
    """Compile the extension of this tree. What another tree's sources became would prove nothing about this one."""
    say(f"{label}: building the extension")
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = os.environ | {"NEURONLLM_BUILD_CUDA": "0"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode or not list(tree.rglob("_select*.so")):
        say(f"{label}: the extension was not built, torch selects in its place\n{done.stdout}{done.stderr}".rstrip())


def probe(tree: Path, label: str, output: Path, groups: Sequence[str]) -> None:
    command = [sys.executable, str(PROBE), label, str(tree), str(output), *groups]
    environment = os.environ | QUIET | {"PYTHONPATH": str(tree)}
    # In a session of its own it does not hear a Ctrl-C, which would print where it was: `run` ends it without a word.
    done = subprocess.run(command, cwd=output.parent, env=environment, start_new_session=True)
    if done.returncode:
        say(f"{label}: the probe ended with code {done.returncode}; what it did not write counts as different")


def compared(args: argparse.Namespace, groups: Sequence[str]) -> list[Outcome]:
    commits = {"base": resolved(args.base), "head": None if args.head is None else resolved(args.head)}
    with tempfile.TemporaryDirectory(prefix="compare-commits-") as temporary:
        folder = Path(temporary).resolve()
        for label, commit in commits.items():
            say(f"{label}: {commit or 'the working tree'}")
            with tree_of(commit, folder / f"{label}-tree") as tree:
                if not args.quick:
                    build(tree, label)
                probe(tree, label, folder / label, groups)
        return compare_folders(folder / "base", folder / "head", groups, args.tolerance)


# ---- the command ----


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def stop(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def main(given: Sequence[str] | None = None) -> int:
    start = time.monotonic()
    try:
        args = arguments(given)
        groups = chosen_groups(args.only, args.quick)
        if args.list:
            print("\n".join(groups))
            return 0
        outcomes = compared(args, groups)
    except BadArgument as error:
        say(f"compare_commits: {error}")
        return 2
    except KeyboardInterrupt:
        say("compare_commits: interrupted")
        return 130
    width = max(len(outcome.group) for outcome in outcomes)
    for outcome in outcomes:
        print(f"{outcome.group:{width}}  {outcome.values:>7} values  {outcome.text}")
    for note in sorted({note for outcome in outcomes for note in outcome.notes}):
        print(f"note: {note}")
    failed = [outcome for outcome in outcomes if not outcome.fine]
    total = sum(outcome.values for outcome in outcomes)
    accepted = f" or within {args.tolerance:g}" if args.tolerance else ""
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} groups are equal{accepted}, {total} values compared")
    say(f"{time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a job in the background would not hear of the first
        signal.signal(number, stop)
    sys.exit(main())
