"""Which tokens neurons promote: what they write, through the norms behind it and the head, as a plain product.

The value of token t for a neuron with output vector v (its column of the down projection) is

    W_U[t] . (g * C(g_block * C_block(v)))

g is the weight of the model's final norm, g_block that of a norm between the block's FFN and the residual stream, where
a family has one, and C takes the mean over the vector away, where the norm does (LayerNorm). It is what h = 1 adds to
the logit but for what depends on the token at hand or is the same for all neurons: nothing is divided by a norm of the
residual stream or of the FFN's output; biases, factors of all logits or of all blocks, gates and routing weights are
left out, and so is the soft cap, which at 0 changes nothing.

No norm is looked up by its name. Two probes, and the same with the other sign, take the place of what the FFNs put out
and of what the last layer puts out. Half of the difference is free of biases, and shows whether the model's own code
divides by a norm, takes the mean away, and by which weights it multiplies. The second probe checks what the first said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError
from ..model.discovery import decoder_layers
from ..model.experts import computable
from ..model.outputs import output_vectors
from ..model.sites import Site
from ..model.wrapped import unreadable, written
from ..select import End, RowExtremes, extremes_rows
from .borrowed import borrowed, input_device, quietly
from .head import wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..model.anatomy import Anatomy

HEIGHT = 1024.0  # of the probes: an eps in a norm, and what else a block adds, are small beside it
NEAR = 0.02  # relative; what bfloat16 rounds is a tenth of it
VALUES = 2**26  # products of neurons and tokens that stand in memory, at most
WEIGHTS = 2**24  # of the head in float32 at a time
END = "the head"


class Passage(NamedTuple):
    """What stands behind a vector, but for what it is divided by."""

    weight: Tensor  # (D,), or a single 1
    centred: bool = False
    divides: bool = False  # by the size of the vector, as a norm does

    def __call__(self, vectors: Tensor) -> Tensor:
        vectors = vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors
        return vectors * self.weight.to(vectors)


@torch.no_grad()
def promoted(
    model: PreTrainedModel, anatomy: Anatomy, ids: Tensor, k: int, vocabulary: int | None = None
) -> RowExtremes:
    """The k tokens that each neuron promotes most, and those it suppresses most, of the first `vocabulary` ids.

    >>> model, _ = nl.load_model("demo")
    >>> promoted(model, nl.Anatomy.of(model), torch.tensor([3]), k=2).largest.indices.shape
    torch.Size([1, 2])
    """
    head: Any = model.get_output_embeddings()
    if head is None:
        raise InputError(f"model: {type(model).__name__} has no head that makes logits, so no tokens are promoted")
    if why := unreadable(head):
        raise InputError(f"model: which tokens neurons promote cannot be told: of its head {why}")
    vectors = final_vectors(model, anatomy, ids)
    unembedding = written(head, False)[:, :vocabulary]  # (D, tokens)
    found = [
        extremes_rows(_products(some, unembedding), largest=k, smallest=k)
        for some in vectors.split(max(1, VALUES // unembedding.shape[1]))
    ]
    largest, smallest = _joined([part.largest for part in found]), _joined([part.smallest for part in found])
    counts = [torch.cat(parts).cpu() for parts in zip(*((part.n_nan, part.n_valid) for part in found), strict=True)]
    return RowExtremes(largest, smallest, *counts)


def _joined(ends: Sequence[End]) -> End:
    return End(*(torch.cat(parts).cpu() for parts in zip(*ends, strict=True)))


def _products(vectors: Tensor, unembedding: Tensor) -> Tensor:
    """(neurons, tokens) in the type of the vectors; of a head in 16 bits a part at a time is widened."""
    vectors = vectors.to(unembedding.device)
    parts = unembedding.split(max(1, WEIGHTS // len(unembedding)), 1)
    return torch.cat([vectors @ part.to(vectors) for part in parts], 1)


@torch.no_grad()
def final_vectors(model: PreTrainedModel, anatomy: Anatomy, ids: Tensor) -> Tensor:
    """(neurons, D): the output vectors of neurons behind all norms, as they meet the head, in float32 or better."""
    where = anatomy.site_of(ids)
    numbers = where.unique().tolist()
    behind, last = passages(model, [anatomy.sites[n] for n in numbers])
    parts, places = [], []
    for n in numbers:
        here = (where == n).nonzero()[:, 0]
        vectors = wide(output_vectors(model, anatomy.sites[n], ids[here] - anatomy.offsets[n]))
        parts.append(last(behind[anatomy.sites[n].down](vectors)).cpu())
        places.append(here)
    return torch.cat(parts)[torch.cat(places).argsort()]


def passages(model: PreTrainedModel, sites: Sequence[Site]) -> tuple[dict[str, Passage], Passage]:
    """What each site's output goes through up to the residual stream, and the residual stream up to the head."""
    probes = _probes(model)
    out = _heard(model, sites, torch.cat([probes, -probes]))
    behind = {}
    for site in sites:
        if getattr(model.get_submodule(site.down), "has_post_expert_norm", False):
            raise InputError(f"{site.down}: every expert has a norm of its own behind it, which is not known here")
        found = _passage(probes, out[site.down])
        if found is None:
            raise InputError(
                f"{site.down}: what its layer makes of what neurons write is neither a sum nor a norm, so which tokens "
                "they promote cannot be told: ask for none, tokens=0"
            )
        # One factor for the whole block is a gate or a multiplier, and says nothing about a neuron.
        plain = not found.divides and _near(found.weight, found.weight.mean().expand_as(found.weight))
        behind[site.down] = Passage(torch.ones(1)) if plain else found
    if (last := _passage(probes, out[END])) is None:
        raise InputError(
            f"model: what stands between the last layer and the head of {type(model).__name__} is not a norm, so which "
            "tokens neurons promote cannot be told: ask for none, tokens=0"
        )
    return behind, last


