"""Questions rendered to token ids, in several orders and wordings, with the tokens by which each is answered.

1. `option_orders` permutes the choices, so that no letter is right more often than another (see there).
2. A template puts the question, and its options where it shows them, into words, if wished inside the tokenizer's chat
   template.
3. The text is encoded up to the answer position, and the tokens of every option are looked up behind it: those of its
   letter (`letters.py`) or those of its text (`answer_texts.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..common.checks import short
from ..common.errors import InputError
from .answer_texts import as_letters, prompts_to_write, text_prompts
from .encoding import Encoder, backend_kept
from .forms import ANSWERS, LENGTHS, worded_form
from .letters import letter_prompts
from .prompts import Prompt, Questions
from .questions import Question, fingerprint
from .sources import LETTERS
from .templates import DEFAULTS, Template, Variant, read_templates, tokenizer_name, word

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ORDERS = ("rotate", "shuffle3", "none")
BARE = "Answer:"  # what stands before an answer that is asked of nothing


def option_orders(
    n_choices: int, answer: int, orders: str | None, *, seed: int = 0, question_id: str = ""
) -> list[tuple[int, ...]]:
    """The orders in which a question's choices are displayed: position j of an order shows choice order[j].

    `rotate` (also None): the cyclic shifts, in which the right choice visits every letter exactly once, so that what
    favours a letter cancels in the mean. `shuffle3`: three distinct shuffles (both orders of two choices), the same
    for a question id and a seed whatever else is asked. `none`: as written.

    >>> option_orders(3, 0, "rotate")
    [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    """
    if not 0 <= answer < n_choices:
        raise InputError(f"answer {answer} is out of range for {n_choices} choices")
    written = tuple(range(n_choices))
    if orders is None or orders == "rotate":
        return [written[shift:] + written[:shift] for shift in written]
    if orders == "none":
        return [written]
    if orders != "shuffle3":
        raise InputError(f"orders {orders!r} is not known; known are {', '.join(ORDERS)}")
    # Seeded from a digest: hash() of a text differs from process to process.
    digest = hashlib.sha256(json.dumps([seed, question_id]).encode()).digest()
    generator = random.Random(int.from_bytes(digest, "big"))
    found: list[tuple[int, ...]] = []
    while len(found) < min(3, math.factorial(n_choices)):
        shuffled = tuple(generator.sample(written, n_choices))
        if shuffled not in found:
            found.append(shuffled)
    return found


def answer_form(questions: Sequence[Any], answers: str | None = None) -> str:
    """In what form questions are answered: as asked for, else in words where any of them is open, else by letter.

    >>> answer_form([Question("What is the capital of France?", answer="Paris")])
    'texts'
    """
    if answers is not None and answers not in ANSWERS:
        raise InputError(f"answers={answers!r} is not known; known are {', '.join(ANSWERS)}")
    asked = [question for question in questions if isinstance(question, Question)]
    own = worded_form(asked, answers)
    form = answers or own or ("texts" if any(question.open for question in asked) else "letters")
    for question in asked if form == "letters" else ():
        if question.open or len(question.choices) > len(LETTERS):
            why = "is open" if question.open else f"has {len(question.choices)} choices"
            name = short(question.id or question.stem)
            raise InputError(
                f"question {name} {why}, so no letter answers it: ask with answers='texts' (--answers texts)"
            )
    return form


def render(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    orders: str | None = None,
    template: str | Sequence[str] | None = None,
    *,
    answers: str | None = None,
    length: str = "sum",
    seed: int = 0,
    max_length: int | None = None,
) -> list[Prompt]:
    """The prompts of all questions: for each question, each template, each order, in this sequence.

    `answers` is the form of the answer, letters or texts (None: texts where a question is open, else letters), or
    generate for prompts to which a model writes: worded as for texts, and nothing of their options is used. `orders`
    is rotate (None), shuffle3 or none; a template that does not show the options is rendered once, as orders would only
    repeat it. `template` is a name (for letters default (None), plain, brief; for texts cloze (None), cloze_plain,
    cloze_brief, cloze_options; chat for the tokenizer's chat template around the default, chat:NAME for another wording
    in it), a text with {question} and if wished {subject}, {options}, which letters need, {letters} and {choices}, or a
    list of these. `length` says by what the log-probability of a text is divided: sum (by nothing), tokens,
    characters or bytes; the offsets of unconditional are the model's to give. A prompt longer than `max_length` (None:
    what the tokenizer says), with its answer if that is a text, is an error. The tokenizer is left as it was.

    >>> prompts = render(tokenizer, questions, orders="rotate", template="plain")  # doctest: +SKIP
    >>> prompts = render(tokenizer, questions, answers="texts", length="tokens")  # doctest: +SKIP
    """
    form = "texts" if answers == "generate" else answer_form(questions, answers)
    templates = read_templates(template, form)
    if length not in LENGTHS:
        raise InputError(f"length={length!r} is not known; known are {', '.join(LENGTHS)}")
    _check_tokenizer(tokenizer)
    if any(item.chat for item in templates) and not tokenizer.chat_template:
        raise InputError(
            f"tokenizer {tokenizer_name(tokenizer)} has no chat template: use template={DEFAULTS[form]!r} or another "
            "wording without chat"
        )
    with backend_kept(tokenizer):
        variants = _variants(tokenizer, questions, orders, templates, form, seed)
        encoder = Encoder(tokenizer, sample=variants[0].text)
        limit = encoder.limit(max_length)
        worded = variants[0].wording is not None
        if form == "letters" and not worded:
            return letter_prompts(encoder, variants, limit)
        if answers == "generate":
            return prompts_to_write(encoder, variants, limit)
        prompts = text_prompts(encoder, variants, length, limit)
        return as_letters(encoder, prompts) if form == "letters" else prompts


def bare_prompts(tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> list[Prompt]:
    """For each question one prompt that asks nothing: its choices, as written, behind a bare "Answer:".

    The log-probabilities that a model gives these texts are the offsets of length="unconditional".

    >>> bare_prompts(tokenizer, questions)[0].texts == questions[0].choices  # doctest: +SKIP
    True
    """
    _check_tokenizer(tokenizer)
    template = Template(BARE, BARE, [(BARE, None)], chat=False)
    variants = [
        Variant(question, name, template, tuple(range(len(question.choices))), BARE, BARE)
        for name, question in _named(questions)
    ]
    with backend_kept(tokenizer):
        encoder = Encoder(tokenizer, sample=BARE)
        return text_prompts(encoder, variants, "sum", encoder.limit(None))


def _check_tokenizer(tokenizer: Any) -> None:
    if not callable(tokenizer) or not hasattr(tokenizer, "unk_token_id"):
        raise InputError(f"tokenizer must be a Hugging Face tokenizer, got {type(tokenizer).__name__}")


def _named(questions: Sequence[Question]) -> list[tuple[str, Question]]:
    """The questions with an id each: one made from the content keeps a question's variants together."""
    named: dict[str, Question] = {}
    for question in questions:
        if not isinstance(question, Question):
            raise InputError(f"questions must hold Question objects (see load_questions), got {short(question)}")
        name = question.id or fingerprint([question])[:16]
        if name in named:
            raise InputError(f"question id {name!r} appears twice: give every question an id of its own")
        named[name] = question
    if not named:
        raise InputError("questions is empty: there is nothing to render")
    return list(named.items())


