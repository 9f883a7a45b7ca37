"""What are these neurons? The tokens that they promote, and the places in texts where they are most active."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common.checks import integer, short
from ..common.errors import InputError
from ..data.encoding import backend_kept, token_texts
from ..data.forms import form_of, found_template, wording_of
from ..data.prompt_sets import encoded, word_prompts
from ..data.prompts import Prompt
from ..data.questions import Question
from ..data.rendering import as_prompts
from ..engine.asking import check_batch_size
from ..engine.promoted import promoted
from ..engine.spans import NONE, Activity, activity
from ..model.anatomy import Anatomy
from ..model.bridged import plain_model
from ..model.identity import identity
from ..results.description import Description
from ..results.factors import ROLES
from ..results.neurons import NeuronSet
from ..results.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Card = dict[str, Any]


@torch.inference_mode(False)
def describe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    neurons: NeuronSet | Any,
    texts: Sequence[Any] | None = None,
    *,
    tokens: int = 10,
    spans: int = 5,
    window: int = 12,
    template: str | list[str] | None = None,
    chat: bool = False,
    batch_size: int | str = "auto",
    progress: bool = True,
) -> Description:
    """Where neurons lie, which tokens each promotes and suppresses, and where in texts it is most active.

    neurons: a neuron set, or flat ids, which `nl.Anatomy.of(model).flat` makes of addresses. texts: questions, in
    `template` or the words the set was found with, each in the order of its choices; prompts; or texts, chats, and what
    else `nl.contrast` takes, with `chat` in the chat template. Without any, no activations are read.

    tokens: how many at each end, 0 for none. A neuron's value for a token is the plain product of what h = 1 writes
    with the token's row of the head, through the weights of the norms in between, without what those divide by and
    without biases (`neuronllm/engine/promoted.py` says it in full): values compare tokens, and neurons of one layer.
    A neuron whose h is below 0 suppresses what is called promoted.

    spans: how many texts, those in which h is largest in size at some token, with `window` tokens on either side. One
    place a text; where texts begin alike, the beginning counts as the first one's.

    >>> description = nl.describe(model, tokenizer, neurons, questions)   # doctest: +SKIP
    >>> description.save("neurons.json")                                  # doctest: +SKIP
    """
    for name, number in (("tokens", tokens), ("spans", spans), ("window", window)):
        if (integer(number) if not isinstance(number, bool) else None) is None or number < 0:
            raise InputError(f"{name}={number!r}: give a whole number, 0 or more")
    check_batch_size(batch_size)
    model = plain_model(model)
    anatomy = Anatomy.of(model)
    ids = _ids(neurons, model, anatomy)
    prompts = None if texts is None else _prompts(tokenizer, texts, neurons, template, chat)
    cards = _bare_cards(neurons, anatomy, ids)
    if tokens:
        _add_tokens(cards, model, tokenizer, anatomy, ids, tokens)
    if prompts is not None:
        found = activity(model, anatomy, ids, prompts, spans, window, batch_size, progress)
        _add_spans(cards, found, tokenizer, prompts)
    return Description(
        cards=cards,
        layers=_layers(cards, anatomy),
        model=identity(model),
        texts={"count": len(prompts or ()), "tokens": sum(len(prompt.input_ids) for prompt in prompts or ())},
        settings={"tokens": tokens, "spans": spans, "window": window, "template": template, "chat": chat},
    )


def _ids(neurons: NeuronSet | Any, model: PreTrainedModel, anatomy: Anatomy) -> Tensor:
    if isinstance(neurons, NeuronSet):
        neurons.check_model(model)
        ids = anatomy.checked(neurons.ids)
    elif isinstance(neurons, Scores):
        raise InputError("neurons: these are scores of all neurons, choose some of them: scores.find(good=20, bad=20)")
    else:
        ids = anatomy.checked(_listed(neurons))
    if not len(ids):
        raise InputError("neurons: there is none in it, so there is nothing to describe")
    return ids


def _listed(ids: Any) -> Tensor:
    """A list of whole numbers as a tensor; pairs and triples would be read as ids one by one."""
    try:
        given = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError):
        given = None
    if given is None or given.ndim != 1 or (len(given) and (given.is_floating_point() or given.dtype == torch.bool)):
        raise InputError(
            f"neurons={' '.join(short(ids).split())}: give a neuron set or a list of flat ids; those of addresses are "
            "nl.Anatomy.of(model).flat(layers, experts, indices), with expert -1 in a dense block"
        )
    return given


def _prompts(
    tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[Any], neurons: Any, template: Any, chat: bool
) -> list[Prompt]:
    """Everything that is read, named by the question's id or by its place."""
    if isinstance(texts, Sequence) and any(isinstance(text, (Question, Prompt)) for text in texts):
        found = neurons.provenance if isinstance(neurons, NeuronSet) else {}
        form = form_of(texts, found=found)
        wording = wording_of(form.answers, template, found_template(found, form.answers))
        prompts = as_prompts(tokenizer, texts, "none", wording, **form.rendered)
        ids, names = [prompt.input_ids for prompt in prompts], [prompt.question_id for prompt in prompts]
    else:
        ids = [one.ids for one in encoded(tokenizer, word_prompts(tokenizer, texts, "texts", chat), "texts")]
        names = [""] * len(ids)
    # Nobody reads the option.
    return [Prompt(one, [[[one[-1]]]], 0, question_id=names[n] or f"texts[{n}]") for n, one in enumerate(ids)]


