"""Prompts: what a model is shown, as token ids, and the token sequences by which each option is answered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

from ..common.checks import integer, short
from ..common.errors import InputError
from .questions import Question


class AnswerTree(NamedTuple):
    """The tokens behind which a prompt's answers are read: the last prompt token, and the branches behind it.

    Sequences that begin alike share their first tokens. A sequence's last token is read and never shown.
    """

    tokens: list[int]  # of every node; node 0 is the last prompt token
    parents: list[int]  # -1 of node 0
    paths: list[list[list[int]]]  # options -> sequences -> the nodes behind which each of its tokens is read


@dataclass(frozen=True)
class Prompt:
    """Token ids up to the answer position, the token ids of every displayed option, and which option is right.

    An option is one or more token sequences that mean the same: `[[5, 6, 7]]` is one answer of three tokens,
    `[[11], [31]]` two forms of one token, `[9]` is short for `[[9]]`. `answer` counts displayed options; `order[j]` is
    the original index of the choice displayed at j. The first three fields are enough to build one by hand; prompts
    with an empty `question_id` are each a question of their own.

    The log-probability of a sequence, less its `offsets`, is divided by its `lengths`, which stand in the shape of
    options -> sequences; empty, they are 0 and 1. `texts` are the options in words, where words were asked for.

    >>> Prompt(input_ids=[5, 9, 2], option_ids=[[[11], [31]], [[12, 7]]], answer=1).form
    'texts'
    """

    input_ids: list[int]
    option_ids: list[list[list[int]]]
    answer: int
    question_id: str = ""
    order: tuple[int, ...] = ()
    template: str = ""
    texts: tuple[str, ...] = ()
    lengths: list[list[float]] = field(default_factory=list)
    offsets: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_ids", _token_ids(self.input_ids, "input_ids"))
        if isinstance(self.option_ids, (str, bytes)) or not isinstance(self.option_ids, Iterable):
            raise InputError("option_ids must hold the token sequences of every option")
        options = [_sequences(given, f"option_ids[{number}]") for number, given in enumerate(self.option_ids)]
        if not options:
            raise InputError("option_ids is empty: give at least the right answer")
        _check_distinct(options)
        answer = integer(self.answer)
        if answer is None or not 0 <= answer < len(options):
            raise InputError(f"answer must be an index into the {len(options)} options, got {short(self.answer)}")
        order = tuple(self.order)
        if order and sorted(order) != list(range(len(options))):
            raise InputError(f"order must permute the {len(options)} options, got {short(order)}")
        object.__setattr__(self, "option_ids", options)
        object.__setattr__(self, "answer", answer)
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "texts", tuple(self.texts))
        if self.texts and len(self.texts) != len(options):
            raise InputError(f"texts must hold one text for each of the {len(options)} options, got {len(self.texts)}")
        for name in ("lengths", "offsets"):
            object.__setattr__(self, name, _numbers(getattr(self, name), options, name))

    @cached_property
    def one_token(self) -> bool:
        """Whether the logits at the answer position say all that there is to know of every option."""
        return not self.lengths and not self.offsets and self.span == 1

    @cached_property
    def span(self) -> int:
        """Of how many tokens the longest sequence is."""
        return max(len(ids) for option in self.option_ids for ids in option)

    @property
    def form(self) -> str:
        """In what form it is answered, "letters" or "texts"."""
        return "letters" if self.one_token and not self.texts else "texts"

    @property
    def first_tokens(self) -> list[list[int]]:
        """Of every option the first token of each of its sequences, which are all there is of letters."""
        return [list(dict.fromkeys(ids[0] for ids in option)) for option in self.option_ids]

    @cached_property
    def tree(self) -> AnswerTree:
        """All answers behind the prompt, as one tree; of letters, it is the last prompt token."""
        tokens, parents = [self.input_ids[-1]], [-1]
        children: dict[tuple[int, int], int] = {}

        def path(sequence: list[int]) -> list[int]:
            nodes = [0]
            for token in sequence[:-1]:
                key = (nodes[-1], token)
                if key not in children:
                    children[key] = len(tokens)
                    tokens.append(token)
                    parents.append(nodes[-1])
                nodes.append(children[key])
            return nodes

        paths = [[path(sequence) for sequence in option] for option in self.option_ids]
        return AnswerTree(tokens, parents, paths)

    @property
    def n_tokens(self) -> int:
        """Of the prompt and all answers behind it."""
        return len(self.input_ids) + len(self.tree.tokens) - 1

    def by_first_token(self) -> Prompt:
        """The same prompt, each of whose answers is read off its first token; two options may then be the same one."""
        if self.one_token:
            return self
        short = object.__new__(Prompt)  # what __post_init__ refuses is meant here
        short.__dict__.update({part.name: getattr(self, part.name) for part in fields(self)})
        options = [[[token] for token in option] for option in self.first_tokens]
        short.__dict__.update(option_ids=options, lengths=[], offsets=[])
        return short

    def alone(self, option: int) -> Prompt:
        """The same prompt with one of its options only."""
        own = slice(option, option + 1)
        return replace(
            self,
            option_ids=self.option_ids[own],
            answer=0,
            order=(),
            texts=self.texts[own],
            lengths=self.lengths[own],
            offsets=self.offsets[own],
        )


def _sequences(given: Any, what: str) -> list[list[int]]:
    """An option's token sequences: a list of them, or a single token."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise InputError(f"{what} must be a list of token sequences, such as [[5, 6, 7]], got {short(given)}")
    parts = list(given)
    flat = [_whole(part) is not None for part in parts]
    if not any(flat):
        if not parts:
            raise InputError(f"{what} is empty")
        return [_token_ids(part, f"{what}[{number}]") for number, part in enumerate(parts)]
    ids = _token_ids(parts, what)
    if len(ids) > 1:
        forms = ", ".join(f"[{token}]" for token in ids)
        raise InputError(
            f"{what}={short(ids)} can be read in two ways: write [{ids}] for one answer of {len(ids)} tokens, "
            f"or [{forms}] for {len(ids)} forms of one token"
        )
    return [ids]


