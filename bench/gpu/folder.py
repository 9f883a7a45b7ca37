"""What a run leaves behind: at most six files, each small enough to be carried away from a machine that is given back.

results.jsonl has one line a stage, report.txt the same for people and the summary, failures.txt all that is known of
every case that failed, log.txt what the processes printed; block_sizes.json is written by the stage that tunes, and
running.jsonl is what a stage under way has said so far. A run that is resumed adds to them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neuronllm.common.errors import InputError

RESULTS, REPORT, FAILURES, LOG = "results.jsonl", "report.txt", "failures.txt", "log.txt"
RUNNING = "running.jsonl"
LARGEST = 9 * 2**20  # bytes of a file
OF_ONE = 2**18  # bytes of what one process printed: its beginning and its end
PASSED, FAILED, SKIPPED, LATE, CUT = "passed", "failed", "skipped", "timed out", "interrupted"


class Folder:
    """The files of a run; `resumed` is the folder of an earlier one, whose stages that passed need not run again."""

    def __init__(self, path: Path, resumed: Path | None = None, pretend: bool = False) -> None:
        self.path, self.running = path, path / RUNNING
        earlier = results(resumed) if resumed else []
        if resumed is None and (path / RESULTS).exists():
            raise InputError(f"--out {path}: it holds an earlier run; give --resume {path}, or another folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in (RESULTS, REPORT, FAILURES, LOG):
                (path / name).touch()
            if resumed is not None and resumed.resolve() != path.resolve():
                (path / RESULTS).write_text("".join(json.dumps(line) + "\n" for line in earlier), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--out {path}: {error.strerror}; give a folder that can be written to") from error
        passed = {line["stage"] for line in newest(earlier) if line["verdict"] == PASSED}
        alike = {line["stage"] for line in newest(earlier) if bool(line.get("pretended")) == pretend}
        self.passed = passed & alike
        if resumed is not None:
            other = f"; {len(passed - alike)} more ran another way, with or without a GPU" if passed - alike else ""
            self.say(f"==== resumed: {len(self.passed)} stages passed before{other}")

    def stage(self, result: dict[str, Any], printed: bytes) -> None:
        """Keep what became of a stage."""
        short = {key: value for key, value in result.items() if key != "cases"}
        short["cases"] = [{k: v for k, v in case.items() if k != "diagnosis"} for case in result.get("cases", [])]
        self._append(RESULTS, json.dumps(short, default=str) + "\n")
        self.say(line_of(result))
        for case in result.get("cases", []):
            if case["verdict"] in (FAILED, LATE):
                told = f"{case.get('why', '')}\n{case.get('diagnosis', '')}".strip()
                self._append(FAILURES, f"==== {result['stage']}: {case['case']}\n{told}\n\n")
        if printed:
            self._append(LOG, f"==== {result['stage']}\n" + shortened(printed) + "\n")

    def say(self, text: str) -> None:
        print(text, flush=True)
        self._append(REPORT, text + "\n")

    def failure(self, title: str, printed: bytes) -> None:
        """What a rerun of a failing case printed, with all the detail it could give."""
        self._append(FAILURES, f"==== {title}\n{shortened(printed)}\n\n")

    def _append(self, name: str, text: str) -> None:
        path = self.path / name
        data = text.encode("utf-8", "replace")
        if path.stat().st_size + len(data) > LARGEST:
            data = f"[{len(data)} bytes left out: the file is full]\n".encode()
        if path.stat().st_size + len(data) <= LARGEST + 2**16:
            with open(path, "ab") as file:
                file.write(data)


def results(folder: Path) -> list[dict[str, Any]]:
    """The lines of an earlier run."""
    path = folder / RESULTS if folder.is_dir() else folder
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines if line.strip()]
        return [line for line in found if line["stage"] and line["verdict"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: no results of a run there ({error}); give the folder of an earlier --out") from error


def newest(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of every stage: a run that was resumed has several of one.

    >>> newest([{"stage": "a", "verdict": "failed"}, {"stage": "a", "verdict": "passed"}])
    [{'stage': 'a', 'verdict': 'passed'}]
    """
    return list({line["stage"]: line for line in lines}.values())


def shortened(printed: bytes) -> str:
    """The beginning and the end of what a process printed.

    >>> len(shortened(b"x" * (3 * OF_ONE))) < OF_ONE + 100
    True
    """
    if len(printed) > OF_ONE:
        half = OF_ONE // 2
        left = f"\n[{len(printed) - OF_ONE} bytes left out]\n".encode()
        printed = printed[:half] + left + printed[-half:]
    return printed.decode("utf-8", "replace").rstrip()


def line_of(result: dict[str, Any]) -> str:
    """A stage on one line: what, verdict, seconds, then what failed, or the key figures, or why nothing ran."""
    told = result.get("why") or "; ".join(filter(None, (*_failed(result), *_figures(result), *_skipped(result))))
    return f"{result['stage']:<16} {result['verdict']:<9} {result['seconds']:7.1f} s  {told}".rstrip()


def _failed(result: dict[str, Any]) -> list[str]:
    cases = result.get("cases", [])
    bad = [case for case in cases if case["verdict"] in (FAILED, LATE)]
    shown = [f"{case['case']}: {case.get('why', '')[:160]}" for case in bad[:3]]
    more = [f"and {len(bad) - 3} more"] if len(bad) > 3 else []
    unseen = sum(case["verdict"] == "not run" for case in cases)
    told = [f"{len(bad)} of {len(cases)} cases failed", *shown, *more] if bad else []
    return [*told, f"{unseen} of {len(cases)} cases were not reached"] if unseen else told


def _figures(result: dict[str, Any]) -> list[str]:
    lines = [case["figures"]["line"] for case in result.get("cases", []) if case.get("figures", {}).get("line")]
    good = sum(case["verdict"] == PASSED for case in result.get("cases", []))
    return lines or ([f"{good} cases passed"] if good else [])


def _skipped(result: dict[str, Any]) -> list[str]:
    gone: dict[str, int] = {}
    for case in result.get("cases", []):
        if case["verdict"] == SKIPPED:
            gone[case.get("why", "")] = gone.get(case.get("why", ""), 0) + 1
    return [f"skipped {count}: {why}" for why, count in gone.items()]
