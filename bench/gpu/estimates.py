"""How long work takes on a GPU, from what it has to compute and to move, before any GPU was seen.

The rates are those of an H200 as its maker and others state them, times the share that a model's matrices reach of
them. What a run measured is in the results; these numbers only decide what fits into a budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MATRIX = 0.6 * 790e12  # FLOP/s of bfloat16 products: large squares reach 790e12, a model's layers about .6 of it
COPY = 4.0e12  # bytes/s, read and written
SINGLE = 5e13  # FLOP/s of float32 products, in which a few scores are judged
START = 12.0  # seconds until a process has imported torch and transformers and has the device
STEPS = 16  # of integrated gradients
LENGTHS = {"tokens": 512, "prompts": 32}


@dataclass(frozen=True)
class Estimate:
    """Seconds, and how they were found."""

    seconds: float
    how: str

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s: {self.how}"


def fixed(seconds: float, how: str) -> Estimate:
    return Estimate(seconds, how)


def parameters(config: dict[str, Any]) -> dict[str, int]:
    """Parameters of all blocks that a token meets, and of the whole model.

    >>> small = {"num_hidden_layers": 2, "hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 2}
    >>> parameters(small | {"num_key_value_heads": 2, "vocab_size": 10})
    {'met': 320, 'all': 400}
    """
    width, layers, heads = (config[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    head = config.get("head_dim") or width // heads
    attention = 2 * width * head * (heads + config["num_key_value_heads"])
    experts, chosen = config.get("num_experts", 1), config.get("num_experts_per_tok", 1)
    expert = 3 * width * (config.get("moe_intermediate_size") or config["intermediate_size"])
    whole = layers * (attention + experts * expert) + 2 * config["vocab_size"] * width
    return {"met": layers * (attention + chosen * expert), "all": whole}


def flops(config: dict[str, Any], prompts: int, tokens: int) -> dict[str, float]:
    """Floating-point operations of what the engine stage runs, of all prompts together.

    A product with a weight takes two operations a weight and token, forward and (activations only) backward. A row that
    joins the sweep at a layer goes through the layers above it: half of them on average. Exact effects take each
    product twice, for the high and the low half of what is multiplied.
    """
    met, layers = parameters(config)["met"], config["num_hidden_layers"]
    neurons = (
        layers * config.get("num_experts", 1) * (config.get("moe_intermediate_size") or config["intermediate_size"])
    )
    asking, row = 2.0 * met * prompts * tokens, 2.0 * met / 2
    return {
        "inference": asking,
        "gradient": asking + 2 * 2.0 * met * prompts,
        "IG": asking + 2 * row * prompts * layers * STEPS,
        "all positions": 3 * asking,  # forward, forward again block by block, backward
        "exact": 2 * row * neurons,  # of one prompt
    }


def engine(config: dict[str, Any], rounds: int, exact: bool, share: float = 1.0) -> Estimate:
    """The engine stage: inference at three batch sizes twice; every figure some rounds beside inference, once to warm
    up and once for its peak; exact effects and the judge in float32 once. Products of experts, which are small, reach a
    `share` of the rate."""
    each, size, rate = flops(config, LENGTHS["prompts"], LENGTHS["tokens"]), parameters(config)["all"], share * MATRIX
    asking = each["inference"] / rate
    timed = {"inference": 6 * asking}
    for name in ("gradient", "IG", "all positions"):
        timed[name] = (rounds + 2) * each[name] / rate + (rounds + 1) * asking
    if exact:
        timed["exact"] = each["exact"] / rate
        each["judging"] = 2 * flops(config, 1, LENGTHS["tokens"] // 2)["inference"] * 2 * config["num_hidden_layers"]
        timed["judging"] = each["judging"] / SINGLE  # two points of every layer's integral, forward and backward
    making = 3 * 2 * size / COPY
    lines = ", ".join(f"{name} {each[name]:.2g} FLOP -> {seconds:.1f} s" for name, seconds in timed.items())
    how = (
        f"{LENGTHS['prompts']} prompts of {LENGTHS['tokens']} tokens, {rounds} + 2 runs of each beside {rounds} + 1 of "
        f"inference at {rate:.2g} FLOP/s ({lines}), {size / 1e9:.1f}e9 weights made ({making:.1f} s), start and checks "
        f"{2 * START:.0f} s"
    )
    return Estimate(2 * START + making + sum(timed.values()), how)


def moved(what: str, size: float, times: float, more: float) -> Estimate:
    """Work that the memory bounds: `size` bytes gone through `times` times, beside `more` seconds for all else."""
    seconds = size * times / COPY
    how = (
        f"{what}: {size:.2g} bytes, about {times:.0f} times at {COPY:.2g} bytes/s ({seconds:.1f} s), else {more:.0f} s"
    )
    return Estimate(more + seconds, how)
