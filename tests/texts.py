"""Prompts by hand whose options are token sequences: ragged, with several forms, and sharing how they begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from neuronllm.data.prompts import Prompt
from tests.tiny import VOCABULARY

# options -> sequences -> token ids, and the number of the right option
CITIES = [[[10, 11]], [[10, 12, 13]], [[20]]], 1  # two of them begin alike
FORMS = [[[30, 31, 32], [33]], [[34, 35], [36, 37, 38, 39], [40]]], 0
ONE_TO_SIX = [[[5]], [[6, 7]], [[8, 9, 10]], [[11, 3, 4, 11]], [[12, 13, 14, 15, 16]], [[17, 18, 19, 20, 21, 22]]], 3
NESTED = [[[13, 14]], [[13, 14, 15, 16]], [[13], [14, 14, 14]]], 2  # each begins with another one
SHAPES = (CITIES, FORMS, ONE_TO_SIX, NESTED)
LENGTHS = (5, 14, 6, 11)  # on both sides of the sliding window of 8 that the windowed families have


def random_tokens(count: int, seed: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def text_prompts(lengths: Sequence[int] = LENGTHS) -> list[Prompt]:
    """One prompt of each shape in turn, of these many tokens."""
    shapes = [SHAPES[n % len(SHAPES)] for n in range(len(lengths))]
    return [
        Prompt(random_tokens(length, n), options, answer, question_id=f"t{n}")
        for n, (length, (options, answer)) in enumerate(zip(lengths, shapes, strict=True))
    ]


def corrected(prompt: Prompt) -> Prompt:
    """With a length and an offset for every sequence, no two alike."""
    lengths = [[len(ids) + 0.25 * k + 0.5 * n for n, ids in enumerate(o)] for k, o in enumerate(prompt.option_ids)]
    offsets = [[-1.5 * len(ids) + 0.75 * k - n for n, ids in enumerate(o)] for k, o in enumerate(prompt.option_ids)]
    return replace(prompt, lengths=lengths, offsets=offsets)


def mixed_prompts() -> list[Prompt]:
    """Texts with and without lengths and offsets, beside letters and a letter whose length is said."""
    plain = text_prompts()
    letters = Prompt(random_tokens(9, 31), [[[3], [4]], [[5]], [[6], [7]]], 2, question_id="letters")
    sized = Prompt(random_tokens(12, 32), [[[3]], [[5]], [[6]]], 1, question_id="sized", lengths=[[1.0], [2.0], [3.0]])
    return [plain[0], letters, corrected(plain[1]), plain[2], sized, corrected(plain[3])]


def few_prompts() -> list[Prompt]:
    """One to six tokens, several forms, lengths and offsets, a letter: in as few sequences as that takes."""
    six, nested = text_prompts((5, 6, 14, 15))[2:]
    letter = Prompt(random_tokens(9, 31), [[[3], [4]], [[5]], [[6], [7]]], 2, question_id="letter")
    return [six, letter, corrected(nested)]


def open_prompts() -> list[Prompt]:
    """Right answers without anything to contrast them with, one of them in two forms."""
    return [
        Prompt(random_tokens(6, 41), [[[41, 42, 43, 44]]], 0, question_id="open"),
        Prompt(random_tokens(10, 42), [[[45], [46, 47]]], 0, question_id="open too"),
    ]


def in_words(prompt: Prompt) -> Prompt:
    """The same prompt, asked for in words."""
    return replace(prompt, texts=tuple(f"word {k}" for k in range(len(prompt.option_ids))))


def with_texts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts with token sequences for options, those of variants of a question alike."""
    names = list(dict.fromkeys(p.question_id for p in prompts))
    shapes = [SHAPES[names.index(p.question_id) % len(SHAPES)] for p in prompts]
    return [
        replace(prompt, option_ids=options, answer=answer, order=())
        for prompt, (options, answer) in zip(prompts, shapes, strict=True)
    ]
