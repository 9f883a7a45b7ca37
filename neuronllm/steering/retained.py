"""Texts whose next-token distributions learning is to leave alone: those of the user, or a few bundled sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..common.checks import short
from ..common.errors import InputError
from ..data.plain_text import plain_sentences
from ..data.prompts import Prompt
from ..data.questions import Question
from ..data.rendering import as_prompts
from ..engine.retain import LONGEST, Text
from ..judging.asking import Asking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def retained(
    tokenizer: PreTrainedTokenizerBase | None, retain: Sequence[Any] | None, positions: str, asking: Asking
) -> list[Text]:
    """What is to stay as it is, as token ids; at positions="answer" a text is edited from some token of its own on."""
    if retain is None:
        if tokenizer is None:
            raise InputError(
                "retain: without a tokenizer the bundled text cannot be read: give prompts to leave alone, "
                "or retain_weight=0 (--retain-weight 0)"
            )
        retain = plain_sentences("learn")
    if isinstance(retain, str) or not len(retain):
        raise InputError(f"retain={short(retain)}: give a list of texts or questions; retain_weight=0 switches it off")
    texts = []
    for number, given in enumerate(retain):
        if isinstance(given, str):
            text = _of_text(tokenizer, given, number)
        elif isinstance(given, (Question, Prompt)):
            text = _of_question(tokenizer, given, asking)
        else:
            raise InputError(f"retain[{number}]={short(given)}: give texts or questions")
        texts.append(text if positions == "answer" else Text(text.tokens))
    return texts


def _of_text(tokenizer: PreTrainedTokenizerBase | None, text: str, number: int) -> Text:
    if tokenizer is None:
        raise InputError(f"retain[{number}]: a text needs a tokenizer; give a prompt")
    tokens: list[int] = tokenizer(text).input_ids[:LONGEST]
    if len(tokens) < 2:
        raise InputError(f"retain[{number}]={short(text)}: a text of less than two tokens says nothing")
    return Text.cut(tokens, number)


def _of_question(tokenizer: PreTrainedTokenizerBase | None, question: Question | Prompt, asking: Asking) -> Text:
    """With its right answer behind it."""
    (prompt, *_) = as_prompts(tokenizer, [question], "none", asking.template, **asking.form.rendered)
    answer = prompt.option_ids[prompt.answer][0]
    return Text([*prompt.input_ids, *answer[:-1]], len(prompt.input_ids) - 1)
