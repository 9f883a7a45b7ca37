"""What a method may ask of an engine, and what engines truly share: the borrowed model and the plan of the work.

An engine defines every verb for itself. None inherits one from another, so that comparing two engines compares two
computations.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..model.anatomy import Anatomy
from ..model.experts import computable
from ..model.outputs import output_norms
from ..model.sites import Site
from ..results.answers import Heard
from .batching import Plan
from .borrowed import DoublePrecision, borrowed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt
    from .kept_prefixes import KeptPrefixes
    from .objectives import AnyObjective

TOKENS = 4096  # of a pass, where nobody plans for more
E = TypeVar("E", bound="Engine")


class FactorGradients(NamedTuple):
    """The objective of every prompt under factors on neurons, and its gradient at every factor."""

    values: Tensor  # (prompts,)
    gradients: Tensor  # (prompts, neurons)


class Engine(ABC):
    """Attribution on a borrowed model; scores come with one row a prompt and one column a neuron.

    `dtype` works on a copy of the model in that type; float64 is then kept even where the model's code asks for
    float32. None works on the model itself.
    `batch_size` bounds what goes into one forward pass; "auto" lets the engine choose.
    `plan` is that of an earlier run, to be followed again.

    >>> with ReferenceEngine(model) as engine:   # doctest: +SKIP
    ...     scores = engine.gradients(prompts, "logp_options")
    """

    name: ClassVar[str]

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy | None = None,
        *,
        dtype: torch.dtype | None = None,
        batch_size: int | str = "auto",
        plan: Plan | None = None,
    ) -> None:
        self.model: Any = model if dtype in (None, model.dtype) else copy.deepcopy(model).to(dtype)  # type: ignore[arg-type]
        self.dtype = dtype
        self.anatomy = anatomy or Anatomy.of(model)
        self.batch_size = batch_size
        self.reason: str | None = None  # why this engine works and not the one that was asked for
        self.plan = plan or Plan(prompts=1, answer_tokens=TOKENS, window=1)
        self._planned = plan is not None
        self._begin()

    def _begin(self) -> None:
        """Set what an engine has of its own before any work."""
        self.heard = Heard()  # what the model answered in passes that were made anyway
        self._stack = ExitStack()

    def __enter__(self: E) -> E:
        self._stack.enter_context(borrowed(self.model))
        if self.anatomy.routed:
            self._stack.enter_context(computable(self.model))
        if self.dtype == torch.float64:
            self._stack.enter_context(DoublePrecision())
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()

    @cached_property
    def norms(self) -> Tensor:
        """(n_neurons,): the norms of the neurons' output vectors."""
        return output_norms(self.model, self.anatomy)

    @property
    def at_once(self) -> int:
        """How many prompts the engine likes to be given together: its progress shows only between such pieces."""
        return self.plan.window

    # ---- the verbs ----

    @abstractmethod
    def fit(
        self, work: Callable[[Sequence[Prompt]], Tensor], prompts: Sequence[Prompt], *, always: bool = False
    ) -> None:
        """Cut the batches by what memory `work` (prompts -> scores) takes; `always` gives an estimate anyway."""

    def seconds(self, work: Callable[[Sequence[Prompt]], Tensor], prompts: Sequence[Prompt]) -> float | None:
        """About how long `work` on all of these takes, by doing a little of it after `fit`; None where nobody tried."""
        return None

    @abstractmethod
    def activations(self, prompts: Sequence[Prompt], positions: str = "answer", statistic: str = "value") -> Tensor:
        """h at the answer position, or its mean over all positions.

        Of another statistic (activity.py): "size" is |h|, "frequency" counts h's gate being positive, and "cett" is the
        neuron's share of what its FFN puts out.
        """

    @abstractmethod
    def gradients(
        self,
        prompts: Sequence[Prompt],
        objective: AnyObjective,
        *,
        positions: str = "answer",
        weight: str = "activation",
        rules: str | None = None,
    ) -> Tensor:
        """sum over positions of weight * dF/dh, weight being h ("activation") or its sign ("sign").

        `rules` None is the true gradient; "relp" and "relp-detached" (attention patterns constant too) are LRP's.
        """

    @abstractmethod
    def question_gradients(
        self,
        prompts: Sequence[Prompt],
        sizes: Sequence[int],
        objective: AnyObjective,
        *,
        weight: str = "activation",
        rules: str | None = None,
    ) -> Tensor:
        """(questions, n_neurons): `gradients` at all positions, the mean over each question's prompts, so many each."""

    @abstractmethod
    def factor_gradients(
        self,
        prompts: Sequence[Prompt],
        objective: AnyObjective,
        ids: Tensor,
        factors: Tensor,
        *,
        positions: str = "answer",
    ) -> FactorGradients:
        """The objective while neurons are multiplied by factors, and its gradient at the factors.

        Where all factors are 1 the gradients are `gradients` of these neurons.
        """

    def keep_prefixes(self, prompts: Sequence[Prompt], budget: int) -> KeptPrefixes | None:
        """Keep what edits at the answer cannot change, within `budget` bytes, until the engine is closed.

        The reference keeps nothing.
        """
        return None

    @abstractmethod
    def option_gradients(self, prompts: Sequence[Prompt]) -> Tensor:
        """(prompts, options, n_neurons): h times the gradient of every option's score; 0 where there is no option."""

    @abstractmethod
    def integrate(self, prompts: Sequence[Prompt], objective: AnyObjective, alphas: Tensor, weights: Tensor) -> Tensor:
        """Integrated gradients at the answer position, a layer's whole h scaled together by each alpha.

        Shared and routed experts of a layer are scaled together, because its routing does not depend on h.
        """

    @abstractmethod
    def integrate_to(self, prompts: Sequence[Prompt], objective: AnyObjective, tolerance: float) -> Tensor:
        """`integrate` to a tolerance, relative to the norm of each prompt's scores, with as many points as that takes.

        `plan` says how many they were and the largest estimated error.
        """

    @abstractmethod
    def effects(
        self,
        prompts: Sequence[Prompt],
        objective: AnyObjective,
        *,
        ids: Tensor | None = None,
        factor: float = 0.0,
        positions: str = "answer",
    ) -> Tensor:
        """F(clean) - F(neuron times factor at these positions), every neuron or those of `ids`, really run.

        In float32 at least, whatever the weights; `plan.noise` says what a rounding of h does to the objective.
        """

    @abstractmethod
    def direct(self, prompts: Sequence[Prompt], objective: AnyObjective) -> Tensor:
        """F(unembed(r + h_i v_i)) - F(unembed(r)): a neuron's own push on the logits, no later layer in between."""

    @abstractmethod
    def post_normed(self, prompt: Prompt) -> bool:
        """True if a block's output is not linear in h, as behind a norm of the FFN's output; one block of each kind."""


def summed(site: Site, values: Tensor, routes: Tensor | None) -> Tensor:
    """(tokens, width) or (tokens, K, width) of a site -> the sum over tokens at all of its neurons, (size,)."""
    return values.sum(0) if routes is None else site.spread(values.flatten(0, 1), routes.flatten())
