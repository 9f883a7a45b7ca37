"""Why a family is not driven fast, in the words of its mechanism and not of what was raised."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from neuronllm.engine.causality import READS_AHEAD

REFUSED = {  # part of the line that refuses: the mechanism
    "common interface for experts": "experts that do not follow transformers' common interface",
    "gradients do not pass": "reversible layers, through which gradients do not pass",
    "has no FFN neurons": "no feed-forward blocks: every layer is a mixer alone",
    "hidden size of a decoder": "no single decoder: bytes are grouped into patches by a model of their own",
    "in front of the batch": "tokens in front of the batch",
    "is an encoder-decoder": "an encoder-decoder",
    "is shared by the layers": "one feed-forward block shared by several layers",
    "runs several times": "layers that run several times in a forward pass",
    "several streams of tokens": "several streams of tokens side by side, one for each token ahead",
}
STATEFUL = ("mambamixer", "deltanet", "lightning", "mlstm", "xlstm", "rglru", "rwkvselfattention", "linearattention")
AHEAD = "attention in both directions among a prompt's tokens: what stands before the answer reads it too"
TENSORS = {  # by the parameter under which a model is handed its states
    "cache_params": "states that layers are handed as tensors and give back, in no cache that they could be given",
    "state": "states in a list of tensors, which feed-forward blocks read and write too: they mix in the token before",
}
NO_CACHE = "no cache: what the layers know of earlier tokens cannot be kept"


def mechanism(model: Any, verdict: str, reason: str) -> str:
    """What of a model's code brought about the verdict; the reason itself where no rule knows it."""
    if verdict == "refused":
        return next((words for part, words in REFUSED.items() if part in reason), reason)
    if verdict != "reference":
        return reason
    if reason.startswith(READS_AHEAD):
        return AHEAD
    taken = inspect.signature(model.forward).parameters
    if "past_key_values" not in taken:
        return next((words for name, words in TENSORS.items() if name in taken), NO_CACHE)
    modules = list(model.modules())
    names = " ".join(type(module).__name__.lower() for module in modules)
    if any(part in names for part in STATEFUL) or any(_convolves(module) for module in modules):
        return "layers that carry a state from token to token beside keys and values"
    if (
        "attend in a way of their own" in reason
        or "Attention mask" in reason
        or not model._can_set_attn_implementation()
    ):
        return "attention in code of its own, not through transformers' interface"
    return reason


def _convolves(module: nn.Module) -> bool:
    """Whether it looks back by a convolution over tokens."""
    return any(isinstance(part, nn.Conv1d) and part.groups > 1 for part in module.children())
