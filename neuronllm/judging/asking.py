"""The same prompts asked again and again: in the words that the neurons were found with, under different edits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.prompts import Prompt
from ..data.sources import LETTERS
from ..engine.answers import Edit, Questionnaire
from ..model.anatomy import Anatomy
from ..results.answers import Answers
from ..results.neurons import NeuronSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


class Asker:
    """The same prompts asked again and again, under different edits."""

    def __init__(self, model: PreTrainedModel, prompts: list[Prompt], batch_size: int | str) -> None:
        self.model, self.prompts = model, prompts
        self.anatomy = Anatomy.of(model)
        self._ask = Questionnaire(model, prompts, batch_size=batch_size)

    def __call__(self, change: Edit | None, label: str = "", progress: bool = False) -> Answers:
        return Answers(self.prompts, self._ask(change, anatomy=self.anatomy, progress=progress, label=label))
