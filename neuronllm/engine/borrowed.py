"""Borrow the user's model: change what attribution needs, give everything back, also after an exception."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..common.errors import InputError
from ..model.hooks import HookError
from ..model.loading import check_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt

Slot = tuple[str, str]  # a module's name, and its attribute

# What the code of a model, or an edit around it, raises that takes its inputs another way. What is wrong with the
# prompts or the weights themselves, the reference will say.
DRIVING_ERRORS = (
    HookError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def borrowed(model: PreTrainedModel, attention: str | None = "sdpa") -> Iterator[PreTrainedModel]:
    """The model in eval mode with frozen parameters and the named attention (None: its own), given back as found."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    training = [m for m in model.modules() if m.training]
    before, tensors = attention_names(model), tensors_of_modules(model)
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        if attention and _can_take(model, attention):
            model.set_attn_implementation(attention)
        yield model
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)
        _give_attention_back(model, before)
        for (name, attribute), held in tensors_of_modules(model).items():
            if held is not tensors.get((name, attribute), held):
                setattr(model.get_submodule(name), attribute, tensors[name, attribute])


def tensors_of_modules(model: torch.nn.Module) -> dict[Slot, Tensor | None]:
    """What modules hold that is neither weight nor buffer, where it is a tensor or None.

    Such as states of the last pass (RecurrentGemma), which would keep its graph alive.
    """
    return {
        (name, attribute): value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if value is None or isinstance(value, Tensor)
    }


def _give_attention_back(model: PreTrainedModel, before: dict[str, str | None]) -> None:
    if attention_names(model) == before:
        return
    model.set_attn_implementation({name: attention for name, attention in before.items() if attention is not None})
    # A part that is no model of its own (MPT's attention) may have named none, which transformers does not take back.
    for name, attention in before.items():
        if name and attention is None and (part := getattr(model.config, name)) is not None:
            part._attn_implementation = None


def attention_names(model: PreTrainedModel) -> dict[str, str | None]:
    """The attention of the model and of its parts, in the form that set_attn_implementation takes back but for None."""
    config = model.config
    parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", {})}
    names = {name: part._attn_implementation for name, part in parts.items() if part is not None}
    return {"": config._attn_implementation, **names}


def _can_take(model: PreTrainedModel, attention: str) -> bool:
    """Scaled-dot-product attention knows neither soft caps nor sinks: such models keep their own."""
    if attention != "sdpa" or model.config._attn_implementation == "sdpa":
        return attention != model.config._attn_implementation
    config = model.config.get_text_config()
    return bool(getattr(model, "_supports_sdpa", False)) and not getattr(config, "attn_logit_softcapping", None)


