"""How a judgement asks: in the form and words that the neurons were found with, and not for one answer alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..common.checks import short
from ..common.warning import warn
from ..data.forms import Form, check_choice, check_unworded, form_of, found_template, wording_of
from ..data.prompts import Prompt, Questions
from ..data.questions import Question
from ..data.rendering import as_prompts
from ..data.seen import digests, met_before
from ..data.sources import LETTERS
from ..engine.unconditional import with_offsets
from ..results.answers import Answers, leaning_words, shares_by_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ONE_SIDED, MANY = 0.8, 10  # a share of the prompts, and how many it takes to say so of the length of texts


class Asking(NamedTuple):
    """In what form, which orders and which words a judgement asks."""

    form: Form
    orders: str
    template: Any

    @classmethod
    def of(
        cls,
        questions: Questions,
        found: Mapping[str, Any],
        orders: str,
        template: Any,
        answers: str | None,
        length: str | None,
    ) -> Asking:
        """What was asked for, else what the neurons of this provenance were found with: judged as they were chosen."""
        form = form_of(questions, answers, length, found)
        check_unworded(questions, template, orders)
        return cls(form, orders, wording_of(form.answers, template, found_template(found, form.answers)))

    def prompts(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        questions: Questions,
        compared: bool = True,
    ) -> list[Prompt]:
        """The questions rendered; one with a single option is refused, since it would always be answered right.

        Not so where options are not `compared`.
        """
        if compared:
            check_choice(questions, "questions", '; or judge what the model writes, with answers="generate"')
        prompts = as_prompts(tokenizer, questions, self.orders, self.template, **self.form.rendered)
        return with_offsets(model, tokenizer, questions, prompts, self.form)


def warn_if_met_before(found: Mapping[str, Any], questions: Questions) -> None:
    """Questions that neurons of this provenance were chosen on say little of others."""
    given = questions if isinstance(questions, Sequence) and not isinstance(questions, str) else []
    count, stages = met_before(found, given)
    if count:
        where = " and ".join(stages)
        warn(
            f"questions: {count} of {len(digests(given))} are among those that the neurons were {where} on, so they "
            "say little of others: judge on questions that were kept apart"
        )


def warn_if_one_sided(prompts: Sequence[Prompt]) -> None:
    """Where one letter is nearly always right, or the shortest text is, liking it looks like knowledge."""
    if all(prompt.form == "letters" for prompt in prompts):
        _warn_if_one_letter(prompts)
        return
    if any(prompt.lengths or prompt.offsets for prompt in prompts):
        return  # length counts already
    shares, told = shares_by_size(prompts, [prompt.answer for prompt in prompts])
    for size, liked in (("shortest", "short"), ("longest", "long")):
        if told >= MANY and shares[size] > ONE_SIDED:
            warn(
                f"the {size} option is the right one in {shares[size]:.0%} of the prompts whose options differ in "
                f"length, so a model that likes {liked} answers looks right; see what "
                'length="tokens" (--length tokens) says'
            )


def _warn_if_one_letter(prompts: Sequence[Prompt]) -> None:
    shares = np.bincount([p.answer for p in prompts]) / len(prompts)
    if len(prompts) > 1 and shares.max() > ONE_SIDED:
        warn(
            f"{LETTERS[shares.argmax()]} is the right letter of {shares.max():.0%} of the prompts, so a model that "
            'likes this letter looks right; ask with orders="rotate" (--orders rotate)'
        )


def warn_if_one_label(questions: Questions) -> None:
    """Where the same answer is right everywhere, there is nothing to learn but to give it."""
    labels = {_label(question) for question in questions}
    if len(questions) > 1 and len(labels) == 1 and (label := labels.pop()) is not None:
        warn(
            f"questions: {short(label)} is the right answer of all of them, so an edit that gives it whatever is asked "
            "looks like one that has learned the task: give questions of every answer"
        )


def _label(question: Question | Prompt) -> str | None:
    """The right answer in words; of a prompt that asks for a letter, or that lacks words, nothing is known."""
    if isinstance(question, Question):
        return question.choices[question.answer]
    return question.texts[question.answer] if question.texts else None


def warn_if_leaning(base: Answers) -> None:
    """Where the unedited model leans on one option, its numbers say little of the task."""
    if (leaning := base.heard.leaning()) is not None:
        names, (option, share) = list(base.options), leaning
        warn(leaning_words(base.form, names[option], share))
