#!/usr/bin/env python3
"""Neurons of a language model in captum: all layers of a prompt in one call, each token for itself.

pip install 'neuronllm[doors]'
python examples/doors/with_captum.py
"""

from __future__ import annotations

import torch

import neuronllm as nl


def main() -> None:
    model, tokenizer = nl.load_model("demo", dtype=torch.float32)
    questions = nl.load_questions(nl.demo_task("facts", "search"), limit=1)
    prompt = nl.render(tokenizer, questions, orders="none")[0]
    tokens = torch.tensor([prompt.input_ids])

    def right_answer(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(tokens, use_cache=False).logits[:, -1]
        options = torch.stack([logits[:, ids].logsumexp(-1) for ids in prompt.first_tokens], -1)
        return options.log_softmax(-1)[:, prompt.answer]

    per_layer = nl.captum.LayerNeuronAttribution(right_answer, model=model).attribute(tokens)
    summed = torch.cat([layer.detach()[0].sum(0) for layer in per_layer])

    ours = nl.attribute(model, tokenizer, [prompt], "gradient", positions="all", progress=False).values
    print(f"{len(per_layer)} layers of {tuple(per_layer[0].shape)}: prompts, tokens, neurons")
    print(f"largest difference of captum's scores from ours: {float((summed - ours).abs().max()):.1e}")


if __name__ == "__main__":
    main()