def _check_distinct(options: list[list[list[int]]]) -> None:
    owner: dict[tuple[int, ...], int] = {}
    for number, option in enumerate(options):
        for ids in option:
            if (key := tuple(ids)) in owner:
                same = f"token id {ids[0]} stands" if len(ids) == 1 else f"the tokens {short(ids)} stand"
                raise InputError(f"option_ids: {same} twice (options {owner[key]} and {number})")
            owner[key] = number


def _numbers(given: Any, options: list[list[list[int]]], name: str) -> list[list[float]]:
    """One number a sequence, or none at all."""
    numbers = [[float(number) for number in option] for option in given]
    if numbers and [len(option) for option in numbers] != [len(option) for option in options]:
        raise InputError(f"{name} must hold one number for each sequence of option_ids")
    if name == "lengths" and any(number <= 0 for option in numbers for number in option):
        raise InputError("lengths must be above 0")
    return numbers


def _token_ids(values: Any, what: str) -> list[int]:
    """`values` (a list, a 1-d array or tensor) as a list of token ids."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InputError(f"{what} must be a list of token ids, got {short(values)}")
    ids: list[int] = []
    for value in values:
        number = _whole(value)
        if number is None or number < 0:
            raise InputError(f"{what} must be a flat list of token ids, got an element {short(value)}")
        ids.append(number)
    if not ids:
        raise InputError(f"{what} is empty")
    return ids


def _whole(value: Any) -> int | None:
    try:
        return integer(value)
    except (ValueError, RuntimeError):  # a row of a 2-d array or tensor
        return None


Questions = Sequence[Question | Prompt]  # to be rendered by `as_prompts`, or rendered already


def group_by_question(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """The prompts of each question together: neighbours with the same id; an empty id is a question of its own.

    >>> one = Prompt(input_ids=[1], option_ids=[[2], [3]], answer=0)
    >>> len(group_by_question([one, one]))
    2
    """
    groups: list[list[Prompt]] = []
    for prompt in prompts:
        if groups and prompt.question_id and groups[-1][0].question_id == prompt.question_id:
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return groups
