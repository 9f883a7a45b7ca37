"""Where scores come from: what goes into their provenance, and what decides every byte of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common.checks import short
from ..common.env import package_version
from ..common.errors import InputError
from ..data.prompts import Prompt
from ..data.questions import Question, fingerprint
from ..data.templates import template_hash
from ..model.wrapped import is_wrapped, switches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 2**26  # values that are hashed, and brought from their device, at once
HASHERS = 8  # threads; a tensor's hash is its own, so their number decides nothing


def wording(tokenizer: Any, questions: Sequence[Question | Prompt], template: Any) -> dict[str, Any]:
    """Which questions, and in which words."""
    plain = [q for q in questions if isinstance(q, Question)]
    if not plain or plain[0].wording is not None:  # no template worded them
        own = fingerprint(plain) if plain else prompt_hash(questions)
        return {"question_fingerprint": own, "template": None, "template_hash": None}
    return {
        "question_fingerprint": fingerprint(plain),
        "template": list(template) if isinstance(template, tuple) else template,
        "template_hash": template_hash(template, tokenizer),
    }


def versions(*more: str) -> dict[str, Any]:
    return {name: package_version(name) for name in ("transformers", "neuronllm", *more)}


def prompt_hash(prompts: Sequence[Question | Prompt]) -> str:
    """SHA-256 of all that the model is shown, and of what counts as right."""
    content = [
        (p.input_ids, p.first_tokens, p.answer)
        if p.one_token
        else (p.input_ids, p.option_ids, p.answer, p.lengths, p.offsets)
        for p in prompts
        if isinstance(p, Prompt)
    ]
    return sha256(repr(content).encode()).hexdigest()


def question_hash(groups: Sequence[Sequence[Prompt]]) -> str:
    """SHA-256 of which prompts are one question."""
    return sha256(repr([len(group) for group in groups]).encode()).hexdigest()


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 of the name, shape, type and bytes of every parameter and buffer: an edit of one value shows.

    Adapters of PEFT that are switched on or off show too.

    >>> model, _ = nl.load_model("demo")
    >>> weights_hash(model) == weights_hash(model)
    True
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with ThreadPoolExecutor(min(HASHERS, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        hashes = list(pool.map(_tensor_hash, tensors.values()))
    adapters = [(name, switches(module)) for name, module in model.named_modules() if is_wrapped(module)]
    told = [*zip(tensors, hashes, strict=True), *adapters]
    return sha256(repr(told).encode()).hexdigest()


def _tensor_hash(tensor: Tensor) -> str:
    digest = sha256(f"{tuple(tensor.shape)} {tensor.dtype}\n".encode())
    if not tensor.is_meta:
        for part in tensor.detach().reshape(-1).split(CHUNK):
            digest.update(part.cpu().view(torch.uint8).numpy())
    return digest.hexdigest()


def type_name(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def check_same(then: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Refuse to go on with other settings, and name the first that differs."""
    for name, value in now.items():
        before = then.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            check_same(before, value, what)
        elif before != value:
            raise InputError(f"{what} {name} {short(before)}, not {short(value)}: give the same, or another output")
