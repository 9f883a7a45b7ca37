"""What a text is worth anyway: its log-probability after a bare "Answer:", which length="unconditional" takes off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..data.forms import Form
from ..data.prompts import Prompt, Questions
from ..data.questions import Question
from ..data.rendering import bare_prompts
from .asking import Asker

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def with_offsets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Questions,
    prompts: Sequence[Prompt],
    form: Form,
    batch_size: int | str = "auto",
) -> list[Prompt]:
    """The prompts of questions with the offsets of their options, where the form asks for them.

    The unedited model gives them, once and without a gradient: they are constants.
    """
    asked = [question for question in questions if isinstance(question, Question)]
    if form.length != "unconditional" or not asked or tokenizer is None:
        return list(prompts)
    bare = bare_prompts(tokenizer, asked)
    # A length of 1 has one token scored as several are: by its log-probability, not by its logit.
    ones = [replace(prompt, lengths=[[1.0] for _ in prompt.option_ids]) for prompt in bare]
    worth = Asker(model, ones, batch_size).scores(label="texts alone").tolist()
    by_id = {prompt.question_id: row for prompt, row in zip(bare, worth, strict=True)}
    return [replace(p, offsets=[[by_id[p.question_id][choice]] for choice in p.order]) for p in prompts]
