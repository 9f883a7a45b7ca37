"""How scores are computed. Methods say what they want; an engine knows how to get it from a model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from ..errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..anatomy import Anatomy
    from .reference import ReferenceEngine

BACKENDS = ("fast", "reference")
FAST_REASON = "this version has the reference engine only"
_log = logging.getLogger("neuronllm")
_told: set[str] = set()


def open_engine(
    model: PreTrainedModel,
    anatomy: Anatomy,
    backend: str = "fast",
    *,
    dtype: torch.dtype | None = None,
    batch_size: int | str = "auto",
) -> ReferenceEngine:
    """The engine named by `backend`; "fast" falls back to the reference and says why once."""
    from .reference import ReferenceEngine

    if backend not in BACKENDS:
        raise InputError(f"backend={backend!r}: known back ends are {', '.join(BACKENDS)}")
    if backend == "fast" and FAST_REASON not in _told:
        _told.add(FAST_REASON)
        _log.info("backend fast -> reference: %s", FAST_REASON)
    return ReferenceEngine(model, anatomy, dtype=dtype, batch_size=batch_size)
