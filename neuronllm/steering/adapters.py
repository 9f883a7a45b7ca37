"""A neuron set as an adapter of PEFT: loaded on top of the model, it does at every token what the live edit does.

An IA3 on down projections multiplies what goes into them by one factor a channel, which is the edit itself. A LoRA adds
B A to the weight: with one row of A for every edited neuron i, 1 at i and 0 elsewhere, and (f - 1) times the neuron's
column of the weight in B, that is the edited weight. Servers that know no IA3 (vLLM, SGLang) take it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.files import check_new_folder, new_folder, write_json, write_tensors
from ..model.anatomy import Anatomy
from ..model.edit import factors_by_site
from ..model.identity import hub_id, identity
from ..model.sites import Site
from ..model.wrapped import own_model, unreadable, wrapped_around, written
from ..results.adapters import ADAPTER_CONFIG, ADAPTER_TENSORS, FACTORS, MARK, PREFIX
from ..results.cards import front_matter, model_id, steered_card
from ..results.factors import Steering, factors_of, steering_of
from ..results.neurons import NeuronSet
from .bake import check_positions, rounded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("ia3", "lora")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes


class Turned(NamedTuple):
    """A down projection some of whose neurons are edited."""

    site: Site
    factors: Tensor  # (width,), 1 where nothing is asked, in the type in which a live edit has them


def to_peft(
    model: PreTrainedModel,
    neurons: NeuronSet,
    folder: str | os.PathLike[str],
    kind: str = "ia3",
    good: float | None = None,
    bad: float | None = None,
    *,
    mode: str | None = None,
    positions: str | None = None,
    report: Any = None,
    overwrite: bool = False,
) -> None:
    """Write a neuron set as an adapter that `PeftModel.from_pretrained(model, folder)` loads.

    "ia3" gives the logits of the live edit at all positions to the bit, and to rounding once it is merged. "lora" gives
    them to rounding, for vLLM, SGLang and whatever else takes no IA3; it holds up to 512 neurons a layer. In a 16-bit
    model both hold the factors as a live edit there rounds them. `mode`, `good` and `bad` count as in `nl.bake`, and an
    adapter knows no answer position either: a set of it is refused unless positions="all" is given. The README.md says
    what the set is, and shows `report` (of `nl.evaluate`) as a table. `overwrite` replaces an earlier adapter.

    >>> nl.to_peft(model, neurons, "adapter", mode="enhance")   # doctest: +SKIP
    >>> steered = PeftModel.from_pretrained(model, "adapter")   # doctest: +SKIP
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: known kinds of adapters are {', '.join(KINDS)}")
    check_new_folder(folder, MARK, overwrite)
    check_positions(neurons, positions, "adapters")
    model = own_model(model)
    how = neurons.steering(mode, good, bad)
    turned = turned_sites(model, *neurons.edits(model, how))
    config, tensors = (_ia3 if kind == "ia3" else _lora)(model, turned)
    told = neurons.steered_by(how) | {"kind": kind, "positions": "all", "positions_of_the_set": neurons.positions}
    told |= {"for": identity(model), "provenance": neurons.provenance, "neurons": _kept(neurons, how)}
    card = _card(Path(folder).name, kind, neurons, told, report)
    with new_folder(folder, MARK) as temporary:
        write_json(temporary / MARK, told)
        write_json(temporary / ADAPTER_CONFIG, config | _of_model(model))
        write_tensors(temporary / ADAPTER_TENSORS, tensors)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def turned_sites(model: PreTrainedModel, ids: Tensor, factors: Tensor) -> list[Turned]:
    """The down projections that an edit reaches, after refusing those that nothing can be put in front of."""
    if not len(ids):
        raise InputError("neurons: no neuron is edited, so there is nothing to write")
    anatomy = Anatomy.of(model)
    rows = factors_by_site(anatomy, ids, factors)
    turned = []
    for site in anatomy.sites:
        if site.down not in rows:
            continue
        if site.experts:
            raise InputError(
                f"{site.down}: its experts are stacked in one tensor, which adapters and hooks do not reach: bake the "
                "set instead (nl.bake, neuronllm export --kind baked)"
            )
        if kind := wrapped_around(model, site.down):
            raise InputError(
                f"{site.down}: PEFT has wrapped it already ({kind}): merge that adapter first "
                "(model = model.merge_and_unload())"
            )
        turned.append(Turned(site, rounded(rows[site.down], _live_type(model, site), site.down)))
    return turned


def _live_type(model: Any, site: Site) -> torch.dtype:
    """The type of h, in which a live edit multiplies."""
    dtype: torch.dtype = getattr(getattr(model.get_submodule(site.down), "weight", None), "dtype", model.dtype)
    return dtype if dtype.is_floating_point and dtype.itemsize > 1 else model.dtype  # else the weight is packed


def _stored(x: Tensor) -> Tensor:
    """In float32 at least: nothing is rounded once more."""
    return x.detach().to("cpu", torch.promote_types(x.dtype, torch.float32))


# ---- the two kinds: what goes into adapter_config.json, and the tensors ----


