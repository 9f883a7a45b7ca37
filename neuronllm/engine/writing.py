"""Let the model write: batched decoding under an edit, greedy, or of answers drawn at random.

Prompts of like length share a batch, padded on the left, so that all rows begin to write in the same column; padding is
masked, and which token pads does not matter. What all prompts start with, such as demonstrations, is computed once. A
row ends at an end-of-text token, or once what stands in it would be cut off. It is the model's own `generate` that
decodes, so live edits find the answer as they do outside.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.checks import integer
from ..common.errors import InputError
from ..data.matching import cut, is_over
from ..model.anatomy import Anatomy
from ..model.discovery import decoder_of
from ..model.edit import edit
from .asking import Edit, check_batch_size
from .batching import CUDA_TOKENS, TOKENS, Plan, backing_off
from .batching import cut as cut_places
from .borrowed import borrowed, check_finite, check_prompts, context_length, input_device, may_pad, quietly, rope_limit
from .causality import not_causal
from .positions import counting_modules, heeding
from .tree import root_length
from .verdicts import verdicts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data.prompts import Prompt

PADDING = 0  # any token would do


Start: TypeAlias = "list[tuple[Tensor, Tensor]]"  # keys and values of each layer, (1, heads, tokens, dimensions)


class Sampled(NamedTuple):
    """Tokens drawn at random in place of the likeliest ones.

    A prompt draws by its own tokens, the seed and the number of the draw, so its answers do not depend on its batch.
    """

    temperature: float = 1.0
    seed: int = 0
    draw: int = 0


class Written(NamedTuple):
    """What a model wrote, cut where it stops."""

    text: str
    logprob: float  # of the tokens by which it did, the last one included
    ended: bool  # of itself, before there were too many tokens


class Writer:
    """The same prompts, written to again and again under different edits.

    >>> write = Writer(model, tokenizer, prompts)   # doctest: +SKIP
    >>> write(None)                                 # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        prompts: Sequence[Prompt],
        max_new_tokens: int = 32,
        batch_size: int | str = "auto",
        stop: str | None = "\n",
    ) -> None:
        if tokenizer is None:
            raise InputError("tokenizer=None: what a model writes is tokens, and only its tokenizer makes them a text")
        if getattr(model, "generation_config", None) is None or not model.can_generate():
            raise InputError(
                f"model: {type(model).__name__} has no generation config, so it cannot write its answers; load it as "
                'a causal language model, or ask with answers="texts"'
            )
        if (integer(max_new_tokens) or 0) < 1:
            raise InputError(f"max_new_tokens={max_new_tokens!r}: give a positive whole number")
        check_prompts(model, prompts)
        _check_room(model, prompts, max_new_tokens)
        self.model, self.tokenizer, self.prompts = model, tokenizer, prompts
        self.max_new_tokens, self.stop, self.ends = max_new_tokens, stop, _ends(model, tokenizer)
        order = sorted(range(len(prompts)), key=self._length)
        one_length = [list(group) for _, group in groupby(order, key=self._length)]
        self.alike = [order] if may_pad(model) else one_length  # only prompts of the same list share a batch
        tokens = CUDA_TOKENS if model.device.type == "cuda" else TOKENS
        size = max(1, tokens // (self._length(order[-1]) + max_new_tokens))
        size = size if check_batch_size(batch_size) == "auto" else int(batch_size)
        self.plan = Plan(prompts=size, answer_tokens=size, window=size)
        self.root = prompts[0].input_ids[: root_length(prompts)] if _may_share(model) else []

    @cached_property
    def anatomy(self) -> Anatomy:
        return Anatomy.of(self.model)

    @cached_property
    def counting(self) -> tuple[str, ...]:
        """What counts positions itself, and would count padding too."""
        return counting_modules(self.model)

    def __call__(
        self,
        change: Edit | None = None,
        sampled: Sampled | None = None,
        label: str = "writing",
        progress: bool = False,
    ) -> list[str]:
        """What the model writes to each prompt, under an edit or as it is."""
        return [written.text for written in self.written(change, sampled, label, progress)]

    @torch.no_grad()
    def written(
        self,
        change: Edit | None = None,
        sampled: Sampled | None = None,
        label: str = "writing",
        progress: bool = False,
    ) -> list[Written]:
        """The same, with how likely it was."""
        found: dict[int, Written] = {}
        with (
            borrowed(self.model, attention=None),
            _own_settings(self.model),
            quietly(),
            tqdm(total=len(self.prompts), desc=label, disable=not progress, unit="prompt", leave=False) as bar,
        ):
            start = self._start(change)
            write: Any = partial(self._batch, sampled, start)  # a list of a batch's texts, where others have a tensor
            with self._edited(change), heeding(self.model, self.counting):
                for alike in self.alike:
                    for places, part in backing_off(cut_places(alike, self.plan, 0), write, self.plan, 0):
                        found.update(zip(places, part, strict=True))
                        bar.update(len(places))
        return [found[n] for n in range(len(self.prompts))]

    def _length(self, place: int) -> int:
        return len(self.prompts[place].input_ids)

    def _edited(self, change: Edit | None) -> Any:
        if change is None:
            return nullcontext()
        return edit(self.model, change.ids, change.factors, positions=change.positions, anatomy=self.anatomy)

    def _start(self, change: Edit | None) -> Start:
        """What every layer keeps of the tokens that all prompts start with."""
        from transformers import DynamicCache

        if not self.root:
            return []
        reached = change if change is not None and change.positions == "all" else None  # none of them is the answer's
        cache = DynamicCache()
        ids = torch.tensor([self.root], device=input_device(self.model))
        with self._edited(reached):
            decoder_of(self.model)(input_ids=ids, past_key_values=cache, use_cache=True)
        kept: list[Any] = list(cache.layers)
        return [(layer.keys, layer.values) for layer in kept]

    def _batch(self, sampled: Sampled | None, start: Start, places: list[int]) -> list[Written]:
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        batch = [self.prompts[n].input_ids for n in places]
        width = max(len(ids) for ids in batch)
        ids = torch.tensor([[PADDING] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        rows = _Rows(self, batch, sampled)
        standing = mask.cumsum(1).sub(1).clamp(min=0).to(input_device(self.model))
        generate: Any = self.model.generate
        generate(
            input_ids=ids.to(input_device(self.model)),
            attention_mask=mask.to(input_device(self.model)),
            past_key_values=_padded(start, mask) if start else None,
            **({"position_ids": standing} if self.counting else {}),
            generation_config=GenerationConfig(
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=self.ends or None,
                pad_token_id=PADDING,
            ),
            logits_processor=LogitsProcessorList([rows.choose]),
            stopping_criteria=StoppingCriteriaList([rows.over]),
        )
        return rows.written()


class _Rows:
    """The rows of a batch while they are written."""

    def __init__(self, writer: Writer, prompts: list[list[int]], sampled: Sampled | None) -> None:
        self.writer, self.sampled = writer, sampled
        self.width = max(len(ids) for ids in prompts)
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.done = [False] * len(prompts)
        self.logprobs: list[Tensor] = []  # step by step, of the tokens chosen
        self.randoms = [] if sampled is None else [_random(ids, sampled) for ids in prompts]

    def choose(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Logits of which the greatest is the token to come."""
        check_finite(self.writer.model, logits)
        token = logits.argmax(-1, keepdim=True) if self.sampled is None else self._drawn(logits, self.sampled)
        self.logprobs.append(logits.double().log_softmax(-1).gather(-1, token)[:, 0])
        return logits if self.sampled is None else torch.full_like(logits, -math.inf).scatter(-1, token, 0.0)

    def _drawn(self, logits: Tensor, sampled: Sampled) -> Tensor:
        """One token a row, (rows, 1): the greatest logit with Gumbel noise on it.

        Rounding, which differs from batch to batch, changes that only at a tie. A random number among the summed
        probabilities of a large vocabulary lies at the edge of some token far more often.
        """
        noise = np.stack([-np.log(one.standard_exponential(logits.shape[-1])) for one in self.randoms])
        return (logits.double() / sampled.temperature + torch.from_numpy(noise).to(logits.device)).argmax(-1, True)

    def over(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which rows have ended, (rows,), after one more token each."""
        for row, tokens in enumerate(ids[:, self.width :].tolist()):
            if not self.done[row]:
                self.tokens[row] = tokens
                self.done[row] = tokens[-1] in self.writer.ends or is_over(self._text(row), self.writer.stop)
        return torch.tensor(self.done, device=ids.device)

    def _text(self, row: int) -> str:
        tokens = [token for token in self.tokens[row] if token not in self.writer.ends]
        return str(self.writer.tokenizer.decode(tokens, skip_special_tokens=True))

    def written(self) -> list[Written]:
        steps = torch.stack(self.logprobs).cpu()
        return [
            Written(cut(self._text(row), self.writer.stop), float(steps[: len(tokens), row].sum()), self.done[row])
            for row, tokens in enumerate(self.tokens)
        ]


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: those of the model's generation config, and that of its tokenizer."""
    own: Any = getattr(model.generation_config, "eos_token_id", None)
    named = [*(own if isinstance(own, (list, tuple)) else [own]), tokenizer.eos_token_id]
    return sorted({int(token) for token in named if token is not None})


def _random(ids: list[int], sampled: Sampled) -> np.random.Generator:
    digest = hashlib.sha256(json.dumps([sampled.seed, sampled.draw, ids]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


@contextmanager
def _own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Without the generation config of the model: `generate` takes from it whatever ours leaves open."""
    from transformers import GenerationConfig

    theirs = model.generation_config
    try:
        model.generation_config = GenerationConfig()
        yield
    finally:
        model.generation_config = theirs


def _padded(start: Start, mask: Tensor) -> Any:
    """A cache that holds as many columns of a padded batch as the start has tokens.

    A row that is padded has only the first of them there, and computes the others again; what stands in the columns of
    its padding is masked.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, pair in enumerate(start):
        columns = torch.arange(pair[0].shape[2]) - (mask == 0).sum(1, keepdim=True)  # (rows, tokens)
        tokens = columns.clamp(min=0).to(pair[0].device)
        keys, values = (kept[0][:, tokens].transpose(0, 1) for kept in pair)
        cache.update(keys, values, layer)
    return cache


def _may_share(model: PreTrainedModel) -> bool:
    """Whether the first tokens of a prompt are the same whatever follows, and keys and values are all that is kept."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    by_token = bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}  # not so with convolutions
    stateful = getattr(model, "_is_stateful", False)
    return by_token and rope_limit(model) is None and not stateful and not_causal(model, verdicts(model)) is None


def _check_room(model: PreTrainedModel, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    limit = context_length(model)
    for prompt in prompts:
        length = len(prompt.input_ids)
        if limit is not None and length + max_new_tokens > limit:
            name = f"question {prompt.question_id!r}" if prompt.question_id else "a prompt"
            raise InputError(
                f"{name}: its prompt of {length} tokens and max_new_tokens={max_new_tokens} are more than the model's "
                f"context of {limit}; shorten the question, or let the model write less"
            )
