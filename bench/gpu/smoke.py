"""Stage: the bundled model on the device gives the CPU's numbers, call by call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

import neuronllm as nl
from bench.harness import relative

from .diagnosis import differences
from .worker import Case, Setting, Wrong, moved

TASK, QUESTIONS, FEW, PRETENDED = "facts", 12, 2, 1
LIMIT = 1e-4  # relative, of float32 scores: sums are ordered otherwise
EFFECTS = 1e-3  # small differences of large numbers
METHODS = {
    "gradient": ("gradient", "answer", {}, QUESTIONS, LIMIT),
    "gradient, all positions": ("gradient", "all", {}, QUESTIONS, LIMIT),
    "integrated gradients": ("ace", "answer", {"steps": 4}, FEW, LIMIT),
    "exact effects": ("exact", "answer", {}, FEW, EFFECTS),
    "logprob": ("logprob", "answer", {}, FEW, LIMIT),
    "activation": ("activation", "answer", {}, QUESTIONS, LIMIT),
}


def cases(setting: Setting) -> list[Case]:
    orders = "none" if setting.pretend else "rotate"  # operations of the pretended device are slow

    @cache
    def models() -> tuple[Any, Any, Any]:
        here, tokenizer = nl.load_model("demo", dtype=torch.float32)
        there, _ = nl.load_model("demo", dtype=torch.float32)
        return here, moved(there, setting), tokenizer

    @cache
    def questions(split: str, count: int) -> list[Any]:
        return list(nl.load_questions(nl.demo_task(TASK, split)))[: min(count, PRETENDED) if setting.pretend else count]

    def scored(name: str) -> dict[str, Any]:
        method, positions, options, count, limit = METHODS[name]
        here, there, tokenizer = models()

        def ask(model: Any) -> Tensor:
            asked = questions("search", count)
            more = {"positions": positions, "template": "plain", "orders": orders, "progress": False} | options
            return nl.attribute(model, tokenizer, asked, method, **more).values

        return agreement(ask, here, there, limit)

    def judged() -> dict[str, Any]:
        here, there, tokenizer = models()
        asked = questions("search", QUESTIONS)
        scores = nl.attribute(
            here, tokenizer, asked, "gradient", positions="all", template="plain", orders=orders, progress=False
        )
        neurons = scores.find(good=16, bad=16)

        def ask(model: Any) -> Tensor:
            test = questions("test", QUESTIONS)
            report = nl.evaluate(
                model,
                tokenizer,
                test,
                neurons,
                "degrade",
                positions="all",
                template="plain",
                controls=2,
                progress=False,
            )
            return torch.tensor([[report.accuracy, report.p_right]])

        return agreement(ask, here, there, LIMIT)

    def asked_by_hand() -> dict[str, Any]:
        here, there, tokenizer = models()
        ids = tokenizer("Question:", return_tensors="pt").input_ids
        return agreement(lambda model: model(ids.to(model.device)).logits[0].detach(), here, there, LIMIT)

    found = [Case("the model's own logits", asked_by_hand)]
    found += [Case(name, lambda name=name: scored(name)) for name in METHODS]
    return [*found, Case("evaluate", judged)]


def agreement(ask: Callable[[Any], Tensor], here: Any, there: Any, limit: float) -> dict[str, Any]:
    right, found = ask(here).cpu().float(), ask(there).cpu().float()
    off = relative(found[None] if found.ndim == 1 else found, right[None] if right.ndim == 1 else right)
    if not off <= limit:
        raise Wrong(f"{off:.2e} from the CPU, limit {limit:.0e}\n{differences(found, right)}")
    return {"from the CPU": off, "limit": limit}