def _probes(model: PreTrainedModel) -> Tensor:
    """Signs that give a norm's weights as they are; and random numbers of another size, with a mean."""
    size = next(model.get_input_embeddings().parameters()).shape[1]
    size = getattr(model.config.get_text_config(), "hidden_size", size)
    signs = 1.0 - 2.0 * (torch.arange(size) % 2)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return HEIGHT * torch.stack([signs.double(), 0.5 + 1.5 * noise])


def _heard(model: PreTrainedModel, sites: Sequence[Site], signed: Tensor) -> dict[str, Tensor]:
    """What the signed probes have become behind the layer of each site, and at the head; one pass of single tokens.

    The sites of one layer have rows of their own, in which the others put out nothing. Layers are given zeros, so that
    what they add besides is small.
    """
    out: dict[str, Tensor] = {}
    blocks: dict[str, list[Site]] = {}
    for site in sites:
        blocks.setdefault(site.block, []).append(site)
    rows = len(signed) * max(map(len, blocks.values()))
    own = [slice(start, start + len(signed)) for start in range(0, rows, len(signed))]

    def given(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (torch.zeros_like(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": torch.zeros_like(kwargs["hidden_states"])}

    def put(where: slice) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, (list, tuple)) else output
            placed = torch.zeros_like(first).reshape(rows, -1)
            placed[where] = signed.to(placed)
            placed = placed.reshape(first.shape)
            return (placed, *output[1:]) if isinstance(output, (list, tuple)) else placed

        return hook

    def keep(here: Sequence[Site]) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (list, tuple)) else output
            out.update({site.down: first.reshape(rows, -1)[where] for site, where in zip(here, own, strict=False)})

        return hook

    def end(module: Any, args: Any) -> None:
        out[END] = args[0].reshape(rows, -1)[own[0]]

    with ExitStack() as stack:
        stack.enter_context(borrowed(model, attention=None))
        stack.enter_context(computable(model))
        stack.enter_context(quietly())
        for block, here in blocks.items():
            layer = model.get_submodule(block)
            hooks = [layer.register_forward_pre_hook(given, with_kwargs=True), layer.register_forward_hook(keep(here))]
            hooks += [
                model.get_submodule(site.down).register_forward_hook(put(where))
                for site, where in zip(here, own, strict=False)
            ]
            for handle in hooks:
                stack.callback(handle.remove)
        stack.callback(decoder_layers(model)[1][-1].register_forward_hook(put(own[0])).remove)
        stack.callback(model.get_output_embeddings().register_forward_pre_hook(end).remove)
        model(input_ids=torch.zeros(rows, 1, dtype=torch.int64, device=input_device(model)), use_cache=False)
    return out


def _passage(probes: Tensor, out: Tensor) -> Passage | None:
    """What made `out` of the signed probes, weights or a norm with or without the mean; None where neither fits."""
    out = out.to("cpu", torch.float64)
    odd = (out[:2] - out[2:]) / 2
    if odd.shape != probes.shape:
        return None
    for centred, divides in ((False, False), (False, True), (True, True)):
        x = probes - probes.mean(-1, keepdim=True) if centred else probes
        plain = odd * x.square().mean(-1, keepdim=True).sqrt() if divides else odd
        weight = plain[0] / x[0]
        if _near(weight * x[1], plain[1]):
            return Passage(weight, centred, divides)
    return None


def _near(found: Tensor, truth: Tensor) -> bool:
    return bool(truth.norm() > 0) and bool((found - truth).norm() <= NEAR * truth.norm())
