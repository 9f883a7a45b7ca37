"""Adapters of PEFT, read: an IA3 on down projections is one factor a neuron. (`steering/adapters.py` writes them.)"""

from __future__ import annotations

import os
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.files import read_json, read_tensors
from ..common.warning import warn
from ..model.anatomy import Anatomy
from ..model.identity import identity, other_model
from .cards import REPOSITORY
from .factors import factors_of, steering_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"
MARK = "neuronllm_adapter.json"  # what `nl.to_peft` keeps of the set, beside the files of PEFT
PREFIX, FACTORS = "base_model.model.", ".ia3_l"  # of the tensors of an IA3, around the name of its module
WHAT = "adapter of PEFT"
ROUNDED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # types in which models hold factors


def read_ia3(folder: str | os.PathLike[str], model: PreTrainedModel, anatomy: Anatomy) -> dict[str, Any]:
    """The fields of a neuron set: as `nl.to_peft` kept them, where the tensors still say so, else what these say."""
    ids, factor = ia3_factors(folder, model, anatomy)
    told = read_json(folder, MARK, WHAT) if (Path(folder) / MARK).is_file() else {}
    try:
        if told and (found := other_model(told["for"], model)):
            warn(
                f"{folder}: the neurons of the adapter were {found} of the same shape: they may do something else there"
            )
        if "neurons" in told and _same(kept := _kept(told), ids, factor, anatomy.n_neurons):
            return kept
        model_of = told["for"] if told else identity(model)
        provenance = {"method": "ia3", "source": Path(folder).name, "positions": "all"} | model_of
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{folder}: {MARK} is not as written here ({why}): without that file the tensors are read"
        ) from error
    role = np.where(factor > 1, "good", "bad")
    return {"ids": ids, "role": role, "score": factor - 1, "factor": factor, "provenance": provenance}


def _kept(told: dict[str, Any]) -> dict[str, Any]:
    rows, own = told["neurons"], told["neurons"]["factor"]
    provenance = {"positions": "all"} | told["for"] | told["provenance"]
    if told["positions_of_the_set"] == "answer":  # what was tuned, learned and verified there is another edit
        provenance = {name: value for name, value in provenance.items() if name not in ("tuned", "learned", "verified")}
        provenance |= {"positions": "all", "adapter_of": told["provenance"]}
    return {
        "ids": torch.tensor(rows["ids"], dtype=torch.int64),
        "role": np.array(rows["role"], dtype=str),
        "score": torch.tensor(rows["score"], dtype=torch.float32),
        "factor": None if own is None else torch.tensor([nan if f is None else f for f in own], dtype=torch.float64),
        "provenance": provenance,
    }


def _same(kept: dict[str, Any], ids: Tensor, factor: Tensor, total: int) -> bool:
    """Whether the factors of a kept set are those of the tensors, rounded to the type of whatever model it was."""
    held = torch.ones(total).index_put((ids,), factor)
    how = steering_of(None, None, None, kept["factor"], kept["provenance"].get("tuned"))
    asked, there = factors_of(kept["role"], kept["factor"], how), held[kept["ids"]]
    equal = torch.stack([asked.to(dtype).float() == there for dtype in ROUNDED]).any(0)
    return bool(equal.all()) and bool(torch.isin(ids, kept["ids"]).all())


def ia3_factors(folder: str | os.PathLike[str], model: PreTrainedModel, anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """Flat ids of the neurons that an IA3 turns and their factors, float32; those turned hardest first."""
    if not os.path.exists(folder) and REPOSITORY.fullmatch(os.fspath(folder)):
        raise InputError(
            f"{folder}: no such folder here, and adapters are read from folders only: download it first "
            f"(hf download {folder} --local-dir FOLDER)"
        )
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
