"""What a method is, and how the scores of single prompts become one value a neuron."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.forms import TEXT_TEMPLATE
from ..results.streaming import Statistics, Streaming

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from ..engine.base import Engine
    from ..engine.objectives import AnyObjective, Objective


class Summary(NamedTuple):
    """One number a neuron and how sure it is, over all questions."""

    values: Tensor
    stderr: Tensor
    sign_consistency: Tensor


class Collector(Streaming):
    """Streams question after question into a summary. This one is the mean over questions.

    What a subclass gathers is tensors, or Statistics; sums and marks are merged as such (see `Streaming`).
    """

    def __init__(self, n_neurons: int) -> None:
        self.stats = Statistics(n_neurons)

    def add(self, scores: Tensor, right: Tensor | None = None) -> None:
        """Take in one question: scores (variants, n_neurons), and which variants the model answered right."""
        self.stats.add(question_mean(scores))

    def values(self) -> Tensor:
        return self.stats.mean

    def summary(self) -> Summary:
        return Summary(self.values(), self.stats.stderr, self.stats.sign_consistency)


@dataclass(frozen=True)
class Method(ABC):
    """A way to score neurons. The fields of a subclass are its options; its class variables are its defaults.

    A new method is a subclass in a file of its own, registered with `neuronllm.methods.register`.
    """

    name: ClassVar[str]
    positions: ClassVar[tuple[str, ...]] = ("answer",)
    objective: ClassVar[AnyObjective | None] = "logp_options"  # None: the method explains no objective
    orders: ClassVar[str] = "rotate"  # of letters; of texts, rendering decides by whether the options are shown
    template: ClassVar[str | tuple[str, ...]] = "default"
    text_template: ClassVar[str | tuple[str, ...]] = TEXT_TEMPLATE  # where answers are texts
    reads: ClassVar[str | None] = None  # what of a text's tokens it explains, where that is not all of them
    needs_answers: ClassVar[bool] = False
    expensive: ClassVar[bool] = False  # every prompt takes so long that its result is written down at once
    integrates: ClassVar[bool] = False  # integrated gradients: degenerate behind a post-FFN norm

    @abstractmethod
    def score(self, engine: Engine, prompts: Sequence[Prompt], objective: Objective, positions: str) -> Tensor:
        """Raw scores of prompts, (prompts, n_neurons): what to compute, in the engine's words."""

    def question_scores(
        self, engine: Engine, prompts: Sequence[Prompt], sizes: Sequence[int], objective: Objective
    ) -> Tensor | None:
        """(questions, n_neurons): the mean of raw scores over each question's prompts, at all positions.

        Asked for where nothing else is wanted of the prompts; None where it would be no cheaper.
        """
        return None

    def collector(self, n_neurons: int) -> Collector:
        """What turns the raw scores of all prompts into the summary."""
        return Collector(n_neurons)

    def check_objective(self, objective: Objective) -> None:  # noqa: B027 - most methods take every objective
        """Refuse an objective that the method cannot explain."""

    @property
    def default_positions(self) -> str:
        """All of them where the method can: scores and edits at all positions are the stronger control."""
        return "all" if "all" in self.positions else "answer"

    def one_by_one(self, positions: str) -> bool:
        """Whether questions are handed to the engine one at a time, so that a kill costs no more than one."""
        return self.expensive

    @classmethod
    def options(cls) -> list[str]:
        return [field.name for field in fields(cls)]

    @classmethod
    def with_options(cls, options: dict[str, Any]) -> Method:
        unknown = sorted(set(options) - set(cls.options()))
        if unknown:
            known = f"its options are {', '.join(cls.options())}" if cls.options() else "it has no options"
            why = '; the strongest by exact effects are found by method "exact"' if unknown[0] == "top" else ""
            raise InputError(f"method {cls.name!r} has no option {unknown[0]!r}: {known}{why}")
        return cls(**options)


def one_of(option: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{option}={value!r}: known values are {', '.join(known)}")


def in_range(option: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
        raise InputError(f"{option}={value!r}: give a number between {low} and {high}")


def question_mean(scores: Tensor) -> Tensor:
    """The mean over a question's variants, in float64."""
    return scores.mean(0, dtype=torch.float64)


def above_share_of_max(scores: Tensor, share: float) -> Tensor:
    """True where a score exceeds `share` of the row's largest one; nowhere in a row without a positive score."""
    top = scores.amax(-1, keepdim=True)
    return (scores > share * top) & (top > 0)


def empty_counts(n_neurons: int) -> Tensor:
    return torch.zeros(n_neurons, dtype=torch.int64)
