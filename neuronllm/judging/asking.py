"""How a judgement asks: in the words that the neurons were found with, and not for one letter alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.prompts import Prompt
from ..data.sources import LETTERS
from ..results.neurons import NeuronSet


def template_of(neurons: NeuronSet | None, template: Any) -> Any:
    """The template asked for, else the one that the neurons were found with: they are judged as they were chosen."""
    if template is None and neurons is not None:
        return neurons.provenance.get("template")
    return template


def warn_if_one_letter(prompts: Sequence[Prompt]) -> None:
    """Where one letter is nearly always right, liking that letter looks like knowledge."""
    shares = np.bincount([p.answer for p in prompts]) / len(prompts)
    if len(prompts) > 1 and shares.max() > 0.8:
        warnings.warn(
            f"{LETTERS[shares.argmax()]} is the right letter of {shares.max():.0%} of the prompts, so a model that "
            'likes this letter looks right; ask with orders="rotate" (--orders rotate)',
            stacklevel=3,
        )