def _bare_cards(neurons: NeuronSet | Any, anatomy: Anatomy, ids: Tensor) -> list[Card]:
    """Who each neuron is; what is found out about it later stands there as unknown."""
    columns = zip(*(part.tolist() for part in (*anatomy.locate(ids), ids)), strict=True)
    cards = [dict(zip(("layer", "expert", "index", "id"), place, strict=True)) for place in columns]
    for n, card in enumerate(cards):
        card |= {"task": None, "role": None, "score": None, "interval": None, "exact": None, "factor": None}
        card |= {"promoted": [], "suppressed": [], "spans": [], "positive": None, "read": 0, "also": []}
        if isinstance(neurons, NeuronSet):
            factor = None if neurons.factor is None else _number(neurons.factor[n])
            card |= {"role": str(neurons.role[n]), "score": _number(neurons.score[n]), "factor": factor}
    return cards


def _add_tokens(
    cards: list[Card],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    anatomy: Anatomy,
    ids: Tensor,
    k: int,
) -> None:
    found = promoted(model, anatomy, ids, k, None if tokenizer is None else len(tokenizer))
    ends = {"promoted": found.largest, "suppressed": found.smallest}
    named = _named(tokenizer, torch.cat([end.indices.flatten() for end in ends.values()]).unique().tolist())
    for name, end in ends.items():
        for card, values, indices in zip(cards, end.values.tolist(), end.indices.tolist(), strict=True):
            pairs = zip(indices, values, strict=True)
            card[name] = [{"token": named[token], "id": token, "value": value} for token, value in pairs]


def _named(tokenizer: PreTrainedTokenizerBase | None, tokens: list[int]) -> dict[int, str]:
    """Each token as it stands behind another one, with its space; without a tokenizer by its id."""
    if tokenizer is None:
        return {token: f"<{token}>" for token in tokens}
    with backend_kept(tokenizer):
        first = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    return {token: token_texts(tokenizer, [*first, token])[-1] for token in tokens}


def _add_spans(
    cards: list[Card], found: Activity, tokenizer: PreTrainedTokenizerBase | None, prompts: list[Prompt]
) -> None:
    spans, window = found.spans, found.spans.around.shape[-1] // 2
    for n, card in enumerate(cards):
        read, positive = int(found.read[n]), int(found.positive[n])
        card["read"], card["positive"] = read, positive / read if read else None
        for text, place, around in zip(spans.text[n].tolist(), spans.place[n].tolist(), spans.around[n], strict=True):
            if text != NONE:
                card["spans"].append(_span(tokenizer, prompts[text], place, around, window))


def _span(tokenizer: Any, prompt: Prompt, place: int, around: Tensor, window: int) -> dict[str, Any]:
    """The tokens around a place; those that were not sent to the neuron's expert have no activation."""
    start, end = max(0, place - window), min(len(prompt.input_ids), place + window + 1)
    ids = prompt.input_ids[start:end]
    if tokenizer is None:
        texts = [f"<{token}>" for token in ids]
    else:  # a token in front keeps the space of the first one
        front = prompt.input_ids[max(0, start - 1) : start]
        texts = token_texts(tokenizer, [*front, *ids])[len(front) :]
    held = around[start - place + window : end - place + window]
    pairs = zip(texts, map(_number, held), strict=True)
    return {
        "question": prompt.question_id,
        "tokens": [{"text": text, "activation": value} for text, value in pairs],
        "peak": place - start,
        "activation": _number(around[window]),
    }


def _layers(cards: list[Card], anatomy: Anatomy) -> list[dict[str, int]]:
    """How many of the neurons lie in each layer of the model, in all and by role."""
    roles = {role: Counter(card["layer"] for card in cards if card["role"] == role) for role in ROLES}
    every = Counter(card["layer"] for card in cards)
    layers = sorted({site.layer for site in anatomy.sites})
    return [{"layer": n, "neurons": every[n]} | {role: count[n] for role, count in roles.items()} for n in layers]


def _number(value: Tensor) -> float | None:
    """For JSON, which has no NaN."""
    return None if bool(value.isnan()) else float(value)
