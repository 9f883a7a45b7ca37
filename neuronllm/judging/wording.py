"""The prompts that a model writes its answers to: nothing of their options is used."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..common.errors import InputError
from ..data.prompts import Prompt, Questions
from ..data.questions import Question, fingerprint
from ..data.rendering import _backend_kept, _Encoder, as_prompts
from ..results.neurons import NeuronSet
from .asking import template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_to_write(neurons: NeuronSet | None, template: Any) -> Any:
    """The template asked for, else that of a set found with texts: one that was found with letters asks for letters."""
    with_texts = neurons is not None and neurons.provenance.get("answers") == "texts"
    return template_of(neurons, template) if with_texts else template


def prompts_to_write(
    tokenizer: PreTrainedTokenizerBase | None, questions: Questions, orders: str, template: Any
) -> list[Prompt]:
    """Prompts as they are given; questions in a template, or plainly: "Question: ...", and "Answer:" below it."""
    asked = [q for q in questions if isinstance(q, Question)] if isinstance(questions, (list, tuple)) else []
    if template is not None or not asked or len(asked) < len(questions):
        return as_prompts(tokenizer, questions, orders, template)
    if tokenizer is None:
        raise InputError("tokenizer=None: questions need a tokenizer to be rendered; only Prompts do without")
    texts = [f"Question: {question.stem}\nAnswer:" for question in asked]
    with _backend_kept(tokenizer):
        encoded = _Encoder(tokenizer, sample=texts[0]).encode(texts, [False] * len(texts))
    return [
        Prompt(ids, [[[n]] for n in range(len(q.choices))], q.answer, question_id=q.id or fingerprint([q])[:16])
        for q, ids in zip(asked, encoded, strict=True)
    ]


def warn_if_silent(texts: Sequence[str], stacklevel: int = 4) -> None:
    """Models that were trained to chat often end a plain text at once."""
    silent = sum(not text for text in texts) / len(texts)
    if silent > 0.5:
        warnings.warn(
            f"the model writes nothing at all in {silent:.0%} of its answers; one that was trained to chat wants its "
            'chat template: template="chat" or "chat:NAME" (--apply-chat-template)',
            stacklevel=stacklevel,
        )
