"""The prompts that a model writes its answers to: nothing of their options is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..common.warning import warn
from ..data.forms import check_unworded
from ..data.prompts import Prompt, Questions
from ..data.rendering import as_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TO_WRITE = "cloze_short"  # the template, where nobody asks for another


def prompts_to_write(
    tokenizer: PreTrainedTokenizerBase | None, questions: Questions, orders: str, template: Any
) -> list[Prompt]:
    """Prompts as they are given; questions in the words asked for, else with demonstrations of short answers.

    Behind a bare "Answer:" many models write nothing, or a speech.
    """
    check_unworded(questions, template, orders)
    return as_prompts(tokenizer, questions, orders, TO_WRITE if template is None else template, answers="generate")


def warn_if_silent(texts: Sequence[str]) -> None:
    """Models that were trained to chat often end a plain text at once."""
    silent = sum(not text for text in texts) / len(texts)
    if silent > 0.5:
        warn(
            f"the model writes nothing at all in {silent:.0%} of its answers: ask with demonstrations "
            '(template="cloze_short", the default), or a model that was trained to chat in its chat template '
            '(template="chat", --apply-chat-template)'
        )
