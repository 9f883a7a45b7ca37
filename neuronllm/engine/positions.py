"""Positions that a model counts itself: in passes that say where their tokens stand, it is made to heed that.

Most models take `position_ids`. Some count on from the length of their cache whatever they are given (BART), and some
add to what they count, but not to what they are given (RoBERTa). In all of them a module in front of the layers makes
something of nothing but the position, such as a row of a table. Plainly run on one long row it gives the whole table,
from which passes that are not plain take their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..model.discovery import decoder_layers, decoder_of
from .attention import Enough
from .borrowed import DRIVING_ERRORS, input_device, ordinary_tokens, running_instead, tolerance
from .mixers import Call
from .verdicts import verdicts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt

TOKENS = 4  # enough to see what a module makes of positions
ROWS = 2048  # of tokens that are tried together
HEEDS = "heeds_position_ids"  # marks a forward that does


class Made(NamedTuple):
    """What a module was handed, and what it made of it."""

    call: Call
    output: Tensor


def counting_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """The modules whose output is a matter of the position alone, but not of the one that `position_ids` say.

    None, where it does not help to have them heed it.
    """
    known, question = verdicts(model), "what counts positions"
    if question not in known:
        known[question] = _counting_modules(model)
    found: tuple[str, ...] = known[question]
    return found


@torch.no_grad()
def _counting_modules(model: PreTrainedModel) -> tuple[str, ...]:
    here = torch.arange(TOKENS, device=input_device(model)).expand(2, -1)
    ids = [[token] * TOKENS for token in ordinary_tokens(model)[:2]]
    try:
        plain, told = _in_front(model, ids), _in_front(model, ids, position_ids=here + 1)
        found = [name for name in plain.keys() & told.keys() if _counts(_rows(plain[name]), _rows(told[name]))]
        outer = tuple(sorted(name for name in found if not any(name.startswith(f"{other}.") for other in found)))
        if not outer:
            return ()
        inputs = {"input_ids": torch.tensor(ids, device=here.device), "use_cache": False}
        logits = model(**inputs).logits
        with heeding(model, outer):
            heeded = model(**inputs, position_ids=here).logits
    except DRIVING_ERRORS:
        return ()
    return outer if bool(((heeded - logits).abs() <= tolerance(logits)).all()) else ()


def _counts(plain: Tensor, told: Tensor) -> bool:
    """Of what a module made (rows, tokens, D) of two tokens again and again, plainly and told that all stand one on."""
    if plain.shape[1] != TOKENS or not torch.equal(plain[:1], plain[-1:]) or torch.equal(plain[:, :-1], plain[:, 1:]):
        return False
    return told.shape[1] != TOKENS or not torch.equal(told[-1, :-1], plain[-1, 1:])


@torch.no_grad()
def moving_token(model: PreTrainedModel, names: Sequence[str], prompts: Sequence[Prompt]) -> int | None:
    """A token of these prompts that changes what positions the model counts, as padding does for some; None if none."""
    if not names:
        return None
    token = ordinary_tokens(model)[0]
    usual = _in_front(model, [[token, token]])
    ids = sorted({token for p in prompts for tokens in (p.input_ids, p.tree.tokens) for token in tokens})
    for start in range(0, len(ids), ROWS):
        some = ids[start : start + ROWS]
        made = _in_front(model, [[first, token] for first in some])
        for name in names:
            moved = (_rows(made[name]) != _rows(usual[name])).flatten(1).any(1).expand(len(some))
            if bool(moved.any()):
                return some[int(moved.nonzero()[0])]
    return None


@contextmanager
def heeding(model: PreTrainedModel, names: Sequence[str]) -> Iterator[None]:
    """Have these modules, as `counting_modules` found them, go by the `position_ids` of passes that are given any."""
    modules = {name: model.get_submodule(name) for name in names}
    if not modules or any(hasattr(vars(module).get("forward"), HEEDS) for module in modules.values()):
        yield
        return
    tables = _Tables(model, names)
    forwards = {module: tables.instead(name, module) for name, module in modules.items()}
    with ExitStack() as stack:
        for module in dict.fromkeys((model, decoder_of(model))):
            stack.callback(module.register_forward_pre_hook(tables.begin, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(tables.end, always_call=True).remove)
        stack.enter_context(running_instead(forwards))
        yield


class _Tables:
    """How modules are called for the first positions, and the positions of the pass that is running."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        self.model, self.names = model, names
        self.length = 0
        self.calls: dict[str, Call] = {}
        self.positions: Tensor | None = None

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Of the model, or of its decoder, which may be called without it."""
        positions = kwargs.get("position_ids")
        last = -1 if positions is None or not positions.numel() else int(positions.max())
        if last >= self.length:
            self._lengthen(last + 1)
        if positions is not None or module is self.model:
            self.positions = positions

    def end(self, *_: Any) -> None:
        self.positions = None

    @torch.no_grad()
    def _lengthen(self, length: int) -> None:
        made = _in_front(self.model, [ordinary_tokens(self.model)[:1] * length])
        self.length, self.calls = length, {name: made[name].call for name in self.names}

    def instead(self, name: str, module: nn.Module) -> Callable[..., Tensor]:
        forward = module.forward

        def heed(*args: Any, **kwargs: Any) -> Tensor:
            if self.positions is None:
                return forward(*args, **kwargs)
            call = self.calls[name]
            table = forward(*call.args, **call.kwargs)
            return table.flatten(0, -2)[self.positions.to(table.device)]

        setattr(heed, HEEDS, True)
        return heed


def _in_front(model: PreTrainedModel, ids: list[list[int]], **more: Any) -> dict[str, Made]:
    """What modules in front of the layers make of a pass, which ends at the first layer."""
    prefix, layers = decoder_layers(model)
    made: dict[str, Made] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim > 1:
                made[name] = Made(Call(args, kwargs), output)

        return hook

    def stop(*_: Any) -> None:
        raise Enough

    with ExitStack() as stack:
        stack.callback(layers[0].register_forward_pre_hook(stop, prepend=True).remove)
        for name, module in model.named_modules():
            if not f"{name}.".startswith(f"{prefix}."):
                stack.callback(module.register_forward_hook(keep(name), with_kwargs=True).remove)
        with suppress(Enough):
            model(input_ids=torch.tensor(ids, device=input_device(model)), use_cache=False, **more)
    return made


def _rows(made: Made) -> Tensor:
    """(rows, tokens, D), a single row where it is the same for all."""
    return made.output.reshape(-1, *made.output.shape[-2:])
