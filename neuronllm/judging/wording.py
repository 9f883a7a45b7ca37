"""The prompts that a model writes its answers to: nothing of their options is used."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..data.prompts import Prompt, Questions
from ..data.rendering import as_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompts_to_write(
    tokenizer: PreTrainedTokenizerBase | None, questions: Questions, orders: str, template: Any
) -> list[Prompt]:
    """Prompts as they are given, and questions in words that ask for an answer in words."""
    return as_prompts(tokenizer, questions, orders, template, answers="generate")


def warn_if_silent(texts: Sequence[str], stacklevel: int = 4) -> None:
    """Models that were trained to chat often end a plain text at once; behind "Answer:" in a chat they write worse."""
    silent = sum(not text for text in texts) / len(texts)
    if silent > 0.5:
        warnings.warn(
            f"the model writes nothing at all in {silent:.0%} of its answers; one that was trained to chat wants the "
            'question in its chat template, template="chat:{question}" (--template), or a few demonstrations before it',
            stacklevel=stacklevel,
        )
