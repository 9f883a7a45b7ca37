"""Which tokens of a forward pass belong to the answer: the last prompt token, and every token behind it.

A forward pass shows no end of the prompt. `generate` knows it: while an edit of the answer lasts, the model's own
`generate` is called through a function that notes how long the prompt is, and a hook in front of every forward pass
works out which of its tokens stand at or behind the prompt's last one. Places are columns of the whole padded batch:
what a cache holds counts, so that a pass of one token and a pass of the whole sequence mean the same tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Attributes of the model for the while, not variables here: a copy of the model takes them along, as with hooks.
CALLER, LISTENERS, PROMPT = "_neuronllm_generate", "_neuronllm_listeners", "_neuronllm_prompt"

NO_PROMPT = (
    'positions="answer": a forward pass does not show where its prompt ends: call model.generate, or give '
    "answer_start=, the place of the first edited token, one number or one a row (positions=-1 is the last token)"
)


class PaddedPrompt(NamedTuple):
    """What a call of `generate` says about its prompts."""

    length: int  # in columns, with padding
    mask: Tensor | None  # (rows, length), where the caller gave one


@contextmanager
def answer_tokens(model: PreTrainedModel, start: Any = None) -> Iterator[Callable[[], Tensor]]:
    """Gives a function that says, inside a forward pass, which tokens belong to the answer: (rows, tokens).

    Inside `generate` they begin at each row's last prompt token; `start`, one place or one a row, wins everywhere.
    """
    start = None if start is None else checked_start(start)
    current: list[Tensor] = []

    def before(module: Any, args: Any, kwargs: Any) -> None:
        current[:] = [_of_pass(module, _named(module, args, kwargs), start)]

    def now() -> Tensor:
        if not current:
            raise InputError('positions="answer": edit the model whose forward pass is run, not one wrapped around it')
        return current[0]

    handles: list[Any] = []
    with _heard_generate(model):
        try:
            handles.append(model.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(model.register_forward_hook(lambda *_: current.clear(), always_call=True))
            yield now
        finally:
            for handle in handles:
                handle.remove()


def checked_start(start: Any) -> Tensor:
    """`answer_start` as (1,) or (rows,) whole numbers."""
    try:
        places = torch.as_tensor(start)
    except (TypeError, ValueError, RuntimeError):
        places = torch.tensor(0.0)
    whole = not (places.is_floating_point() or places.is_complex() or places.dtype == torch.bool)
    if not whole or places.ndim > 1 or not places.numel() or int(places.min()) < 0:
        raise InputError(
            f"answer_start={start!r}: give the place of the first edited token, one whole number or one a row, "
            "0 or more, counted from the start of the padded sequence"
        )
    return places.reshape(-1).to("cpu", torch.int64)


@contextmanager
def _heard_generate(model: Any) -> Iterator[None]:
    """The model's `generate` leaves a note of its prompt while somebody listens; contexts may end in any order."""
    own = vars(model)
    if LISTENERS not in own:
        own[CALLER] = own.get("generate")  # somebody else's, or None: that of the class
        own["generate"] = MethodType(_noting(type(model)), model)
    own[LISTENERS] = own.get(LISTENERS, 0) + 1
    try:
        yield
    finally:
        own[LISTENERS] -= 1
        if not own[LISTENERS]:
            del own[LISTENERS]
            own.pop("generate", None)
            caller = own.pop(CALLER)
            if caller is not None:
                own["generate"] = caller


def _noting(kind: type) -> Callable[..., Any]:
    of_class: Any = getattr(kind, "generate", None)

    def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
        own = vars(model)
        caller = own.get(CALLER) or MethodType(of_class, model)
        if PROMPT in own:  # a generate within a generate goes on with the same sequences
            return caller(*args, **kwargs)
        own[PROMPT] = _prompt(args, kwargs)
        try:
            return caller(*args, **kwargs)
        finally:
            del own[PROMPT]

    return generate if of_class is None else wraps(of_class)(generate)


def _prompt(args: Any, kwargs: Any) -> PaddedPrompt:
    settings = (kwargs.get("guidance_scale"), getattr(kwargs.get("generation_config"), "guidance_scale", None))
    if any(scale not in (None, 1) for scale in settings):
        raise InputError(
            'guidance_scale: it runs another prompt beside the given one, which positions="answer" cannot follow: '
            'edit with positions="all", or leave it out'
        )
    given = [kwargs.get(name) for name in ("inputs_embeds", "input_ids", "inputs")] + list(args[:1])
    tokens = next((value for value in given if value is not None), None)
    mask = kwargs.get("attention_mask")
    if mask is not None:  # with a cache, the prompt may be given without what the cache holds; the mask counts all
        return PaddedPrompt(mask.shape[1], mask)
    return PaddedPrompt(1 if tokens is None else tokens.shape[1], None)  # without a prompt it begins with one token


def _named(module: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a forward pass by their names."""
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs} if args else kwargs


def _of_pass(model: Any, named: dict[str, Any], start: Tensor | None) -> Tensor:
    tokens = named["input_ids"] if named.get("input_ids") is not None else named["inputs_embeds"]
    rows, width = tokens.shape[:2]
    cache = named.get("past_key_values")
    before = 0 if cache is None else cache.get_seq_length()  # a number, or a tensor on the device: not waited for
    prompt: PaddedPrompt | None = vars(model).get(PROMPT)
    if start is None and prompt is None:
        raise InputError(NO_PROMPT)
    if start is None:
        assert prompt is not None
        first = _last_prompt_token(prompt, named.get("attention_mask"))
    else:
        first = start
        if prompt is None:
            _check_fit(start, rows, width, cache)
    if rows % len(first):
        raise InputError(f"answer_start: {len(first)} places for {rows} rows")
    first = first.to(tokens.device).repeat_interleave(rows // len(first))  # beams and samples of a prompt follow it
    return torch.arange(width, device=tokens.device) + before >= first[:, None]


def _last_prompt_token(prompt: PaddedPrompt, seen: Any) -> Tensor:
    """The place of each row's last token that is no padding."""
    mask = prompt.mask
    # Without a mask `generate` makes one where it finds padding; the pass shows it.
    if mask is None and isinstance(seen, Tensor) and seen.ndim == 2 and seen.shape[1] >= prompt.length:
        mask = seen[:, : prompt.length]
    if mask is None:
        return torch.tensor([prompt.length - 1])
    return ((mask != 0) * torch.arange(prompt.length, device=mask.device)).argmax(-1)


def _check_fit(start: Tensor, rows: int, width: int, cache: Any) -> None:
    if len(start) not in (1, rows):
        raise InputError(f"answer_start: {len(start)} places for a forward pass of {rows} rows")
    if cache is None and int(start.max()) >= width:
        raise InputError(f"answer_start={int(start.max())}: a forward pass of {width} tokens ends before it")
