"""Questions rendered to token ids, in several orders and wordings, with the tokens by which each is answered.

1. `option_orders` permutes the choices, so that no letter is right more often than another (see there).
2. A template puts the question and its lettered options into words, if wished inside the tokenizer's chat template.
3. The text is encoded up to the answer position.
4. For each letter the tokens that can stand there are looked up IN CONTEXT: a form ("A" or " A") counts if the text
   with the form encodes to the ids of the text plus exactly one token. What a tokenizer does with a bare "A" says
   little about what it does after "Answer:".
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.checks import short
from ..common.errors import InputError
from .prompts import Prompt, Questions
from .questions import Question, fingerprint
from .sources import LETTERS
from .templates import Template, read_templates, tokenizer_name, word

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ORDERS = ("rotate", "shuffle3", "none")
UNBOUNDED = 10**9  # tokenizers that know no limit report 1e30


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


# -------------------------------------------------------------------------------------------------------------- tokens


@contextmanager
def _backend_kept(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Encoding switches off the padding and truncation saved in a tokenizer's backend: put both back afterwards."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    padding, truncation = getattr(backend, "padding", None), getattr(backend, "truncation", None)
    try:
        yield
    finally:
        if backend is not None and padding is not None:
            backend.enable_padding(**padding)
        if backend is not None and truncation is not None:
            backend.enable_truncation(**truncation)


class _Encoder:
    """A tokenizer's encoding of whole texts, with what it puts before a text and without what it puts after one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sample: str) -> None:
        self.tokenizer = tokenizer
        full, bare = self.bare([sample], special=True)[0], self.bare([sample])[0]
        starts = [start for start in range(len(full) - len(bare) + 1) if full[start : start + len(bare)] == bare]
        if not bare or not starts:
            raise InputError(
                f"tokenizer {tokenizer_name(tokenizer)} encodes a text differently when it adds its special tokens, "
                "which leaves no place for the answer"
            )
        # A closing token (an end-of-text mark) is left out: the answer stands right after the text.
        self.opening = full[: starts[0]]

    def bare(self, texts: list[str], special: bool = False) -> list[list[int]]:
        """The ids of the texts alone, or with the tokenizer's special tokens around them."""
        if not texts:
            return []
        # verbose=False: a prompt that is too long is our error to raise, not a warning to leave on the tokenizer.
        encoded = self.tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            padding=False,
            truncation=False,
            verbose=False,
        )
        return [list(ids) for ids in encoded["input_ids"]]

    def encode(self, texts: list[str], chat: Sequence[bool]) -> list[list[int]]:
        """Chats, and texts that write the opening token themselves, already begin with it: it is never put twice."""
        encoded = self.bare(texts)
        for number, ids in enumerate(encoded):
            if not chat[number] and ids[: len(self.opening)] != self.opening:
                encoded[number] = self.opening + ids
        return encoded


class _Variant(NamedTuple):
    """A question in one template and one order, worded."""

    question: Question
    id: str
    template: Template
    order: tuple[int, ...]
    text: str
    tail: str


def _endings(encoder: _Encoder, variants: list[_Variant], encoded: list[list[int]]) -> list[Hashable]:
    """For each variant a key: variants with equal keys have the same option tokens, which are then looked up once.

    Tokenizers cut at white space, or have no piece that reaches across it. So what stands in front of a tail with a
    space inside has no say in how the end of that tail and a letter are cut, and the key is the tail, with the ids it
    really ended in as a check. Any other tail says too little, and the key is the whole text.
    """
    tails = sorted({variant.tail for variant in variants if re.search(r"\s\S", variant.tail)})
    lengths = {tail: max(1, len(ids) - 1) for tail, ids in zip(tails, encoder.bare(tails), strict=True)}
    return [
        (variant.tail, *ids[-lengths[variant.tail] :]) if variant.tail in lengths else variant.text
        for variant, ids in zip(variants, encoded, strict=True)
    ]