def _ia3(model: PreTrainedModel, turned: Sequence[Turned]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    pattern = _pattern([site for site, _ in turned])
    config = {
        "peft_type": "IA3",
        "target_modules": pattern,
        "feedforward_modules": pattern,
        "fan_in_fan_out": turned[0].site.transposed,
        "init_ia3_weights": True,
    }
    return config, {f"{PREFIX}{site.down}{FACTORS}": _stored(factors)[None] for site, factors in turned}


def _lora(model: PreTrainedModel, turned: Sequence[Turned]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    rank = _rank(turned)
    tensors: dict[str, Tensor] = {}
    for site, factors in turned:
        down = model.get_submodule(site.down)
        if why := unreadable(down):
            raise InputError(f'{site.down}: {why}, and a LoRA is made of its columns: take kind="ia3" (--kind ia3)')
        ids = (factors != 1).nonzero()[:, 0]
        a = torch.zeros(rank, site.width, dtype=torch.promote_types(factors.dtype, torch.float32))
        a[torch.arange(len(ids)), ids] = 1
        columns = _stored(written(down, site.transposed, ids))  # (neurons, D)
        b = torch.zeros(columns.shape[1], rank, dtype=columns.dtype)
        b[:, : len(ids)] = ((_stored(factors[ids]) - 1)[:, None] * columns).T
        tensors |= {f"{PREFIX}{site.down}.lora_A.weight": a, f"{PREFIX}{site.down}.lora_B.weight": b}
    blocks = [site.block.split(".") for site, _ in turned]
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "target_modules": _names(model, [site for site, _ in turned]),
        "layers_to_transform": sorted({int(block[-1]) for block in blocks}),
        "layers_pattern": sorted({block[-2] for block in blocks}),
        "fan_in_fan_out": turned[0].site.transposed,
        "init_lora_weights": True,
    }
    return config, tensors


def _rank(turned: Sequence[Turned]) -> int:
    """One for all layers, of those that vLLM takes."""
    most, site = max(((int((factors != 1).sum()), site) for site, factors in turned), key=lambda found: found[0])
    if most > RANKS[-1]:
        raise InputError(
            f"{site.down}: {most} of its neurons are edited, and vLLM takes a LoRA of rank {RANKS[-1]} at most: bake "
            'the set (nl.bake, neuronllm export --kind baked), or take fewer neurons or, for PEFT alone, kind="ia3"'
        )
    return next(rank for rank in RANKS if rank >= most)


def _pattern(sites: Sequence[Site]) -> str:
    """The regular expression of these down projections and no other module."""
    layers: dict[tuple[str, str], list[str]] = {}
    for site in sites:
        stack, _, number = site.block.rpartition(".")
        layers.setdefault((stack, site.down[len(site.block) :]), []).append(number)
    parts = [
        rf"{re.escape(stack)}\.({'|'.join(numbers)}){re.escape(rest)}" for (stack, rest), numbers in layers.items()
    ]
    return "|".join(parts)


def _names(model: PreTrainedModel, sites: Sequence[Site]) -> list[str]:
    """The shortest names that these down projections end in and no other module of their blocks: servers want such."""
    others = {f"{site.block}.{name}" for site in sites for name, _ in model.get_submodule(site.block).named_modules()}
    others -= {site.down for site in sites}
    names = set()
    for site in sites:
        words = site.down.split(".")
        ends = (".".join(words[-count:]) for count in range(1, len(words) + 1))
        names.add(next(end for end in ends if not any(other.endswith(f".{end}") for other in others)))
    return sorted(names)


# ---- what stands beside ----


def _kept(neurons: NeuronSet, how: Steering) -> dict[str, Any]:
    """The set as `NeuronSet.from_peft` reads it back, steered by itself as the adapter steers."""
    own, tuned = neurons.factor, neurons.tuned
    by_itself = (own is not None or tuned is not None) and how == steering_of(None, None, None, own, tuned)
    if not by_itself or neurons.positions == "answer":
        own = factors_of(neurons.role, own, how)
    factor = None if own is None else [None if value != value else value for value in own.tolist()]
    rows = {"ids": neurons.ids.tolist(), "role": neurons.role.tolist(), "score": neurons.score.float().tolist()}
    return rows | {"factor": factor}


def _of_model(model: PreTrainedModel) -> dict[str, Any]:
    known = identity(model)
    return {
        "base_model_name_or_path": hub_id(known),  # PEFT takes no other name
        "revision": known["revision"],
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "modules_to_save": None,
    }


EXACT = {
    "ia3": "Loaded with PEFT it gives the logits of the live edit at every token to the bit; merged, to rounding. PEFT "
    "merges no IA3 into 4-bit or 8-bit weights, and takes none out again whose factors hold zeros.",
    "lora": "Loaded with PEFT, vLLM or SGLang it gives the logits of the live edit at every token to rounding.",
}


def _card(name: str, kind: str, neurons: NeuronSet, told: dict[str, Any], report: Any) -> str:
    head = front_matter("peft", model_id(told["for"]), kind)
    load = f'from peft import PeftModel\n\nsteered = PeftModel.from_pretrained(model, "{name}")'
    use, form = f"{EXACT[kind]}\n\n```python\n{load}\n```", f"as {'an IA3' if kind == 'ia3' else 'a LoRA'} for PEFT"
    return steered_card(name, head, neurons.describe(), form, told, use, report)