def _variants(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    orders: str | None,
    templates: list[Template],
    form: str,
    seed: int,
) -> list[Variant]:
    variants: list[Variant] = []
    for name, question in _named(questions):
        count = len(question.choices)
        if question.wording is not None:
            variants.append(Variant.own(question, name, question.wording))
            continue
        asked = option_orders(count, question.answer, orders, seed=seed, question_id=name)
        for template in templates:
            unseen = form == "texts" and not template.shows_options
            for order in [tuple(range(count))] if unseen else asked:
                variants.append(Variant(question, name, template, order, *word(tokenizer, template, question, order)))
    return variants


def as_prompts(
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Questions,
    orders: str | None,
    template: Any,
    answers: str | None = None,
    length: str = "sum",
) -> list[Prompt]:
    """Rendered prompts: the given ones as they are, or the questions in every order and template."""
    if isinstance(questions, (str, os.PathLike)):
        raise InputError(f"questions={str(questions)!r}: load them first, with nl.load_questions({str(questions)!r})")
    if not isinstance(questions, Sequence):
        raise InputError(f"questions: give a list, not a {type(questions).__name__}")
    if not questions:
        raise InputError("questions: the list is empty, give at least one question")
    given = [q for q in questions if isinstance(q, Prompt)]
    asked = [q for q in questions if isinstance(q, Question)]
    if len(given) == len(questions):
        return given
    if len(asked) != len(questions):
        raise InputError("questions: give a list of Question (nl.load_questions) or a list of Prompt, not a mixture")
    if tokenizer is None:
        raise InputError("tokenizer=None: questions need a tokenizer to be rendered; only Prompts do without")
    templates = list(template) if isinstance(template, tuple) else template
    return render(tokenizer, asked, orders, templates, answers=answers, length=length)
