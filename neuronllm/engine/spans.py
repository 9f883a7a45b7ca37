"""Where in texts neurons are most active: one pass over the texts for all neurons, a few places of each are kept.

A neuron's place in a text is the token at which its h is largest in size. The texts with the largest sizes are kept,
with what it holds at the tokens around. A beginning that several texts share is read in the first of them: attention
is causal, so it holds the same in all. A routed neuron is there only at tokens that were sent to its expert, and where
h is 0 no neuron is active. Of equals the first text, and in a text the first token, is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..model.experts import computable
from ..model.hooks import visiting
from ..model.sites import Site
from ..select import extremes_rows
from .asking import check_batch_size
from .batching import CUDA_TOKENS, TOKENS, Plan, backing_off
from .borrowed import answer_logits, borrowed, check_prompts, may_pad
from .full import padded
from .head import wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt
    from ..model.anatomy import Anatomy

NUMBERS = 2**26  # of neurons x tokens that stand in memory, at most
NONE = -1  # in the place of a text's number


class Spans(NamedTuple):
    """Places at which neurons are active, a row a neuron."""

    text: Tensor  # (neurons, k): number of the text, -1 where there are fewer than k
    place: Tensor  # (neurons, k): of the token in it
    size: Tensor  # (neurons, k): of h there
    around: Tensor  # (neurons, k, 2 window + 1): h; NaN where no token is, or one that was not sent to the expert

    def best(self, k: int) -> Spans:
        """The k with the largest sizes, best first."""
        known = self.text.masked_fill(self.text == NONE, torch.iinfo(torch.int64).max)
        ordered = self._columns(
            known.argsort(dim=1, stable=True)
        )  # batches come in any order, and equals go by the text
        chosen = extremes_rows(ordered.size, largest=k).largest.indices
        found = ordered._columns(chosen.clamp(min=0))
        nothing = chosen < 0
        return found._replace(
            text=found.text.masked_fill(nothing, NONE), size=found.size.masked_fill(nothing, float("nan"))
        )

    def _columns(self, index: Tensor) -> Spans:
        text, place, size = (part.gather(1, index) for part in (self.text, self.place, self.size))
        around = index[..., None].expand(*index.shape, self.around.shape[-1])
        return Spans(text, place, size, self.around.gather(1, around))


class Activity(NamedTuple):
    """What neurons did in texts."""

    spans: Spans
    read: Tensor  # (neurons,): at how many tokens the neuron was there
    positive: Tensor  # (neurons,): at how many of them its h was above 0

    def joined(self, other: Activity, k: int) -> Activity:
        both = Spans(*(torch.cat(parts, 1) for parts in zip(self.spans, other.spans, strict=True)))
        return Activity(both.best(k), self.read + other.read, self.positive + other.positive)


@torch.no_grad()
def activity(
    model: PreTrainedModel,
    anatomy: Anatomy,
    ids: Tensor,
    texts: Sequence[Prompt],
    k: int,
    window: int,
    batch_size: int | str = "auto",
    progress: bool = False,
) -> Activity:
    """What neurons hold in texts: the k most active places of each, with `window` tokens on either side.

    >>> activity(model, anatomy, neurons.ids, prompts, k=5, window=12).spans.text   # doctest: +SKIP
    """
    check_batch_size(batch_size)
    check_prompts(model, texts)
    tokens = [text.input_ids for text in texts]
    shared = shared_tokens(tokens)
    found: Activity | None = None

    def read(places: list[int]) -> Any:  # `backing_off` hands on whatever a batch gives
        held = _held(model, anatomy, ids, [tokens[n] for n in places])
        return _read(held, places, [len(tokens[n]) for n in places], [shared[n] for n in places], window)

    with (
        borrowed(model, attention=None),
        computable(model),
        tqdm(total=len(texts), desc="reading texts", disable=not progress, unit="text") as bar,
    ):
        for batches, plan in _plans(model, [len(text) for text in tokens], len(ids), batch_size):
            for places, part in backing_off(batches, read, plan, 0):
                assert isinstance(part, Activity)
                found = part._replace(spans=part.spans.best(k)) if found is None else found.joined(part, k)
                bar.update(len(places))
    assert found is not None  # there is a text
    return found


def shared_tokens(texts: Sequence[Sequence[int]]) -> list[int]:
    """How many first tokens of each text begin an earlier one, too.

    >>> shared_tokens([[5, 6, 7], [5, 6, 8, 9], [5, 6, 8], [6]])
    [0, 2, 3, 0]
    """
    nodes: dict[tuple[int, int], int] = {}  # a tree of all beginnings: (node, token) -> node
    found = []
    for text in texts:
        node = shared = 0
        for token in text:
            before = len(nodes)
            node = nodes.setdefault((node, token), before + 1)
            shared += len(nodes) == before
        found.append(shared)
    return found


def _plans(
    model: PreTrainedModel, lengths: Sequence[int], neurons: int, batch_size: int | str
) -> Iterator[tuple[list[list[int]], Plan]]:
    """Batches of texts of like length, and of the same one where padding would show."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = [order] if may_pad(model) else [list(g) for _, g in groupby(order, key=lengths.__getitem__)]
    tokens = min(CUDA_TOKENS if model.device.type == "cuda" else TOKENS, NUMBERS // neurons)
    for group in groups:
        batches: list[list[int]] = [[]]
        for n in group:
            most = batch_size if isinstance(batch_size, int) else tokens // lengths[n]
            if batches[-1] and len(batches[-1]) >= most:
                batches.append([])
            batches[-1].append(n)
        largest = max(len(batch) for batch in batches)
        yield batches, Plan(prompts=largest, answer_tokens=largest, window=largest)


def _held(model: PreTrainedModel, anatomy: Anatomy, ids: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
    """(neurons, texts, tokens): h, and NaN where a token was not sent to the expert."""
    tokens, mask, last = padded(texts)
    where = anatomy.site_of(ids)
    of_site = {anatomy.sites[n].down: (n, (where == n).nonzero()[:, 0]) for n in where.unique().tolist()}
    dtype = torch.promote_types(model.dtype, torch.float32)
    held = torch.empty(len(ids), *tokens.shape, dtype=dtype)

    def look(site: Site, h: Tensor, routes: Tensor | None) -> None:
        number, here = of_site[site.down]
        held[here] = _of_neurons(site, h, routes, ids[here] - anatomy.offsets[number]).movedim(-1, 0).to("cpu", dtype)

    with visiting(model, [anatomy.sites[number] for number, _ in of_site.values()], look):
        answer_logits(model, tokens, mask, last)
    return held


def _of_neurons(site: Site, h: Tensor, routes: Tensor | None, within: Tensor) -> Tensor:
    """(texts, tokens, neurons), of neurons that are counted within the site."""
    within = within.to(h.device)
    if routes is None:
        return h[..., within]
    at_expert = routes.to(h.device)[..., None] == within // site.width  # (texts, tokens, K, neurons)
    slot = at_expert.int().argmax(2, keepdim=True)
    values = wide(h)[..., within % site.width].gather(2, slot)[:, :, 0]
    return values.masked_fill(~at_expert.any(2), float("nan"))


def _read(held: Tensor, numbers: list[int], lengths: list[int], shared: list[int], window: int) -> Activity:
    """The most active place of each neuron in each of the texts, and how often it was there and above 0."""
    neurons, texts, width = held.shape
    columns = torch.arange(width)
    real = columns < torch.tensor(lengths)[:, None]
    held = held.masked_fill(~real, float("nan"))
    there = ~held.isnan() & (columns >= torch.tensor(shared)[:, None])  # and not read before
    size = held.abs().masked_fill(~there | (held == 0), -1)
    place = size.argmax(-1)  # the first of equals
    size = size.gather(-1, place[..., None])[..., 0]

    around = place[..., None] + torch.arange(-window, window + 1)
    outside = (around < 0) | (around >= width)
    values = held.gather(-1, around.clamp(0, width - 1)).masked_fill(outside, float("nan"))
    active = size > 0
    text = torch.tensor(numbers).expand(neurons, texts).masked_fill(~active, NONE)
    spans = Spans(text, place, size.masked_fill(~active, float("nan")), values)
    return Activity(spans, there.sum((1, 2)), (there & (held > 0)).sum((1, 2)))
