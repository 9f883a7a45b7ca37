#!/usr/bin/env python3
"""How closely cheap scores follow exact effects on a real model: Spearman over all neurons, prompt by prompt.

    make real
    .venv/bin/python examples/real_model/cheap_scores.py .models/SmolLM2-135M-Instruct

Exact effects really silence every neuron, at the answer position: minutes a prompt on two cores.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

import neuronllm as nl
from neuronllm.common.statistics import spearman

METHODS = ("gradient", "ace", "relp", "logprob", "knowledge")
PROMPTS = 2


def main(folder: str) -> None:
    model, tokenizer = nl.load_model(folder, dtype=torch.float32)
    questions = nl.load_questions(nl.demo_task("facts", "search"), limit=PROMPTS)

    def scores(method: str) -> torch.Tensor:
        asked: dict[str, Any] = {"positions": "answer", "orders": "none", "template": "default", "keep": "all"}
        asked |= {"steps": 16} if method == "ace" else {}  # as the paper takes them, right or not
        return nl.attribute(model, tokenizer, questions, method, **asked).per_prompt.double()

    truth = scores("exact")
    print(f"{nl.Anatomy.of(model).n_neurons:,} neurons, {len(truth)} prompts")
    for method in METHODS:
        found = [spearman(a.numpy(), b.numpy()) for a, b in zip(scores(method), truth, strict=True)]
        print(f"{method:<10} " + "  ".join(f"{value:.3f}" for value in found))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the folder of a model: python examples/real_model/cheap_scores.py .models/SmolLM2-135M-Instruct")
    main(sys.argv[1])
