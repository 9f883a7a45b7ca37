#!/usr/bin/env python3
"""A neuron set in TransformerLens: found through a bridge, applied by the bridge's own hooks.

pip install 'neuronllm[doors]'
python examples/doors/with_transformer_lens.py
"""

from __future__ import annotations

import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module

import neuronllm as nl


def main() -> None:
    model, tokenizer = nl.load_model("demo", dtype=torch.float32)
    other, _ = nl.load_model("demo", dtype=torch.float32)  # the bridge puts its own modules into this one
    bridge = build_bridge_from_module(other, "LlamaForCausalLM", hf_config=other.config, tokenizer=tokenizer)

    questions = nl.load_questions(nl.demo_task("facts", "search"), limit=8)
    scores = nl.attribute(bridge, tokenizer, questions, "gradient", progress=False)
    neurons = scores.find(good=20, bad=20)

    tokens = torch.tensor([nl.render(tokenizer, questions)[0].input_ids])
    with torch.no_grad():
        hooked = bridge.run_with_hooks(tokens, fwd_hooks=nl.to_transformer_lens(neurons, mode="enhance"))
        with neurons.enhance(model):
            live = model(tokens).logits
        moved = (live - model(tokens).logits).abs().max()
    print(f"the edit moves a logit by up to {float(moved):.3g}")
    difference = float((hooked - live).abs().max() / live.abs().max())
    print(f"largest difference of the bridge's logits from the live edit's, as part of the largest: {difference:.1e}")


if __name__ == "__main__":
    main()
