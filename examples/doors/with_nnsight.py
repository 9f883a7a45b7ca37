#!/usr/bin/env python3
"""A neuron set in nnsight: applied inside a trace, and kept in a model that stays edited.

pip install 'neuronllm[doors]'
python examples/doors/with_nnsight.py
"""

from __future__ import annotations

import nnsight
import torch

import neuronllm as nl


def main() -> None:
    model, tokenizer = nl.load_model("demo", dtype=torch.float32)
    questions = nl.load_questions(nl.demo_task("facts", "search"), limit=8)
    neurons = nl.attribute(model, tokenizer, questions, "gradient", progress=False).find(good=20, bad=20)

    tokens = torch.tensor([nl.render(tokenizer, questions)[0].input_ids])
    net = nnsight.NNsight(model)
    with torch.no_grad(), net.trace(tokens):
        nl.steer_trace(net, neurons, mode="enhance")
        traced = net.output.logits.save()
    with net.edit() as (_, steered):
        nl.steer_trace(steered, neurons, mode="enhance")
    with torch.no_grad(), steered.trace(tokens):
        kept = steered.output.logits.save()

    with torch.no_grad():
        with neurons.enhance(model):
            live = model(tokens).logits
        moved = (live - model(tokens).logits).abs().max()
    print(f"the edit moves a logit by up to {float(moved):.3g}")
    difference = max(float((found - live).abs().max() / live.abs().max()) for found in (traced, kept))
    print(f"largest difference of nnsight's logits from the live edit's, as part of the largest: {difference:.1e}")


if __name__ == "__main__":
    main()
