"""Sets of prompts that show a behaviour, or do not: texts, chats, and prompts with an answer behind them.

An item is a text; a list of messages, {role, content}; {"text"}, {"messages"} or {"prompt"} with one of these, and with
"prompt" if wished "answer" (or "completion"); or a `Prompt`, whose right answer in words is its answer. Where a chat
ends with a message of the assistant, that is the answer.

1. An item becomes text: what stands before the answer, and the whole.
2. Both are encoded as one text each, and what is behind their common tokens is the answer.
3. Reading at some positions becomes a prompt that an engine can be asked for: attention is causal, so a token holds the
   same whatever stands behind it, and tokens that are not read need not be there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..common.checks import integer, short
from ..common.errors import InputError
from .encoding import Encoder, backend_kept
from .prompts import Prompt
from .templates import in_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

READ_AT = ("answer", "prompt", "all")  # or the place of a single token
ANSWERS = ("answer", "completion")
Positions: TypeAlias = "str | int"
Messages = list[dict[str, str]]


class Worded(NamedTuple):
    """An item as text: what stands before the answer, and the whole, which is the same where there is no answer."""

    before: str
    whole: str
    chat: bool

    def answered(self, answer: str) -> Worded:
        gap = "" if self.chat or self.before[-1:].isspace() or answer[:1].isspace() else " "
        return self._replace(whole=self.before + gap + answer)


class Sequenced(NamedTuple):
    """Token ids, the last `answer` of which are the answer; 0 where none is given."""

    ids: list[int]
    answer: int

    def read_at(self, positions: Positions, name: str) -> tuple[Prompt, str]:
        """What to ask an engine for: a prompt, and at which of its positions, "answer" or "all"."""
        ids, end = self.ids, len(self.ids)
        if positions == "all":
            return _bare(ids), "all"
        if positions == "prompt":
            return _bare(ids[: end - self.answer]), "all"
        if positions != "answer":
            place = int(positions)
            if not -end <= place < end:
                raise InputError(f"positions={place}: {name} has {end} tokens, so there is no such place in it")
            return _bare(ids[: place % end + 1]), "answer"
        if self.answer < 2:
            return _bare(ids), "answer"
        # An engine reads an answer at the last token before it, and at its own but the last.
        first = end - self.answer + 1
        return Prompt(ids[:first], [[[*ids[first:], ids[-1]]]], 0), "answer"


def _bare(ids: list[int]) -> Prompt:
    return Prompt(ids, [[[ids[-1]]]], 0)  # nobody reads the option


def check_read_at(positions: Any) -> Positions:
    if isinstance(positions, str) and positions in READ_AT:
        return positions
    if (place := integer(positions)) is None:
        known = ", ".join(f'"{name}"' for name in READ_AT)
        raise InputError(f"positions={short(positions)}: give {known}, or the place of a token (-1 is the last)")
    return place


def word_prompts(
    tokenizer: PreTrainedTokenizerBase | None, prompts: Any, name: str, chat: bool = False
) -> list[Worded | Prompt]:
    """The items as texts; with `chat`, plain texts are what a user says. A `Prompt` stays what it is.

    >>> word_prompts(None, [Prompt([5, 9], [[[3]]], 0)], "shown")[0].input_ids
    [5, 9]
    """
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Sequence):
        raise InputError(f"{name} must be a list of prompts (texts, chats, or prompts with an answer)")
    if not prompts:
        raise InputError(f"{name} is empty: give at least one prompt")
    worded: list[Worded | Prompt] = []
    for number, item in enumerate(prompts):
        if isinstance(item, Prompt):
            worded.append(item)
            continue
        if tokenizer is None:
            raise InputError(f"tokenizer=None: {name}[{number}] is a text, and only a tokenizer makes tokens of it")
        try:
            worded.append(_worded(tokenizer, item, chat))
        except InputError as error:
            raise InputError(f"{name}[{number}]: {error}") from None
    return worded


def encoded(tokenizer: PreTrainedTokenizerBase | None, worded: Sequence[Worded | Prompt], name: str) -> list[Sequenced]:
    """The token ids of all items, with what the tokenizer puts before a text."""
    texts = [item for item in worded if isinstance(item, Worded)]
    ids: list[list[int]] = []
    if texts:
        assert tokenizer is not None
        with backend_kept(tokenizer):
            both = [part for item in texts for part in (item.before, item.whole)]
            ids = Encoder(tokenizer, texts[0].whole).encode(both, [item.chat for item in texts for _ in range(2)])
    pairs = iter(zip(ids[::2], ids[1::2], strict=True))
    found = []
    for number, item in enumerate(worded):
        if isinstance(item, Prompt):
            answer = item.option_ids[item.answer][0] if item.form == "texts" else []
            found.append(Sequenced([*item.input_ids, *answer], len(answer)))
            continue
        before, whole = next(pairs)
        answer_tokens = len(whole) - _common(before, whole)
        if item.whole != item.before and not 0 < answer_tokens < len(whole):
            raise InputError(f"{name}[{number}]: the tokenizer leaves no token of the answer, or none before it")
        found.append(Sequenced(whole, answer_tokens if item.whole != item.before else 0))
    return found


def _common(one: list[int], other: list[int]) -> int:
    return next((n for n, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) > 1), len(one))


def _worded(tokenizer: PreTrainedTokenizerBase, item: Any, chat: bool) -> Worded:
    before, answer = _parts(item)
    if isinstance(before, str) and chat:
        before = [{"role": "user", "content": before}]
    if isinstance(before, str):
        text = Worded(before, before, False)
        return text if answer is None else text.answered(answer)
    if answer is None and before[-1]["role"] == "assistant":
        *before, last = before
        answer = last["content"]
        if not before:
            raise InputError("the only message is the assistant's: say in front of it what is answered")
    asked = in_chat(tokenizer, before, add_generation_prompt=True)
    if answer is None:
        return Worded(asked, asked, True)
    told = in_chat(tokenizer, [*before, {"role": "assistant", "content": answer}], add_generation_prompt=False)
    place = told.rfind(answer.strip())
    if place < 0:
        raise InputError("the chat template does not show the assistant's message as it is, so it cannot be found")
    return Worded(told[:place], told[: place + len(answer.strip())], True)


def _parts(item: Any) -> tuple[str | Messages, str | None]:
    """What stands before the answer, and the answer, if one is given."""
    if not isinstance(item, Mapping):
        return _said(item, "it"), None
    if {"chosen", "rejected"} & item.keys():
        raise InputError(
            'it is a pair: give {"prompt", "answer"} with the chosen answer to one side, with the rejected to the other'
        )
    names = [name for name in ("text", "messages", "prompt") if name in item]
    answers = [name for name in ANSWERS if item.get(name) not in (None, "")]
    if len(names) != 1 or len(answers) > 1 or (answers and names != ["prompt"]):
        raise InputError(
            f"it has the fields {', '.join(map(str, item)) or '(none)'}: give text, or messages, or prompt "
            "and if wished answer"
        )
    before = _said(item[names[0]], names[0])
    if not answers:
        return before, None
    answer = _said(item[answers[0]], answers[0])
    if isinstance(answer, list):
        if len(answer) != 1:
            raise InputError(f"{answers[0]} must be a text or one message, got {len(answer)} messages")
        return before, answer[0]["content"]
    return before, answer


def _said(given: Any, name: str) -> str | Messages:
    """A text, or the messages of a chat."""
    if isinstance(given, str):
        if not given.strip():
            raise InputError(f"{name} is empty")
        return given
    listed = given.tolist() if hasattr(given, "tolist") else given
    turns = list(listed) if isinstance(listed, Sequence) else []
    for turn in turns:
        texts = isinstance(turn, Mapping) and all(isinstance(turn.get(part), str) for part in ("role", "content"))
        if not texts or not turn["content"].strip():
            turns = []
            break
    if not turns:
        raise InputError(f"{name} must be a text or a list of messages with role and content, got {short(given)}")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
