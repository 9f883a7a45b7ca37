"""How scores are computed. Methods say what they want; an engine knows how to get it from a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ..common.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt
    from ..model.anatomy import Anatomy
    from .base import Engine
    from .batching import Plan

BACKENDS = ("fast", "reference")
_log = logging.getLogger("neuronllm")
_told: set[str] = set()


@contextmanager
def open_engine(
    model: PreTrainedModel,
    anatomy: Anatomy,
    prompts: Sequence[Prompt],
    backend: str = "fast",
    *,
    dtype: torch.dtype | None = None,
    batch_size: int | str = "auto",
    plan: Plan | None = None,
) -> Iterator[Engine]:
    """The engine named by `backend`, for these prompts; "fast" falls back to the reference and says why once.

    `plan` is that of an earlier run, to be followed again.
    """
    from .fast import FastEngine
    from .reference import ReferenceEngine

    if backend not in BACKENDS:
        raise InputError(f"backend={backend!r}: known back ends are {', '.join(BACKENDS)}")
    reason = None
    if backend == "fast":
        fast = FastEngine(model, anatomy, dtype=dtype, batch_size=batch_size, plan=plan)
        with fast:
            reason = fast.unusable(prompts)
            if reason is None:
                if not fast.options_head:
                    _tell(f"{type(model).__name__}: the options' logits cannot be computed alone, the whole head runs")
                yield fast
                return
        _tell(f"backend fast -> reference for {type(model).__name__}: {reason}")
    with ReferenceEngine(model, anatomy, dtype=dtype, batch_size=batch_size, plan=plan) as engine:
        engine.reason = reason
        yield engine


def _tell(text: str) -> None:
    if text not in _told:
        _told.add(text)
        _log.warning(text)
