"""Runs stages within a budget of time; whatever becomes of one, the next one runs.

Every stage is a process of its own. It is started again behind a case that crashed, hung or broke the device, a few
times; it is ended when its time is over. So what a machine has to say is said even where the first thing breaks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .folder import CUT, FAILED, LATE, PASSED, SKIPPED, Folder
from .stages import INTERPRETER, Stage
from .worker import BEGUN, LOST, ROOT, WAITING, Setting, append, command, read

RESERVE = 3.0  # seconds kept for the end of the last stage and the summary
STARTS = 12  # of a stage's process
RERUNS, RERUNNING = 2, 40.0  # of failing cases with all detail, and seconds for all of them
UNKILLABLE = 10.0  # seconds until a process that does not end, stuck in a driver, is left alone
TURN = 0.1  # seconds between two looks at a process
LOUD = {"TRITON_DEBUG": "1", "CUDA_LAUNCH_BLOCKING": "1", "TORCH_SHOW_CPP_STACKTRACES": "1"}


@dataclass
class Budget:
    """Seconds from its making on."""

    seconds: float

    def __post_init__(self) -> None:
        self.start = time.monotonic()

    @property
    def used(self) -> float:
        return time.monotonic() - self.start

    @property
    def left(self) -> float:
        return self.seconds - RESERVE - self.used


def run(stages: Sequence[Stage], folder: Folder, minutes: float, pretend: bool) -> int:
    """0 where nothing failed; what does not fit into the budget is named, and no failure."""
    budget = Budget(60 * minutes)
    results: list[dict[str, Any]] = []
    try:
        for stage in stages:
            if stage.needs_device and any(_no_device(result) for result in results):
                results.append(_left_out(stage, folder, "there is no device to run on"))
            else:
                results.append(_one(stage, folder, budget, pretend, results))
    finally:
        folder.say(summary(results, budget))
        folder.running.unlink(missing_ok=True)
    return int(any(result["verdict"] in (FAILED, LATE) for result in results))


def _no_device(result: dict[str, Any]) -> bool:
    cases = {case["case"]: case["verdict"] for case in result.get("cases", [])}
    return result["stage"] == "machine" and cases.get("facts") == FAILED


def summary(results: Iterable[dict[str, Any]], budget: Budget) -> str:
    found: dict[str, list[str]] = {}
    for result in results:
        found.setdefault(result["verdict"], []).append(result["stage"])
    parts = [f"{len(names)} {verdict} ({', '.join(names)})" for verdict, names in found.items()]
    return f"{budget.used:.0f} of {budget.seconds:.0f} seconds: {'; '.join(parts) or 'nothing ran'}"


def _one(stage: Stage, folder: Folder, budget: Budget, pretend: bool, results: list[dict[str, Any]]) -> dict[str, Any]:
    if stage.name in folder.passed:
        return {"stage": stage.name, "verdict": "passed before", "seconds": 0.0}
    if stage.seconds(pretend) > budget.left:
        left = max(0.0, budget.left)
        return _left_out(
            stage, folder, f"does not fit: {stage.seconds(pretend):.0f} s estimated, {left:.0f} s are left"
        )
    start, limit = time.monotonic(), min(budget.left, stage.limit(pretend))
    setting = _setting(stage, folder, limit, pretend)
    folder.running.unlink(missing_ok=True)
    printed, late, whole = b"", False, False
    try:
        printed, late = _run_cases(stage, setting, start + limit)
        whole = True
    finally:  # interrupted or not: what is known by now is kept
        cases = _latest(setting)
        result = {"stage": stage.name, "verdict": _verdict(cases, late) if whole else CUT, "cases": cases}
        result |= {"seconds": round(time.monotonic() - start, 1), "pretended": pretend, "limit": round(limit, 1)}
        folder.stage(result, printed)
        if not whole:
            results.append(result)
    if stage.rerun:
        _again(stage, folder, setting, cases, time.monotonic() + min(budget.left, RERUNNING))
    return result


def _left_out(stage: Stage, folder: Folder, why: str) -> dict[str, Any]:
    result = {"stage": stage.name, "verdict": SKIPPED, "seconds": 0.0, "why": why}
    folder.stage(result, b"")
    return result


def _setting(stage: Stage, folder: Folder, limit: float, pretend: bool) -> Setting:
    kind = stage.pretend if pretend else ""
    device = "cuda" if kind in ("", "device") else "cpu"
    return Setting(stage.module, str(folder.running.resolve()), device, kind, limit, str(folder.path.resolve()))


def _run_cases(stage: Stage, setting: Setting, deadline: float) -> tuple[bytes, bool]:
    """Run all cases, in as many processes as it takes: what was printed, and whether time was over."""
    printed, late = b"", False
    for _ in range(STARTS):
        code, text, reason = _process(stage, setting, deadline)
        printed += text
        late = time.monotonic() >= deadline
        found = {"verdict": LATE if reason else FAILED, "why": reason or _ending(code)}
        found["diagnosis"] = text.rsplit(b"\n--- ", 1)[-1][-20_000:].decode("utf-8", "replace")
        running = [event["case"] for event in _latest(setting) if event["verdict"] == BEGUN]
        for case in running:
            append(Path(setting.events), {"case": case} | found)
        if code not in (0, LOST) and not running:  # nothing was under way: it would end so again
            append(Path(setting.events), {"case": "the process"} | found)
            break
        if code == 0 or late:
            break
    return printed, late


def _process(stage: Stage, setting: Setting, deadline: float) -> tuple[int, bytes, str]:
    """Exit code, output, and why it was ended before its end, if it was."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    environment |= {"TRITON_INTERPRET": "1"} if setting.pretend == INTERPRETER else {}
    environment |= LOUD if setting.detail else {}
    reason = ""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command(setting), cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None:
                reason = _overdue(stage, setting, deadline)
                if reason:
                    break
                time.sleep(TURN)
        finally:
            _end(process)
        output.seek(0)
        code = process.returncode
        return (-signal.SIGKILL if code is None else code), output.read(), reason


