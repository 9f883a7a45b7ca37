"""The tokens by which a prompt is answered with a letter, looked up in context.

A form ("A" or " A") counts if the text with the form encodes to the ids of the text plus exactly one token. What a
tokenizer does with a bare "A" says little about what it does after "Answer:".
"""

from __future__ import annotations

import re
from collections.abc import Hashable

from ..common.checks import short
from ..common.errors import InputError
from .encoding import Encoder
from .prompts import Prompt
from .sources import LETTERS
from .templates import Variant, tokenizer_name


def letter_prompts(encoder: Encoder, variants: list[Variant], limit: int | None) -> list[Prompt]:
    """The prompts of all variants, every displayed option answered by its letter."""
    encoded = encoder.encode([item.text for item in variants], [item.template.chat for item in variants])
    _check_lengths(variants, encoded, limit)
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


def _check_lengths(variants: list[Variant], encoded: list[list[int]], limit: int | None) -> None:
    for variant, ids in zip(variants, encoded, strict=True):
        if limit is not None and len(ids) > limit:
            raise InputError(
                f"question {variant.id!r} makes a prompt of {len(ids)} tokens with template "
                f"{short(variant.template.name)}, more than the context of {limit}: shorten it or leave it out"
            )


def _endings(encoder: Encoder, variants: list[Variant], encoded: list[list[int]]) -> list[Hashable]:
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


def _option_ids(encoder: Encoder, variants: list[Variant], encoded: list[list[int]]) -> list[list[list[int]]]:
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
