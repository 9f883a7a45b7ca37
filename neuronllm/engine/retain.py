"""How far an edit moves what a model says next in texts it is to leave alone, and the gradient of that at the factors.

The distance at a token is KL(unedited || edited) over the vocabulary; a text's is the mean over its edited tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.anatomy import Anatomy
from ..model.edit import edit
from .base import FactorGradients
from .borrowed import input_device
from .full import padded
from .head import wide
from .turning import turning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUMBERS = 2**25  # logits of a pass, at most, unless one text alone has more
LONGEST = 128  # tokens of a text; what follows is cut off


@dataclass(frozen=True)
class Text:
    """Token ids, and the first of them that an edit reaches."""

    tokens: list[int]
    start: int = 0

    @classmethod
    def cut(cls, tokens: list[int], number: int) -> Text:
        """Edited from some token on, behind the first one, which `number` seeds: as an answer is behind its prompt."""
        generator = torch.Generator().manual_seed(number)
        return cls(tokens, int(torch.randint(1, len(tokens), (1,), generator=generator)))


def divergences(
    model: PreTrainedModel, anatomy: Anatomy, texts: Sequence[Text], ids: Tensor, factors: Tensor
) -> FactorGradients:
    """The distance of every text under the factors, and its gradient at them; on a borrowed model."""
    parts = [_divergences(model, anatomy, part, ids, factors) for part in _passes(model, texts)]
    return FactorGradients(*(torch.cat(found) for found in zip(*parts, strict=True)))


@torch.no_grad()
def text_logprobs(
    model: PreTrainedModel,
    anatomy: Anatomy,
    texts: Sequence[Text],
    ids: Tensor | None = None,
    factors: Tensor | None = None,
) -> Tensor:
    """(texts,): the mean log-probability of each text's edited tokens, with or without an edit."""
    found = []
    for part in _passes(model, texts):
        inputs, where = _inputs(model, part)
        if ids is None:
            logp = _logprobs(model, inputs)
        else:
            with edit(model, ids, factors, positions=where, anatomy=anatomy):
                logp = _logprobs(model, inputs)
        following = inputs["input_ids"][:, 1:].to(logp.device)
        own = logp[:, :-1].gather(-1, following[..., None])[..., 0]
        read = where[:, :-1] & where[:, 1:]
        found.append(_mean(own.cpu(), read))
    return torch.cat(found)


def _divergences(
    model: PreTrainedModel, anatomy: Anatomy, texts: Sequence[Text], ids: Tensor, factors: Tensor
) -> FactorGradients:
    inputs, where = _inputs(model, texts)
    grads = torch.zeros(len(texts), len(ids), dtype=torch.promote_types(model.dtype, torch.float32))

    def keep(places: Tensor, products: Tensor) -> None:
        grads[:, places] = products.sum(1).to(grads)

    with torch.no_grad():
        before = _logprobs(model, inputs)
    with turning(model, anatomy, ids, factors, keep, where) as anchor:
        after = _logprobs(model, inputs)
        far = (before.exp() * (before - after)).sum(-1)
        values = _mean(far, where.to(far.device))
        torch.autograd.grad(values.sum(), anchor)
    return FactorGradients(values.detach().cpu().to(grads), grads)


def _logprobs(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return wide(model(**inputs, use_cache=False).logits).log_softmax(-1)


def _inputs(model: PreTrainedModel, texts: Sequence[Text]) -> tuple[dict[str, Tensor], Tensor]:
    """What the model takes, padded on the right, and the mask of the edited tokens."""
    ids, mask, last = padded([text.tokens for text in texts])
    columns, starts = torch.arange(ids.shape[1]), torch.tensor([text.start for text in texts])
    inputs = {"input_ids": ids} | ({} if mask is None else {"attention_mask": mask})
    on_device = {name: tensor.to(input_device(model)) for name, tensor in inputs.items()}
    return on_device, (columns >= starts[:, None]) & (columns <= last[:, None])


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """(texts, tokens) -> (texts,): over the tokens in the mask."""
    return torch.where(where, values, 0).sum(-1) / where.sum(-1).clamp(min=1)


def _passes(model: PreTrainedModel, texts: Sequence[Text]) -> list[Sequence[Text]]:
    """Neighbours together, as many as a pass takes."""
    vocabulary = next(model.get_input_embeddings().parameters()).shape[0]
    parts: list[list[Text]] = []
    for text in texts:
        longest = max([len(text.tokens), *(len(other.tokens) for other in (parts[-1] if parts else ()))])
        if not parts or longest * (len(parts[-1]) + 1) * vocabulary > NUMBERS:
            parts.append([])
        parts[-1].append(text)
    return list(parts)
