"""The engine gives the same results with the kernels in the place of its own PyTorch as without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from neuronllm import ops
from neuronllm.data.prompts import Prompt
from neuronllm.engine import fused
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.quadrature import quadrature
from neuronllm.kernels.branch_attention.op import MOST_NODES
from tests.kernels.lanes import DEVICE, OF_THE_SURVEY
from tests.texts import CITIES, FORMS, NESTED
from tests.tiny import random_prompts, tiny

FAMILIES = ("llama", "gemma2", "gpt2", "gpt_oss")  # grouped heads; cap and window; no gate; sinks and experts
CALLS: dict[str, Callable[[Any, list[Prompt]], Tensor]] = {
    "gradient": lambda e, p: e.gradients(p, "p_vocab"),
    "sign": lambda e, p: e.gradients(p, "margin", weight="sign"),
    "gradient everywhere": lambda e, p: e.gradients(p, "logp_vocab", positions="all"),
    "options": lambda e, p: e.option_gradients(p),
    "relp": lambda e, p: e.gradients(p, "logp_options", rules="relp"),
    "relp detached": lambda e, p: e.gradients(p, "logp_options", rules="relp-detached"),
    "integrate": lambda e, p: e.integrate(p, "logp_options", *quadrature("midpoint", 3)),
    "some effects": lambda e, p: e.effects(p, "p_options", ids=torch.arange(55, 0, -9)),
    "direct": lambda e, p: e.direct(p, "logp_options"),
    "activations": lambda e, p: e.activations(p),
}


def letters() -> list[Prompt]:
    """Prompts of different lengths, some of which share a beginning."""
    shared = random_prompts(1, length=12)[0]
    longer = [Prompt([*shared.input_ids, n, 5], shared.option_ids, shared.answer) for n in (7, 9)]
    return [*random_prompts(1, length=5), *longer]


def texts() -> list[Prompt]:
    """The same beginnings in front of answers of one to four tokens, whose trees differ."""
    shapes = (FORMS, CITIES, NESTED)
    return [Prompt(p.input_ids, *shape) for p, shape in zip(letters(), shapes, strict=True)]


@pytest.mark.parametrize(
    ("family", "prompts"),
    [
        *(pytest.param(family, letters, marks=[OF_THE_SURVEY] if family != "llama" else []) for family in FAMILIES),
        *((family, texts) for family in FAMILIES),
    ],
)
def test_results_with_kernels_equal_results_without(
    family: str, prompts: Callable[[], list[Prompt]], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    replaced = (("first_order", "summed_products"), ("attention", "by_kernel"), ("vocabulary", "normaliser_by_kernel"))
    for module, name in replaced:
        own = getattr(fused, name)

        def noted(*args: Any, name: str = name, own: Any = own, **options: Any) -> Tensor:
            called.append(name)
            return own(*args, **options)

        monkeypatch.setattr(f"neuronllm.engine.{module}.{name}", noted)
    kind = torch.float32 if DEVICE == "cpu" else torch.bfloat16
    model = tiny(family).to(DEVICE, kind)
    for label, call in CALLS.items():
        results = []
        for backend, dtype in (("torch", torch.float64), ("torch", None), ("triton", None)):
            with ops.using(backend), FastEngine(model, dtype=dtype) as engine:
                results.append(call(engine, prompts()).double())
        right, plain, found = results
        error, base = (float((x - right).norm() / right.norm()) for x in (found, plain))
        assert error <= 2 * base + (1e-5 if kind == torch.float32 else 0.01), (label, error, base)
    assert "by_kernel" in called and ("summed_products" in called or family == "gpt_oss")
    assert ("normaliser_by_kernel" in called) == (prompts is texts)


def test_trees_that_are_too_wide_for_the_kernel_are_answered_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuronllm.engine.attention.by_kernel", None)
    wide = [Prompt([5, 6, 7, 8], [[[7] * (MOST_NODES + 1)], [[9]]], 0)]
    model = tiny("llama").to(DEVICE, torch.float32 if DEVICE == "cpu" else torch.bfloat16)
    results = []
    for backend in ("torch", "triton"):
        with ops.using(backend), FastEngine(model) as engine:
            results.append(engine.effects(wide, "logp_options", ids=torch.arange(3)))
    assert torch.equal(*results)
