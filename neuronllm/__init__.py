"""Find the good and the bad neurons of a large language model, and steer it with them.

>>> import neuronllm as nl
>>> model, tokenizer = nl.load_model("demo")
>>> questions = nl.load_questions(nl.demo_task("facts", "search"))
>>> scores = nl.attribute(model, tokenizer, questions[:4], method="gradient", progress=False)
>>> neurons = scores.find(good=20, bad=20)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

# The public names and where they live; each module is imported when its name is first used.
_PUBLIC = {
    "load_model": "loading",
    "demo_task": "demo",
    "demo_tasks": "demo",
    "Question": "questions",
    "load_questions": "questions",
    "save_questions": "questions",
    "Prompt": "prompts",
    "render": "prompts",
    "Anatomy": "anatomy",
    "attribute": "attribute",
    "dry_run": "attribute",
    "pushes": "pushes",
    "Scores": "scores",
    "NeuronSet": "neurons",
    "edit": "steer",
    "evaluate": "evaluate",
    "Report": "evaluate",
    "tune": "tune",
    "bake": "export",
    "InputError": "errors",
}
__all__ = [*_PUBLIC, "select", "methods", "transform", "__version__"]


class _Package(ModuleType):
    """Keeps functions such as `attribute` and `tune` from being hidden by their modules of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _PUBLIC.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
        globals()[name] = value
        return value
    if name == "__version__":
        return import_module(".env", __name__).package_version("neuronllm")
    if name in ("select", "methods", "transform"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