def _option_ids(encoder: _Encoder, variants: list[_Variant], encoded: list[list[int]]) -> list[list[list[int]]]:
    """For each variant the token ids of each of its letters."""
    keys = _endings(encoder, variants, encoded)
    trials: dict[tuple[Hashable, str], tuple[int, list[str]]] = {}
    for number, (variant, key) in enumerate(zip(variants, keys, strict=True)):
        for letter in LETTERS[: len(variant.order)]:
            trials.setdefault((key, letter), (number, [variant.text + letter, f"{variant.text} {letter}"]))
    chats = [variants[number].template.chat for number, _ in trials.values() for _ in range(2)]
    tried = encoder.encode([text for _, texts in trials.values() for text in texts], chats)
    unknown = encoder.tokenizer.unk_token_id
    found: dict[tuple[Hashable, str], list[int]] = {}
    for place, (trial, (number, _)) in enumerate(trials.items()):
        before = encoded[number]
        forms = [ids[-1] for ids in tried[2 * place : 2 * place + 2] if ids[:-1] == before and ids[-1] != unknown]
        found[trial] = list(dict.fromkeys(forms))
        if not forms:
            variant = variants[number]
            raise InputError(
                f"letter {trial[1]!r} is not a single token after template {short(variant.template.name)} with "
                f"tokenizer {tokenizer_name(encoder.tokenizer)} (question {variant.id!r}): ask with fewer choices, "
                "another template or another tokenizer"
            )
    return [
        [list(found[key, letter]) for letter in LETTERS[: len(variant.order)]]
        for variant, key in zip(variants, keys, strict=True)
    ]


# -------------------------------------------------------------------------------------------------------------- render


def render(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    orders: str | None = None,
    template: str | Sequence[str] | None = None,
    *,
    seed: int = 0,
    max_length: int | None = None,
) -> list[Prompt]:
    """The prompts of all questions: for each question, each template, each order, in this sequence.

    `orders` is rotate (None), shuffle3 or none. `template` is a name (default (None), plain, brief, chat for the
    tokenizer's chat template around default, chat:NAME for another wording in it), a text with {question} and {options}
    and if wished {subject} and {letters}, or a list of these. A prompt longer than `max_length` (None: what the
    tokenizer says) is an error. The tokenizer is left as it was.

    >>> prompts = render(tokenizer, questions, orders="rotate", template="plain")  # doctest: +SKIP
    """
    templates = read_templates(template)
    if not callable(tokenizer) or not hasattr(tokenizer, "unk_token_id"):
        raise InputError(f"tokenizer must be a Hugging Face tokenizer, got {type(tokenizer).__name__}")
    if any(item.chat for item in templates) and not tokenizer.chat_template:
        raise InputError(
            f"tokenizer {tokenizer_name(tokenizer)} has no chat template: use template='default', plain or brief"
        )
    with _backend_kept(tokenizer):
        variants = _variants(tokenizer, questions, orders, templates, seed)
        encoder = _Encoder(tokenizer, sample=variants[0].text)
        encoded = encoder.encode([item.text for item in variants], [item.template.chat for item in variants])
        _check_lengths(tokenizer, variants, encoded, max_length)
        option_ids = _option_ids(encoder, variants, encoded)
    return [
        Prompt(
            input_ids=ids,
            option_ids=[[[token] for token in ids] for ids in options],
            answer=variant.order.index(variant.question.answer),
            question_id=variant.id,
            order=variant.order,
            template=variant.template.name,
        )
        for variant, ids, options in zip(variants, encoded, option_ids, strict=True)
    ]


def _variants(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    orders: str | None,
    templates: list[Template],
    seed: int,
) -> list[_Variant]:
    variants: list[_Variant] = []
    seen: set[str] = set()
    for question in questions:
        if not isinstance(question, Question):
            raise InputError(f"questions must hold Question objects (see load_questions), got {short(question)}")
        # An id made from the content keeps a question's variants together and its shuffles its own.
        name = question.id or fingerprint([question])[:16]
        if name in seen:
            raise InputError(f"question id {name!r} appears twice: give every question an id of its own")
        seen.add(name)
        asked = option_orders(len(question.choices), question.answer, orders, seed=seed, question_id=name)
        for template in templates:
            for order in asked:
                worded = word(tokenizer, template, question, order)
                variants.append(_Variant(question, name, template, order, worded.text, worded.tail))
    if not variants:
        raise InputError("questions is empty: there is nothing to render")
    return variants


def _check_lengths(
    tokenizer: PreTrainedTokenizerBase, variants: list[_Variant], encoded: list[list[int]], max_length: int | None
) -> None:
    limit = tokenizer.model_max_length if max_length is None else max_length
    if max_length is None and not 0 < limit < UNBOUNDED:
        return
    for variant, ids in zip(variants, encoded, strict=True):
        if len(ids) > limit:
            raise InputError(
                f"question {variant.id!r} makes a prompt of {len(ids)} tokens with template "
                f"{short(variant.template.name)}, more than the context of {limit}: shorten it or leave it out"
            )


def as_prompts(
    tokenizer: PreTrainedTokenizerBase | None, questions: Questions, orders: str, template: Any
) -> list[Prompt]:
    """Rendered prompts: the given ones, or the questions in every order and template."""
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
    return render(tokenizer, asked, orders, list(template) if isinstance(template, tuple) else template)
