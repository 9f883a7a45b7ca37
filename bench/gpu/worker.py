"""A stage in a process of its own: python -m bench.gpu.worker SETTING, JSON on one line.

Cases run one by one. What becomes of each is appended to the file of events before the next begins, and a case that is
in the file already is not run again: so the process that started this one can start it anew behind a case that crashed
or hung. A case returns its figures; it raises Wrong where a result is wrong and Skipped where there is nothing to try.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .diagnosis import describe

ROOT = Path(__file__).resolve().parents[2]
WAITING, BEGUN = "not run", "begun"
LOST = 3  # exit code: the device answers no more in this process


class Wrong(AssertionError):
    """A result that is not what it should be; the message says where."""


class Skipped(Exception):
    """There is nothing to try here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What a stage is told. `detail` names the one case to run, with all that can be said of it."""

    module: str
    events: str
    device: str = "cuda"
    pretend: str = ""  # what stands in for a GPU: "device", "interpreter", "host"; empty on a GPU
    seconds: float = 1e9
    out: str = ""
    detail: str = ""

    def scratch(self, name: str) -> Path:
        """A file of the folder that is left behind."""
        return Path(self.out or ".") / name


@dataclass(frozen=True)
class Case:
    name: str
    run: Callable[[], dict[str, Any] | None]


def main(text: str) -> int:
    setting = Setting(**json.loads(text))
    _end_with_the_parent()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # asked for before a case that hangs is ended
    events = Path(setting.events)
    with _stand_in(setting):
        cases = importlib.import_module(setting.module).cases(setting)
        wanted = [case for case in cases if setting.detail in ("", case.name)]
        known = {event["case"]: event["verdict"] for event in read(events)}
        for case in wanted:  # so that those which are never reached have a name
            if case.name not in known:
                append(events, {"case": case.name, "verdict": WAITING})
        for case in wanted:
            if known.get(case.name, WAITING) != WAITING:
                continue
            append(events, {"case": case.name, "verdict": BEGUN})
            print(f"--- {case.name}", flush=True)
            found = attempt(case, detail=bool(setting.detail))
            append(events, {"case": case.name} | found)
            if found["verdict"] == "failed" and not _alive():
                return LOST
    return 0


def attempt(case: Case, detail: bool = False) -> dict[str, Any]:
    """Run a case: its verdict, seconds, figures, and where it failed all that helps to see why."""
    start = time.monotonic()
    try:
        found: dict[str, Any] = {"verdict": "passed", "figures": case.run() or {}}
    except Skipped as reason:
        found = {"verdict": "skipped", "why": str(reason)}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told and the next case runs
        found = {"verdict": "failed", "why": _one_line(error), "diagnosis": describe(error, detail)}
        print(found["diagnosis"], flush=True)
        del error
    _let_go()
    return found | {"seconds": round(time.monotonic() - start, 2)}


def _one_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0][:300]}".rstrip(": ")


def _let_go() -> None:
    """Give memory back, so that a case that took too much does not take the next one with it."""
    torch = sys.modules.get("torch")
    gc.collect()
    if torch is not None and torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def ran(command: list[str], switches: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a program in the root of the project; what it prints is passed on as it comes, and its end returned."""
    last: deque[str] = deque(maxlen=1500)
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | (switches or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last.append(line)
    return process.wait(), "".join(last)


def _end_with_the_parent() -> None:
    """Where the program that started this process is killed, this process must not go on holding the device."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _alive() -> bool:
    """Whether the device still answers: after an illegal access every later call in this process fails."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _stand_in(setting: Setting) -> AbstractContextManager[Any]:
    """What takes the place of a GPU; nothing on one."""
    if setting.pretend == "device":
        from tests.pretend import pretended

        return pretended()
    if setting.pretend == "interpreter":
        from tests.pretend import mend_interpreter

        mend_interpreter()
    return contextlib.nullcontext()


def moved(model: Any, setting: Setting) -> Any:
    """The model on the device of the stage."""
    if setting.pretend == "device":
        from tests.pretend import placed

        return placed(model)
    return model.to(setting.device)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The events so far. The last line may be cut off where the process was ended while it wrote."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def append(path: Path, event: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(event, default=str) + "\n")
        file.flush()


def command(setting: Setting) -> list[str]:
    return [sys.executable, "-u", "-m", "bench.gpu.worker", json.dumps(dataclasses.asdict(setting))]


if __name__ == "__main__":
    # The module of this name, not __main__: the stages raise its Wrong and Skipped.
    code = importlib.import_module("bench.gpu.worker").main(sys.argv[1])
    sys.stdout.flush()
    os._exit(code)  # a broken device may hang or crash in what Python does at its end
