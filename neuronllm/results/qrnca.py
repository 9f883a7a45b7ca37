"""The key neurons that QRNCA's released code writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from ..common.errors import InputError
from ..model.anatomy import Anatomy
from ..model.sites import DENSE


def key_neurons(path: str | os.PathLike[str], anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """Flat ids and the sums of their scores, strongest first, of JSON Lines with "neurons" and "scores".

    A line of common neurons is passed over.
    """
    totals: dict[tuple[int, int], float] = {}
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            if "common_neuron" in row:
                continue
            layers, indices = [neuron[0] for neuron in row["neurons"]], [neuron[1] for neuron in row["neurons"]]
            anatomy.flat(layers, [DENSE] * len(layers), indices)  # refuses what is not in the model
            for (layer, index), score in zip(row["neurons"], row["scores"], strict=True):
                totals[layer, index] = totals.get((layer, index), 0.0) + float(score)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f'{path}:{number}: not a line of QRNCA\'s key neurons ({{"neurons": [[layer, index], ...], '
                f'"scores": [...]}}): {type(error).__name__} {error}'
            ) from error
    ranked = sorted(totals, key=lambda neuron: -totals[neuron])
    layers, indices = [neuron[0] for neuron in ranked], [neuron[1] for neuron in ranked]
    ids = anatomy.flat(layers, [DENSE] * len(ranked), indices)
    return ids, torch.tensor([totals[neuron] for neuron in ranked], dtype=torch.float32)


def _lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers as an editor counts them."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    try:
        lines = enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
    return [(number, line) for number, line in lines if line.strip()]
