"""Adapters of PEFT, read: an IA3 on down projections is one factor a neuron. (`steering/adapters.py` writes them.)"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.files import read_json, read_tensors
from ..model.anatomy import Anatomy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, FACTORS = "base_model.model.", ".ia3_l"  # of the tensors of an IA3, around the name of its module
WHAT = "adapter of PEFT"


def ia3_factors(folder: str | os.PathLike[str], model: PreTrainedModel, anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """Flat ids of the neurons that an IA3 turns and their factors, float32; those turned hardest first."""
    config = read_json(folder, ADAPTER_CONFIG, WHAT)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "IA3":
        raise InputError(
            f"{folder}: {f'a {kind}' if kind else 'no'} adapter of PEFT, and only an IA3 is factors on neurons: merge "
            "another one into its model (merge_and_unload) and attribute that"
        )
    if not (Path(folder) / ADAPTER_TENSORS).is_file() and (Path(folder) / "adapter_model.bin").is_file():
        raise InputError(f"{folder}: its weights are a pickle (adapter_model.bin): save them as safetensors")
    modules = {name for name, _ in model.named_modules()}
    ids, factors = [], []
    for name, values in read_tensors(folder, ADAPTER_TENSORS, WHAT).items():
        module = name.removeprefix(PREFIX).removesuffix(FACTORS)
        first, row = _factors(folder, anatomy, modules, module, values)
        ids.append(first + torch.arange(len(row)))
        factors.append(row)
    if not ids:
        raise InputError(f"{folder}: the adapter is empty, there is no {FACTORS.strip('.')} in {ADAPTER_TENSORS}")
    every, factor = torch.cat(ids), torch.cat(factors)
    turned = (factor != 1).nonzero()[:, 0]
    turned = turned[(factor[turned] - 1).abs().argsort(descending=True, stable=True)]
    return every[turned], factor[turned]


def _factors(folder: Any, anatomy: Anatomy, modules: set[str], module: str, values: Tensor) -> tuple[int, Tensor]:
    """The first flat id of a module's neurons and all of their factors."""
    numbers = {site.down: n for n, site in enumerate(anatomy.sites) if not site.experts}
    if module not in numbers:
        if module not in modules:
            whose = f"there is no {module} in a {anatomy.describe()}"
            raise InputError(f"{folder}: the adapter is for another model: {whose}")
        raise InputError(
            f"{folder}: the adapter also turns {module}, which is no down projection, so it is more than factors on "
            "neurons: load it with PEFT instead"
        )
    n = numbers[module]
    width = anatomy.sites[n].width
    if values.shape != (1, width):
        raise InputError(
            f"{folder}: the factors of {module} have the shape {tuple(values.shape)}, and its {width} neurons take "
            f"(1, {width}): the adapter is for another model, or turns what the module puts out"
        )
    row = values.flatten().float()
    if not bool(row.isfinite().all()):
        raise InputError(f"{folder}: the factors of {module} hold NaN or infinite values: the adapter is broken")
    return int(anatomy.offsets[n]), row
