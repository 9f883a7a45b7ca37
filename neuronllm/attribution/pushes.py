"""Which option does a neuron push? The effect of every neuron on the score of every option, to first order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.checks import floating
from ..data.forms import check_unworded, form_of, wording_of
from ..data.prompts import Prompt, Questions, group_by_question
from ..data.rendering import as_prompts
from ..engine import open_engine
from ..engine.asking import check_batch_size
from ..engine.borrowed import check_prompts
from ..engine.unconditional import with_offsets
from ..model.anatomy import Anatomy
from ..model.bridged import plain_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode(False)
def pushes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Questions,
    ids: Any = None,
    *,
    orders: str | None = None,
    template: str | list[str] | None = None,
    answers: str | None = None,
    length: str | None = None,
    batch_size: int | str = "auto",
    backend: str = "fast",
    dtype: torch.dtype | str | None = None,
    progress: bool = True,
) -> Tensor:
    """(questions, choices, neurons): h times the gradient of every choice's score, the mean over a question's variants.

    + lifts the choice, - lowers it; choices are in the order in which a question gives them, and 0 where there are
    fewer. `ids` chooses neurons (such as `neurons.ids`), None takes all of them. The gradients of all options of a
    prompt come from one backward pass. answers, length: in letters or in texts, as in `nl.attribute`; orders: every
    rotation by default, and of texts one order where their wording does not show the options.

    >>> found = pushes(model, tokenizer, questions, neurons.ids)   # doctest: +SKIP
    >>> found[0].argmax(0)   # the choice that each neuron lifts most in the first question   # doctest: +SKIP
    """
    check_batch_size(batch_size)
    dtype = floating("dtype", dtype)
    model = plain_model(model)
    anatomy = Anatomy.of(model)
    form = form_of(questions, answers, length)
    check_unworded(questions, template, orders)
    prompts = as_prompts(tokenizer, questions, orders, wording_of(form.answers, template), **form.rendered)
    prompts = with_offsets(model, tokenizer, questions, prompts, form, batch_size)
    check_prompts(model, prompts)
    chosen = torch.arange(anatomy.n_neurons) if ids is None else anatomy.checked(ids)
    most = max(len(p.option_ids) for p in prompts)
    found: list[Tensor] = []
    waiting = group_by_question(prompts)
    with (
        open_engine(model, anatomy, prompts, backend, dtype=dtype, batch_size=batch_size) as engine,
        tqdm(total=len(waiting), desc="pushes", disable=not progress, unit="question") as bar,
    ):
        while waiting:
            now, waiting = waiting[: engine.at_once], waiting[engine.at_once :]
            shown = engine.option_gradients([prompt for group in now for prompt in group])[..., chosen]
            for group, rows in zip(now, shown.split([len(group) for group in now]), strict=True):
                by_choice = [_by_choice(row, p, most) for row, p in zip(rows, group, strict=True)]
                found.append(torch.stack(by_choice).mean(0).float())
            bar.update(len(now))
    return torch.stack(found)


def _by_choice(shown: Tensor, prompt: Prompt, most: int) -> Tensor:
    """Rows of a prompt's options in the order in which the question gives the choices."""
    order = list(prompt.order) or list(range(len(prompt.option_ids)))
    out = shown.new_zeros(most, shown.shape[1])
    out[torch.tensor(order)] = shown[: len(order)]
    return out
