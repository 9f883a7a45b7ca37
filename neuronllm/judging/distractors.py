"""The model's own mistakes as wrong choices, for questions that have none or better ones than their own.

What a model wrongly believes is what its right answer has to be told apart from. Answers are drawn from the model,
greedy and at random; those that may be right and those that say nothing are dropped, and the likeliest are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from ..common.checks import integer
from ..common.errors import InputError
from ..common.warning import warn
from ..data.labels import answer_placed
from ..data.matching import abstains, includes, matches, normalise
from ..data.prompts import group_by_question
from ..data.questions import Question
from ..engine.writing import Sampled, Writer, Written
from ..model.bridged import plain_model
from .wording import prompts_to_write, warn_if_silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def distractors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    n: int = 3,
    seed: int = 0,
    *,
    template: str | list[str] | None = None,
    samples: int = 8,
    temperature: float = 1.0,
    max_new_tokens: int = 16,
    batch_size: int | str = "auto",
    progress: bool = True,
) -> list[Question]:
    """The questions with the model's own mistakes in the place of their wrong choices, `n` each, likeliest first.

    The model answers each question once greedily and `samples` times at random, at a temperature. Answers that hold an
    accepted answer, or are part of one, are dropped, as are abstentions and what differs from another answer only in
    case, articles, punctuation or the spelling of a number. A question's draws depend on its prompt and the seed
    alone; of two that are about as likely, rounding may say which comes first. Questions with fewer mistakes keep what
    there is; those without any are left out, and a warning counts them.

    >>> nl.distractors(model, tokenizer, [nl.Question("Capital of France?", answer="Paris")])   # doctest: +SKIP
    """
    _check(questions, n, samples, temperature)
    model = plain_model(model)
    prompts = prompts_to_write(tokenizer, questions, "none", template)
    of_question = [number for number, group in enumerate(group_by_question(prompts)) for _ in group]
    write = Writer(model, tokenizer, prompts, max_new_tokens, batch_size)
    drawn: list[list[Written]] = [[] for _ in questions]
    for draw in range(samples + 1):
        sampled = Sampled(temperature, seed, draw) if draw else None
        label = f"sample {draw} of {samples}" if draw else "greedy answers"
        answers = write.written(None, sampled, label, progress)
        for number, written in zip(of_question, answers, strict=True):
            drawn[number].append(written)
        if sampled is None:
            warn_if_silent([written.text for written in answers])
    made = [_with(question, _mistakes(question, found)[:n]) for question, found in zip(questions, drawn, strict=True)]
    kept = [question for question in made if not question.open]
    if not kept:
        raise InputError(
            f"questions: the model made no mistake at any of the {len(made)}: draw more samples, or at a higher "
            "temperature"
        )
    if len(kept) < len(made):
        left_out = f"{len(made) - len(kept)} of {len(made)} questions are left out: the model made no mistake there"
        warn(left_out)
    _warn_if_wordy(kept)
    return kept


def _warn_if_wordy(questions: Sequence[Question]) -> None:
    """Models that answer in sentences: their mistakes differ from a bare right answer in form above all."""
    right = median(len(question.choices[question.answer].split()) for question in questions)
    wrong = [choice for q in questions for n, choice in enumerate(q.choices) if n != q.answer]
    drawn = median(len(choice.split()) for choice in wrong)
    if drawn > 2 * right + 1:
        warn(
            f"the model's mistakes have {drawn:g} words and the right answers {right:g} (medians), so what tells them "
            "apart is their form: let the template ask for short answers, best by a few demonstrations"
        )


def _check(questions: Sequence[Question], n: int, samples: int, temperature: float) -> None:
    if not isinstance(questions, Sequence) or not all(isinstance(question, Question) for question in questions):
        raise InputError("questions: give a list of Question (nl.load_questions); prompts have no words to choose from")
    if integer(n) is None or n < 1:
        raise InputError(f"n={n!r}: give a whole number of wrong choices, 1 or more")
    if integer(samples) is None or samples < 0:
        raise InputError(f"samples={samples!r}: give a whole number, 0 or more")
    number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    if not number or not 0 < temperature < math.inf:
        raise InputError(f"temperature={temperature!r}: give a number above 0")


def _mistakes(question: Question, drawn: Sequence[Written]) -> list[str]:
    """The different answers that are none of the right ones, each in its likeliest spelling; the likeliest first, and
    behind them those that had no room to end."""
    right = (question.choices[question.answer], *question.answers)
    best: dict[str, Written] = {}
    for written in sorted(drawn, key=lambda each: (not each.ended, -each.logprob, each.text)):
        if written.text and not abstains(written.text) and not _may_be_right(written.text, right):
            best.setdefault(normalise(written.text), written)
    return [written.text for written in best.values()]


def _may_be_right(text: str, right: Sequence[str]) -> bool:
    """Whether a text is or holds a right answer, or is part of one; or nobody can say, as its characters are broken."""
    part = any(includes(answer, [text]) for answer in right)
    return part or matches(text, right) or includes(text, right) or "\ufffd" in text


def _with(question: Question, mistakes: Sequence[str]) -> Question:
    choices, answer = answer_placed(question.choices[question.answer], mistakes)
    return replace(question, choices=tuple(choices), answer=answer)
