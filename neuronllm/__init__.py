"""Find the good and the bad neurons of a large language model, and steer it with them.

>>> import neuronllm as nl
>>> model, tokenizer = nl.load_model("demo")
>>> questions = nl.load_questions(nl.demo_task("facts", "search"))
>>> scores = nl.attribute(model, tokenizer, questions[:4], method="gradient", progress=False)
>>> neurons = scores.find(good=20, bad=20)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# The public names and where they live; each module is imported when its name is first used.
_PUBLIC = {
    "load_model": "model.loading",
    "demo_task": "demo",
    "demo_tasks": "demo",
    "Question": "data.questions",
    "load_questions": "data.loading",
    "save_questions": "data.loading",
    "Prompt": "data.prompts",
    "render": "data.rendering",
    "Anatomy": "model.anatomy",
    "attribute": "attribution.driver",
    "contrast": "attribution.contrast",
    "activations": "attribution.contrast",
    "dry_run": "attribution.dry_run",
    "pushes": "attribution.pushes",
    "letter_neurons": "attribution.letters",
    "describe": "attribution.describe",
    "verify": "attribution.verify",
    "Scores": "results.scores",
    "NeuronSet": "results.neurons",
    "Description": "results.description",
    "edit": "model.edit",
    "evaluate": "judging.evaluate",
    "Report": "judging.report",
    "learn": "steering.learn",
    "tune": "steering.tune",
    "compare": "comparing.run",
    "Budget": "comparing.budget",
    "Comparison": "comparing.comparison",
    "distractors": "judging.distractors",
    "edit_fact": "applications.facts",
    "edit_facts": "applications.facts",
    "predict": "applications.prediction",
    "by_subject": "applications.subjects",
    "cross_task": "applications.across",
    "bake": "steering.bake",
    "to_peft": "steering.adapters",
    "to_transformer_lens": "bridges.transformer_lens",
    "steer_trace": "bridges.nnsight",
    "load_task": "bridges.lm_eval_tasks",
    "evaluate_tasks": "bridges.lm_eval_table",
    "InputError": "common.errors",
}
_MODULES = {
    "select": "select",
    "methods": "methods",
    "objectives": "objectives",
    "transform": "data.transform",
    "captum": "bridges.captum",
}
__all__ = [*_PUBLIC, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
        globals()[name] = value
        return value
    if name == "__version__":
        return import_module(".common.env", __name__).package_version("neuronllm")
    if name in _MODULES:
        return import_module(f".{_MODULES[name]}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
