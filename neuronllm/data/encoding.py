"""Texts to token ids, as a tokenizer itself would begin them, and the tokenizer left as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..common.errors import InputError
from .templates import tokenizer_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNBOUNDED = 10**9  # tokenizers that know no limit report 1e30
UNKNOWN = "\ufffd"  # stands for bytes that are no character


@contextmanager
def backend_kept(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
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


class Encoder:
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

    def limit(self, max_length: int | None) -> int | None:
        """How many tokens a text may have: as many as asked for, else what the tokenizer says; None: any number."""
        if max_length is not None:
            return max_length
        known = self.tokenizer.model_max_length
        return known if 0 < known < UNBOUNDED else None


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of those before it; joined they are the whole.

    A character whose bytes lie in several tokens belongs to the last of them.

    >>> _, tokenizer = nl.load_model("demo")
    >>> "".join(token_texts(tokenizer, tokenizer("Answer: A")["input_ids"]))
    'Answer: A'
    """
    texts, before = [], ""
    for end in range(1, len(ids) + 1):
        now = str(tokenizer.decode(list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        unfinished = now.endswith(UNKNOWN) and end < len(ids)
        texts.append("" if unfinished else now[len(before) :])
        before = before if unfinished else now
    return texts