@contextmanager
def running_instead(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Each module with another forward while the context lasts."""
    owns = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, own in owns.items():
            if own is None:
                vars(module).pop("forward", None)
            else:
                module.forward = own


class DoublePrecision(TorchFunctionMode):
    """Gives float64 where a model's code asks for float32 whatever its own type (norms, softmax, rotary angles)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


def plain_types() -> AbstractContextManager[Any]:
    """Within DoublePrecision, the types of code that is not the model's."""
    return torch._C.DisableTorchFunction()


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go, also when a device map spreads the model."""
    return next(model.get_input_embeddings().parameters()).device


def ordinary_tokens(model: PreTrainedModel) -> list[int]:
    """Tokens that do not pad."""
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    return [token for token in range(3) if token != padding]


STATES = "states_of_the_pass"  # marks the forward of a head that keeps what goes into it


class HeldStates:
    """What went into the head in the last pass; those whose logits were chosen of it."""

    states: Tensor | None = None

    def choose(self, rows: Tensor, place: Tensor) -> None:
        """As the logits are chosen."""
        assert self.states is not None
        states = self.states.reshape(len(rows), -1, self.states.shape[-1])
        self.states = states[rows.to(states.device), place.to(states.device)]


def held_states(model: PreTrainedModel) -> HeldStates | None:
    """Where the head keeps what goes into it, if it does."""
    held: HeldStates | None = getattr(vars(model.get_output_embeddings()).get("forward"), STATES, None)
    return held


def answer_logits(
    model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None, at: Tensor | None = None, **more: Any
) -> Tensor:
    """Logits (rows, vocabulary) at position `at` of each row (None: the last), computed nowhere else if possible.

    With several positions a row, `at` (rows, positions), they are (rows, positions, vocabulary). Copies of a single row
    may have joined it on the way.
    """
    where, place = (torch.tensor([ids.shape[1] - 1]), torch.zeros(len(ids), dtype=torch.int64))
    if at is not None:
        where, place = at.unique(return_inverse=True)
    inputs = {"input_ids": ids.to(input_device(model)), "use_cache": False, **more}
    if mask is not None:
        inputs["attention_mask"] = mask.to(input_device(model))
    with _reading_tokens_alone(model):
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            logits = model(**inputs, logits_to_keep=where.to(input_device(model))).logits
        else:
            logits = model(**inputs).logits[:, where.to(input_device(model))]
    rows = torch.arange(len(logits), device=logits.device).reshape(-1, *[1] * (place.ndim - 1))
    logits = logits[rows, place.to(logits.device)]
    if (held := held_states(model)) is not None:
        held.choose(rows, place)
    check_finite(model, logits)
    return logits


@contextmanager
def _reading_tokens_alone(model: PreTrainedModel) -> Iterator[None]:
    """One line where a model wants images, sound or an encoder's output too, and says so in an error of its own."""
    try:
        yield
    except InputError:
        raise
    except (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model: {type(model).__name__} does not read a prompt of tokens alone ({first[:120]}): give a decoder "
            "language model"
        ) from error


def context_length(model: PreTrainedModel) -> int | None:
    """The longest input the model has positions for, None when its configuration does not say."""
    config: Any = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def rope_limit(model: PreTrainedModel) -> int | None:
    """The length beyond which the rotary angles of ALL tokens of a batch change, where there is one.

    Such a model (LongRoPE, dynamic scaling) answers a prompt otherwise beside a longer one, so prompts of both sides
    must not share a pass.
    """
    config: Any = model.config.get_text_config()
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [given, *(part for part in given.values() if isinstance(part, dict))]
    if not any(kind.get("rope_type") in ("longrope", "dynamic") for kind in kinds):
        return None
    named = [kind.get("original_max_position_embeddings") for kind in kinds]
    named += [getattr(config, "original_max_position_embeddings", None), context_length(model)]
    return next((limit for limit in named if limit), 1)


def may_pad(model: PreTrainedModel) -> bool:
    """Whether rows may be padded to the length of longer ones.

    Not where the rotary angles of all rows depend on the longest, nor in float64: much attention takes its softmax in
    float32, where the mask of float64 is minus infinity, and padding that sees nothing becomes NaN.
    """
    return rope_limit(model) is None and model.dtype != torch.float64


@contextmanager
def quietly() -> Iterator[None]:
    """Without what transformers says about models that do not take another attention: we say what follows from it."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def check_prompts(model: PreTrainedModel, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that the model cannot read, before any work is done."""
    if not prompts:
        raise InputError("questions: there is nothing to score, give at least one question")
    limit, vocabulary = context_length(model), next(model.get_input_embeddings().parameters()).shape[0]
    for prompt in prompts:
        name = f"question {prompt.question_id!r}" if prompt.question_id else "a prompt"
        length = len(prompt.input_ids) + prompt.span - 1
        if limit is not None and length > limit:
            with_answer = "" if prompt.span == 1 else " with its longest answer"
            raise InputError(
                f"{name}: its prompt{with_answer} has {length} tokens, more than the model's context of {limit}; "
                "shorten the question or choose a shorter template"
            )
        highest = max(max(prompt.input_ids), max(max(ids) for option in prompt.option_ids for ids in option))
        if highest >= vocabulary:
            raise InputError(
                f"{name}: token id {highest} is outside the model's vocabulary of {vocabulary}; "
                "the tokenizer and the model do not belong together"
            )


def tolerance(plain: Tensor) -> Tensor:
    """Many models compute norms and softmax in float32 whatever their type."""
    eps = 1000 * max(torch.finfo(kind).eps for kind in (plain.dtype, torch.float32))
    return min(eps, 0.1) * plain.abs().max()


def check_finite(model: PreTrainedModel, logits: Tensor) -> None:
    """Refuse a model whose answers are NaN or infinite, and name the weight at fault where there is one."""
    if bool(logits.isfinite().all()):
        return
    check_weights(model)
    raise InputError(
        "model: its answer logits are NaN or infinite although its weights are finite; try a wider dtype (float32)"
    )
