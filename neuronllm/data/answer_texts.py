"""The tokens by which a prompt is answered in words, cut in context.

Prompt, delimiter and answer are encoded as one text, and what is behind the tokens of the prompt is the answer. Where a
tokenizer joins the end of the prompt with the beginning of an answer, the boundary moves to the left until all texts of
the prompt share what stands before it; that is the same for all of its options.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..common.checks import short
from ..common.errors import InputError
from .encoding import Encoder
from .prompts import Prompt
from .templates import Variant, before_an_answer, tokenizer_name

log = logging.getLogger("neuronllm")


class _Place(NamedTuple):
    """What a model is shown, and what stands between that and an answer."""

    text: str
    delimiter: str


def text_prompts(encoder: Encoder, variants: list[Variant], length: str, limit: int | None) -> list[Prompt]:
    """The prompts of all variants, every option answered by its text."""
    texts: list[str] = []
    chat: list[bool] = []
    for variant, place in zip(variants, _places(encoder, variants), strict=True):
        answers = ["", *variant.shown]
        texts += [place.text, *(place.text + place.delimiter + answer for answer in answers)]
        chat += [variant.template.chat] * (1 + len(answers))
    encoded = iter(encoder.encode(texts, chat))
    prompts, moved = [], 0
    for variant in variants:
        before, without, *options = (next(encoded) for _ in range(2 + len(variant.order)))
        boundary = _common([before, *options])
        moved += boundary < len(before)
        _check(encoder, variant, [before, without], options, boundary, limit)
        prompts.append(_prompt(variant, options, boundary, length))
    if moved:
        log.info(
            "%d of %d prompts: the tokenizer joins the end of the prompt with an answer, so their options begin there",
            moved,
            len(prompts),
        )
    return prompts


def prompts_to_write(encoder: Encoder, variants: list[Variant], limit: int | None) -> list[Prompt]:
    """The prompts of all variants to which a model writes its answer; the tokens of their options are none."""
    places = _places(encoder, variants)
    encoded = encoder.encode([place.text for place in places], [variant.template.chat for variant in variants])
    for variant, ids in zip(variants, encoded, strict=True):
        if limit is not None and len(ids) > limit:
            raise InputError(
                f"question {variant.id!r} makes a prompt of {len(ids)} tokens with {variant.words}, more than the "
                f"context of {limit}: shorten it or leave it out"
            )
    return [
        Prompt(
            input_ids=ids,
            option_ids=[[[number]] for number in range(len(variant.order))],
            answer=variant.order.index(variant.question.answer),
            question_id=variant.id,
            order=variant.order,
            template=variant.template.name,
            texts=tuple(variant.shown),
        )
        for variant, ids in zip(variants, encoded, strict=True)
    ]


def as_letters(encoder: Encoder, prompts: list[Prompt]) -> list[Prompt]:
    """Prompts in words of their own whose answers are letters: each is its one token, and nothing has a length.

    What all letters begin with, such as the line break behind which a chat template lets the model speak, belongs to
    the prompt: it is as likely before each of them.
    """
    lettered = []
    for prompt in prompts:
        sequences = [ids for (ids,) in prompt.option_ids]
        shared = _common(sequences)
        if any(len(ids) != shared + 1 for ids in sequences):
            raise InputError(
                f"question {prompt.question_id!r}: a letter of its own words is not a single token with tokenizer "
                f"{tokenizer_name(encoder.tokenizer)}: ask with answers='texts' (--answers texts)"
            )
        shown, letters = prompt.input_ids + sequences[0][:shared], [[ids[shared:]] for ids in sequences]
        lettered.append(replace(prompt, input_ids=shown, option_ids=letters, texts=(), lengths=[]))
    return lettered


def _places(encoder: Encoder, variants: list[Variant]) -> list[_Place]:
    """Behind white space nothing is put before an answer, and a space elsewhere.

    A chat template says itself what, and so do questions in words of their own.
    """
    said: dict[str, str | None] = {}
    places = []
    for variant in variants:
        if variant.wording is not None:
            places.append(_Place(variant.wording.prompt, variant.wording.delimiter))
            continue
        name = variant.template.name
        if variant.template.chat and name not in said:
            said[name] = before_an_answer(encoder.tokenizer, variant)
        between = said.get(name)
        if between is None:
            between = "" if variant.text[-1:].isspace() else " "
        # All but a last space belongs to the prompt: line breaks and marks of thought are no part of the answer.
        shown = between.removesuffix(" ")
        places.append(_Place(variant.text + shown, between[len(shown) :]))
    return places


def _common(sequences: Sequence[list[int]]) -> int:
    """The length of the longest common prefix."""
    first = sequences[0]
    if all(ids[: len(first)] == first for ids in sequences):
        return len(first)
    different = (place for place, tokens in enumerate(zip(*sequences, strict=False)) if len(set(tokens)) > 1)
    return next(different, min(map(len, sequences)))


def _check(
    encoder: Encoder,
    variant: Variant,
    nothing: list[list[int]],
    options: list[list[int]],
    boundary: int,
    limit: int | None,
) -> None:
    """InputError for answers that cannot be told apart, from each other or from `nothing`: a prompt with none."""
    where = f"question {variant.id!r}"
    how = f"with {variant.words} and tokenizer {tokenizer_name(encoder.tokenizer)}"
    owner: dict[tuple[int, ...], str] = {}
    for text, ids in zip(variant.shown, options, strict=True):
        if limit is not None and len(ids) > limit:
            raise InputError(
                f"{where} and its answer {short(text)} are {len(ids)} tokens {how}, more than the context of {limit}: "
                "shorten it or leave it out"
            )
        if ids in nothing or len(ids) <= boundary:
            raise InputError(f"{where}: answer {short(text)} leaves no token behind the prompt {how}: change its text")
        if all(token == encoder.tokenizer.unk_token_id for token in ids[boundary:]):
            raise InputError(
                f"{where}: answer {short(text)} is nothing that the tokenizer knows {how}: change its text"
            )
        if (same := owner.setdefault(tuple(ids), text)) != text:
            raise InputError(
                f"{where}: {short(same)} and {short(text)} are the same tokens {how}: leave one of them out"
            )
    if not boundary:
        raise InputError(
            f"{where}: no token of the prompt stands before the answers {how}: use a template with words in front, "
            "such as 'cloze'"
        )


def _prompt(variant: Variant, options: list[list[int]], boundary: int, length: str) -> Prompt:
    sequences = [ids[boundary:] for ids in options]
    return Prompt(
        input_ids=options[0][:boundary],
        option_ids=[[ids] for ids in sequences],
        answer=variant.order.index(variant.question.answer),
        question_id=variant.id,
        order=variant.order,
        template=variant.template.name,
        texts=tuple(variant.shown),
        lengths=_lengths(variant.shown, sequences, length),
    )


def _lengths(texts: list[str], sequences: list[list[int]], length: str) -> list[list[float]]:
    """What each log-probability is divided by; nothing where that is 1 everywhere."""
    counted: list[int] = []
    if length == "tokens":
        counted = [len(ids) for ids in sequences]
    if length == "characters":
        counted = [len(text) for text in texts]  # without the delimiter, as lm-eval counts
    if length == "bytes":
        counted = [len(text.encode()) for text in texts]
    return [] if set(counted) <= {1} else [[float(count)] for count in counted]