def _overdue(stage: Stage, setting: Setting, deadline: float) -> str:
    if time.monotonic() >= deadline:
        return f"ended after the {setting.seconds:.0f} s that the stage had"
    path = Path(setting.events)
    latest = list(read(path))[-1:]
    if latest and latest[0]["verdict"] == BEGUN and time.time() - path.stat().st_mtime > stage.patience:
        return f"hangs: ended after {stage.patience:.0f} s"
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started; where it hangs it is asked first where it stands."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(UNKILLABLE)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} does not end, it may hold the device", flush=True)


def _ending(code: int) -> str:
    if code >= 0:
        return f"the process ended with exit code {code}"
    more = ", as where the machine's memory is full" if code == -signal.SIGKILL else ""
    return f"the process was ended by {signal.Signals(-code).name}{more}"


def _latest(setting: Setting) -> list[dict[str, Any]]:
    """The last event of every case, in the order in which the cases began."""
    return list({event["case"]: event for event in read(Path(setting.events))}.values())


def _verdict(cases: Sequence[dict[str, Any]], late: bool) -> str:
    found = {case["verdict"] for case in cases}
    if FAILED in found:
        return FAILED
    if LATE in found or late or WAITING in found:
        return LATE
    return PASSED if PASSED in found else SKIPPED if found else FAILED


def _again(stage: Stage, folder: Folder, setting: Setting, cases: Sequence[dict[str, Any]], deadline: float) -> None:
    """Failing cases once more, each alone, loudly: only now, since what is loud is slow and may change what is seen."""
    failed = [case["case"] for case in cases if case["verdict"] == FAILED and case["case"] != "the process"]
    different = {name.split(",")[0]: name for name in reversed(failed)}  # the first of each op
    for number, name in enumerate(list(different.values())[:RERUNS]):
        if time.monotonic() >= deadline:
            return
        alone = replace(setting, detail=name, events=f"{setting.events}-{number}")
        try:
            _, printed, _ = _process(stage, alone, min(deadline, time.monotonic() + stage.patience))
        finally:
            Path(alone.events).unlink(missing_ok=True)
        folder.failure(f"{stage.name}: {name}, once more, alone", printed)
