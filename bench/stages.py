"""Where the time of a run from questions to a saved neuron set goes.

    python -m bench.stages MODEL QUESTIONS FOLDER [--device-map cuda]

runs `neuronllm attribute` and `neuronllm find` in this process and prints the seconds of every stage as JSON. The
stages are measured from outside: functions of the package are wrapped here, and nowhere else. Time belongs to the
innermost stage that is open, so the stages never count anything twice and add up to the whole.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

# Each stage and the functions that are it: "module:name" or "module:Class.name".
STAGES: dict[str, tuple[str, ...]] = {
    "loading": ("neuronllm.cli.main:_model",),
    "tokenising": ("neuronllm.cli.main:_questions", "neuronllm.attribution.job:as_prompts"),
    "hashing": ("neuronllm.attribution.job:Job.settings",),
    "planning and self-check": (
        "neuronllm.engine.checked:CheckedEngine.unusable",
        "neuronllm.engine.planned:PlannedEngine.fit",
    ),
    "scoring": ("neuronllm.attribution.driver:raw_scores", "neuronllm.attribution.driver:question_scores"),
    "aggregation": (
        "neuronllm.methods.base:Collector.add",
        "neuronllm.methods.base:Collector.summary",
        "neuronllm.attribution.job:Job.per_prompt",
    ),
    "selection": ("neuronllm.results.scores:Scores.find",),
    "writing": (
        "neuronllm.runs.stores:DiskStore.add",
        "neuronllm.runs.stores:DiskStore.end",
        "neuronllm.runs.checkpoint:Run.freeze",
        "neuronllm.runs.checkpoint:Run.finish",
        "neuronllm.results.scores:Scores.load",
        "neuronllm.results.neurons:NeuronSet.save_pretrained",
    ),
}
REST = "the rest"


class Clock:
    """Seconds by stage.

    >>> clock = Clock(["outer", "inner"])
    >>> with clock.stage("outer"):
    ...     with clock.stage("inner"):
    ...         pass
    >>> sorted(clock.seconds)
    ['inner', 'outer', 'the rest']
    """

    def __init__(self, stages: Any = tuple(STAGES), now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = dict.fromkeys((*stages, REST), 0.0)
        self._now, self._open, self._since = now, [REST], now()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.book()
        self._open.append(name)
        try:
            yield
        finally:
            self.book()
            self._open.pop()

    def book(self) -> None:
        """Give the time since the last booking to the stage that is open, and the work of a GPU to who asked for it."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = self._now()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def watched() -> Iterator[Clock]:
    """A clock that runs while functions of the package do; they are as they were afterwards."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401 - imports are starting, not loading

    places = [(name, *_found(target)) for name, targets in STAGES.items() for target in targets]
    clock = Clock()
    with ExitStack() as stack:
        for name, owner, attribute in places:
            whole = inspect.getattr_static(owner, attribute)
            function = whole.__func__ if isinstance(whole, classmethod) else whole
            wrapped = _timed(clock, name, function)
            put = classmethod(wrapped) if isinstance(whole, classmethod) else wrapped
            stack.enter_context(mock.patch.object(owner, attribute, put))
        yield clock
        clock.book()


def _timed(clock: Clock, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with clock.stage(name):
            return function(*args, **kwargs)

    return wrapper


def _found(target: str) -> tuple[Any, str]:
    """What holds a function, and the function's name there."""
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, attribute = path.split(".")
    for name in classes:
        owner = getattr(owner, name)
    return owner, attribute


def run(model: str, questions: str, folder: Path, device_map: str | None = None) -> dict[str, float]:
    """Seconds by stage of `attribute` and `find`; the scores and the set are left in `folder`."""
    from neuronllm.cli.main import main

    commands = [
        ["attribute", "--quiet", "--model", model, "--questions", questions, "--output", str(folder / "scores")],
        ["find", str(folder / "scores"), "--output", str(folder / "neurons")],
    ]
    commands[0] += ["--method", "gradient", "--positions", "answer", "--orders", "none"]
    commands[0] += ["--device-map", device_map] if device_map else []
    with watched() as clock:
        for command in commands:
            if code := main(command):
                raise SystemExit(code)
    return clock.seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.stages")
    parser.add_argument("model")
    parser.add_argument("questions")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device-map")
    args = parser.parse_args()
    print(json.dumps(run(args.model, args.questions, args.folder, args.device_map)), file=sys.stdout)
