"""Adam on factors, one seed after the other: steps on search questions, and looks at validation questions between."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..common.interrupts import undisturbed
from ..data.prompts import Prompt
from ..engine.asking import Asker, Edit
from ..engine.base import Engine, FactorGradients
from ..engine.kept_prefixes import KeptPrefixes
from ..engine.objectives import NEVER, Readout
from ..engine.retain import Text, divergences
from ..results.answers import Answers
from ..runs.processes import Ranks
from .recipe import Goal, Recipe
from .trainings import Trained, Trainings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BETAS = (0.9, 0.99)
SAVE_SECONDS = 20.0  # of work that a kill may cost
PLACE = "place"


class Looked(NamedTuple):
    """How an edit does on validation questions."""

    answers: Answers
    objective: np.ndarray  # of every question, the mean over its variants


class Judge:
    """Asks the same validation questions again and again, and nothing twice; several processes share them."""

    def __init__(
        self,
        model: PreTrainedModel,
        groups: Sequence[list[Prompt]],
        goal: Goal,
        ranks: Ranks,
        batch_size: int | str = "auto",
        kept: KeptPrefixes | None = None,
    ) -> None:
        self._prompts = [prompt for group in groups for prompt in group]
        self._goal, self._ranks = goal, ranks
        whose = [n % ranks.size for n, group in enumerate(groups) for _ in group]
        self._mine = [place for place, rank in enumerate(whose) if rank == ranks.rank]
        mine = [self._prompts[place] for place in self._mine]
        self._ask = Asker(model, mine, batch_size, kept) if mine else None
        self._most = max(len(prompt.option_ids) for prompt in self._prompts)
        self._looks: dict[bytes, Looked] = {}  # factors that a seed ends with have been looked at as it learned

    @cached_property
    def base(self) -> Looked:
        """Without an edit."""
        return self._look()

    def __call__(self, ids: Tensor, factors: Tensor, positions: str = "all") -> Looked:
        change = sha256(ids.numpy().tobytes() + factors.numpy().tobytes() + positions.encode()).digest()
        if change not in self._looks:
            self._looks[change] = self._look(Edit(ids, factors, positions))
        return self._looks[change]

    def _look(self, change: Edit | None = None) -> Looked:
        found: dict[str, Tensor] = {}
        if self._ask is not None:
            scores = self._ask.scores(change)
            width = self._most - scores.shape[1]
            scores = torch.nn.functional.pad(scores, (0, width), value=float("-inf"))
            found = {PLACE: torch.tensor(self._mine), "scores": scores}
        scores = in_order(self._ranks.concatenate(found))["scores"]
        answers = Answers(self._prompts, torch.empty(scores.shape).copy_(scores.log_softmax(-1)))
        right = torch.tensor([[prompt.answer] for prompt in self._prompts])
        log_z = None if self._prompts[0].one_token else torch.zeros(len(scores), dtype=scores.dtype)
        read = Readout(scores.masked_fill(scores == float("-inf"), NEVER), right, log_z)
        return Looked(answers, answers.by_question(self._goal.objective.value(read).double().numpy()))


class Trainer:
    """Learns factors of neurons on questions.

    >>> trained = trainer.train("seed-0", ids, 0, search, judge)   # doctest: +SKIP
    """

    def __init__(
        self,
        engine: Engine,
        groups: Sequence[list[Prompt]],
        goal: Goal,
        recipe: Recipe,
        texts: Sequence[Text],
        ranks: Ranks,
        trainings: Trainings,
    ) -> None:
        self.engine, self.groups, self.goal, self.recipe = engine, groups, goal, recipe
        self.texts, self.ranks, self.trainings = texts if recipe.retain_weight else [], ranks, trainings

    def train(
        self,
        name: str,
        ids: Tensor,
        seed: int,
        search: Sequence[int],
        judge: Judge,
        told: Callable[[dict[str, float]], None] = lambda facts: None,
    ) -> Trained:
        """The factors that do best on the validation questions, of those that a seed comes by on the search questions.

        `told` hears of every step that is done.
        """
        if (done := self.trainings.done(name)) is not None:
            for facts in done.curve:
                told(facts)
            return done
        work = _UnderWay(ids, self.recipe, judge)
        work.load(self.trainings.state(name))
        for facts in work.curve:
            told(facts)
        saved = time.monotonic()
        while work.step < self.recipe.steps:
            loss, grad = self._loss(ids, work.factors.detach(), seed, work.step, search)
            work.take(loss, grad)
            late = time.monotonic() - saved > SAVE_SECONDS
            if (work.looked_now or late) and self.trainings.on_disk:
                with undisturbed():
                    self.trainings.save(name, *work.state())
                saved = time.monotonic()
            told(work.curve[-1])
        return self.trainings.finish(name, work.result())

    def scores(self, objective: Any, positions: str) -> Tensor:
        """The mean score of every neuron over the questions, (n_neurons,): where learning begins."""
        every = torch.arange(self.engine.anatomy.n_neurons)
        ones, total = torch.ones(len(every)), torch.zeros(len(every), dtype=torch.float64)
        for start in range(0, len(self.groups), self.recipe.batch):
            numbers = range(start, min(start + self.recipe.batch, len(self.groups)))
            weights, rows = self._rows(numbers, objective, every, ones, positions)
            total += weights @ rows.gradients.double() * len(numbers)
        return total / len(self.groups)

    def _loss(self, ids: Tensor, factors: Tensor, seed: int, step: int, search: Sequence[int]) -> tuple[float, Tensor]:
        recipe = self.recipe
        numbers = [search[n] for n in drawn(len(search), recipe.batch, seed, step)]
        weights, rows = self._rows(numbers, self.goal.objective, ids, factors, recipe.positions)
        loss, grad = -(weights @ rows.values.double()), -(weights @ rows.gradients.double())
        loss, grad = loss + recipe.l1 * (factors - 1).abs().sum(), grad + recipe.l1 * (factors - 1).sign()
        if self.texts:
            kept = self._kept(
                [self.texts[n] for n in drawn(len(self.texts), recipe.retain_batch, seed, step)], ids, factors
            )
            loss = loss + recipe.retain_weight * kept.values.double().mean()
            grad = grad + recipe.retain_weight * kept.gradients.double().mean(0)
        return float(loss), grad

    def _rows(
        self, numbers: Sequence[int], objective: Any, ids: Tensor, factors: Tensor, positions: str
    ) -> tuple[Tensor, FactorGradients]:
        """Of all prompts of some questions, in order, whoever worked on them: how much each counts, and its row."""
        prompts = [(number, prompt) for number in numbers for prompt in self.groups[number]]
        sizes = [len(self.groups[number]) for number, _ in prompts]
        weights = 1 / (torch.tensor(sizes, dtype=torch.float64) * len(numbers))
        mine = [n for n, (number, _) in enumerate(prompts) if number % self.ranks.size == self.ranks.rank]

        def found() -> FactorGradients:
            own = [prompts[n][1] for n in mine]
            return self.engine.factor_gradients(own, objective, ids, factors, positions=positions)

        return weights, self._together(mine, found)

    def _kept(self, texts: Sequence[Text], ids: Tensor, factors: Tensor) -> FactorGradients:
        mine = [n for n in range(len(texts)) if n % self.ranks.size == self.ranks.rank]
        model, anatomy = self.engine.model, self.engine.anatomy
        return self._together(mine, lambda: divergences(model, anatomy, [texts[n] for n in mine], ids, factors))

    def _together(self, mine: list[int], work: Callable[[], FactorGradients]) -> FactorGradients:
        """The rows of all processes, in the order of their places."""
        found = work()._asdict() | {PLACE: torch.tensor(mine)} if mine else {}
        rows = in_order(self.ranks.concatenate(found))
        return FactorGradients(rows["values"], rows["gradients"])


class _UnderWay:
    """A training of one seed: factors, what Adam remembers, the best so far."""

    def __init__(self, ids: Tensor, recipe: Recipe, judge: Judge) -> None:
        self._ids, self._recipe, self._judge = ids, recipe, judge
        self.factors = torch.ones(len(ids), dtype=torch.float64, requires_grad=True)
        self._adam = torch.optim.Adam([self.factors], lr=recipe.rate(len(ids)), betas=BETAS)
        self.curve: list[dict[str, float]] = []
        self.best, self.best_step, self.best_value = (
            torch.ones(len(ids), dtype=torch.float64),
            0,
            -np.inf,
        )  # of the looks
        self.looked_now = False

    @property
    def step(self) -> int:
        """How many are done."""
        return len(self.curve)

    def take(self, loss: float, grad: Tensor) -> None:
        """One step down the gradient, and a look where it is time for one."""
        self.factors.grad = grad
        self._adam.step()
        with torch.no_grad():
            self._recipe.clamped(self.factors)
        facts: dict[str, float] = {"loss": loss}
        self.looked_now = (self.step + 1) % self._recipe.every == 0 or self.step + 1 == self._recipe.steps
        if self.looked_now:
            seen = self._judge(self._ids, self.factors.detach(), self._recipe.positions)
            facts |= {"objective": float(seen.objective.mean()), "accuracy": seen.answers.accuracy}
            if facts["objective"] > self.best_value:
                self.best, self.best_value = self.factors.detach().clone(), facts["objective"]
                self.best_step = self.step + 1
        self.curve.append(facts)

    def result(self) -> Trained:
        if self.best_value > float(self._judge.base.objective.mean()):
            return Trained(self.best, self.best.clone(), self.curve, self.best_step)
        return Trained(torch.ones_like(self.best), self.best, self.curve, 0)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"adam.{name}": tensor for name, tensor in self._adam.state[self.factors].items()}
        tensors |= {"factors": self.factors.detach(), "best": self.best}
        return tensors, {"curve": self.curve, "best_step": self.best_step, "best_value": self.best_value}

    def load(self, saved: tuple[dict[str, Tensor], dict[str, Any]] | None) -> None:
        if saved is None:
            return
        tensors, facts = saved
        with torch.no_grad():
            self.factors.copy_(tensors["factors"])
        adam = {name.removeprefix("adam."): tensor for name, tensor in tensors.items() if name.startswith("adam.")}
        self._adam.state[self.factors] = adam
        self.best, self.curve = tensors["best"], facts["curve"]
        self.best_step, self.best_value = facts["best_step"], facts["best_value"]


def in_order(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows of several processes, by their places."""
    order = rows.pop(PLACE).argsort()
    return {name: tensor[order] for name, tensor in rows.items()}


def drawn(count: int, batch: int, seed: int, step: int) -> list[int]:
    """The numbers of a step: every round takes each of `count` once, in an order of its own.

    >>> sorted(drawn(4, 2, 0, 0) + drawn(4, 2, 0, 1))
    [0, 1, 2, 3]
    """
    batch = min(batch, count)
    places = range(step * batch, (step + 1) * batch)
    return [_order(count, seed, place // count)[place % count] for place in places]


def _order(count: int, seed: int, round_: int) -> list[int]:
    generator = torch.Generator().manual_seed(1_000_003 * seed + round_)
    return torch.randperm(count, generator=generator).tolist()


def folds(groups: Sequence[list[Prompt]], count: int, seed: int) -> list[list[int]]:
    """The numbers of the questions, dealt to so many parts."""
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    return [sorted(order[n::count]) for n in range(count)]
