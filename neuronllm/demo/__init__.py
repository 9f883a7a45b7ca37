"""The bundled model and its tasks; the demonstration that runs on them is the command in cli/demo.py.

The model is tiny and knows a small world (examples/tinyworld says how it was made). Every task has questions to search
on, questions to tune on, and questions to test on, over different items.
"""

from __future__ import annotations

from pathlib import Path

from ..common.errors import InputError

HERE = Path(__file__).parent
DEMO = "demo:"  # before the name of a bundled task, where the command line takes a file
SPLITS = ("search", "validation", "test")


def demo_tasks() -> list[str]:
    """Names of the bundled tasks."""
    return sorted(folder.name for folder in (HERE / "tasks").iterdir() if folder.is_dir())


def demo_task(task: str, split: str = "search") -> str:
    """The JSONL file of a bundled task.

    >>> demo_task("facts", "test").endswith("facts/test.jsonl")
    True
    """
    if task not in demo_tasks():
        raise InputError(f"demo task {task!r}: the bundled tasks are {', '.join(demo_tasks())}")
    if split not in SPLITS:
        raise InputError(f"demo split {split!r}: known splits are {', '.join(SPLITS)}")
    return str(HERE / "tasks" / task / f"{split}.jsonl")
