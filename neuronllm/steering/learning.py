"""What was asked of learning, on a model and its questions: the split, the seeds, the decision, the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.errors import InputError
from ..common.files import clear_aside
from ..common.interrupts import undisturbed
from ..common.warning import warn
from ..data.prompts import Prompt, Questions, group_by_question
from ..data.seen import packed
from ..engine import open_engine
from ..engine.base import Engine
from ..engine.borrowed import check_prompts
from ..engine.kept_prefixes import KeptPrefixes
from ..judging.asking import Asking, warn_if_leaning, warn_if_one_label, warn_if_one_sided
from ..judging.bias import Bias
from ..judging.controls import warn_if_few
from ..model.anatomy import Anatomy
from ..model.identity import identity
from ..results.learned import Controls
from ..results.neurons import CONFIG, NeuronSet
from ..runs.checkpoint import partial_folder
from ..runs.processes import Ranks
from ..runs.provenance import prompt_hash, versions, weights_hash, wording
from .controls import check_controls, check_shuffled, learned_controls, shuffled, strengths
from .deciding import Split, Weighed
from .request import LearnRequest, hashed
from .retained import retained
from .training import Judge, Trainer, folds
from .trainings import Trained, Trainings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Groups: TypeAlias = "Sequence[list[Prompt]]"  # the prompts of each question
Judges: TypeAlias = "Callable[[Groups], Judge]"
LEAST_FOLDS = 3  # parts that the questions are cut into where there are none for validation
APART = 1000  # the seeds of two trainings, whose first seeds are neighbours
MANY = 4  # times k neurons are learned before k are kept


class Chosen(NamedTuple):
    """The neurons whose factors are learned."""

    ids: Tensor
    role: np.ndarray
    score: Tensor

    def take(self, places: Tensor) -> Chosen:
        return Chosen(self.ids[places], self.role[places.numpy()], self.score[places])

    def strongest(self, k: int) -> Chosen:
        return self.take(self.score.abs().argsort(descending=True, stable=True)[:k])


class Learned(NamedTuple):
    """What was found, before it is a neuron set."""

    chosen: Chosen
    trained: list[Trained]
    told: dict[str, Any]  # what the provenance says of it
    controls: Controls | None


class Learning:
    """`nl.learn`, checked; `run` does it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        questions: Questions,
        validation: Questions | None,
        request: LearnRequest,
        ranks: Ranks,
    ) -> None:
        self.model, self.tokenizer, self.questions, self.asked, self.ranks = model, tokenizer, questions, request, ranks
        self.goal, self.recipe, self.neurons = request.goal, request.recipe, request.neurons
        self.anatomy = Anatomy.of(model)
        if self.neurons is not None:
            # refuses a set of another model
            self.neurons.edits(model, self.neurons.steering(good=1.0, bad=1.0))
        words = request.orders, request.template, request.answers, request.length
        found = {} if self.neurons is None else self.neurons.provenance
        self.asking = Asking.of(questions, found, *words)
        self.groups = self._groups(questions)
        warn_if_one_sided([prompt for group in self.groups for prompt in group])
        warn_if_one_label(questions)
        self.validation = None if validation is None else self._groups(validation)
        self.held = validation or []
        _warn_if_shared(self.groups, self.validation or [])
        least = 2 * max(LEAST_FOLDS, request.seeds)
        if validation is None and len(self.groups) < least:
            raise InputError(
                f"questions: {len(self.groups)} are too few to hold some out for validation: "
                f"give {least} or more, or validation= (--validation)"
            )
        retain, where = request.retain, self.recipe.positions
        self.texts = retained(tokenizer, retain, where, self.asking) if self.recipe.retain_weight else []

    def _groups(self, questions: Questions) -> list[list[Prompt]]:
        prompts = self.asking.prompts(self.model, self.tokenizer, questions, self.goal.objective.least > 1)
        check_prompts(self.model, prompts)
        return group_by_question(prompts)

    # ---- the work ----

    def run(self) -> NeuronSet:
        output, candidates = self.asked.output, self.anatomy.n_neurons if self.neurons is None else len(self.neurons)
        check_controls(self.asked.controls, min(candidates, self.asked.k or candidates), self.anatomy)
        if self.asked.shuffled:
            check_shuffled([*self.groups, *(self.validation or [])])
        if self.ranks.first:
            warn_if_few(self.asked.controls)
        digest = self._digest()
        trainings = Trainings(self.ranks, None if output is None else partial_folder(output))
        if (before := self._finished(digest)) is not None:
            trainings.discard()
            clear_aside(Path(str(output)))
            return before
        trainings.open(self._settings() if output is not None else {}, self.asked.resume)
        try:
            found = self._learned(trainings)
        except BaseException:
            trainings.discard(work=False)
            raise
        learned = self._result(found, digest)
        if output is not None:
            with self.ranks.together(), undisturbed():
                trainings.replace(Path(output), learned.save_pretrained)
        return learned

    def _learned(self, trainings: Trainings) -> Learned:
        asked, k = self.asked, self.asked.k
        with self._engine() as engine:
            judge = self._judges(engine)
            splits = self._splits(judge, self.groups, self.validation)
            warn_if_leaning(splits[0].judge.base.answers)
            train = partial(Trainer, engine, goal=self.goal, recipe=self.recipe, texts=self.texts, ranks=self.ranks)
            trainer = train(self.groups, trainings=trainings)
            chosen = self._candidates(trainer, k)
            rounds = 1 if k is None or len(chosen.ids) <= k else 2
            sets = rounds + 2 * asked.controls + asked.shuffled
            total = sets * asked.seeds * self.recipe.steps
            with tqdm(
                total=total, desc="learning", disable=not (asked.progress and self.ranks.first), unit="step"
            ) as bar:
                learn = partial(self._seeds, bar, trainer, splits)
                if rounds == 2:
                    assert k is not None
                    moved = torch.stack([one.factors for one in learn("many", chosen.ids)]).mean(0) - 1
                    matters = moved.abs() * chosen.score.double().abs()  # what the change is worth, to first order
                    chosen = chosen.take(matters.argsort(descending=True, stable=True)[:k].sort().values)
                trained = learn("seed", chosen.ids)
                told = self._decide(splits, chosen.ids, trained)
                controls = self._controls(engine, learn, chosen.ids, trained)
                if asked.shuffled:
                    groups, held = shuffled(self.groups, asked.seed), self.validation
                    held = held and shuffled(held, asked.seed + 1)
                    trainer, others = train(groups, trainings=trainings), self._splits(judge, groups, held)
                    misled = self._seeds(bar, trainer, others, "shuffled-seed", chosen.ids)
                    factors = [one.forced for one in misled]
                    told["shuffled"] = Weighed.of(splits, chosen.ids, factors, self.recipe.positions).to_dict()
            if (bias := self._bias(judge(self.groups))) is not None:
                told["bias"] = bias.to_dict()
            return Learned(chosen, trained, told, controls)

    @contextmanager
    def _engine(self) -> Iterator[Engine]:
        prompts = [prompt for group in self.groups for prompt in group]
        objective, where = self.goal.objective, self.recipe.positions
        backend, size = self.asked.backend, self.asked.batch_size
        with open_engine(self.model, self.anatomy, prompts, backend, batch_size=size) as engine:
            some = torch.arange(self.anatomy.n_neurons) if self.neurons is None else self.neurons.ids
            ones = torch.ones(len(some), dtype=torch.float64)
            engine.fit(
                lambda batch: engine.factor_gradients(batch, objective, some, ones, positions=where).gradients, prompts
            )
            yield engine

    def _kept(self, engine: Engine) -> KeptPrefixes | None:
        """The prefixes of all questions, at the answer, where no edit changes them."""
        if self.recipe.positions == "all":
            return None
        prompts = [prompt for group in [*self.groups, *(self.validation or [])] for prompt in group]
        return engine.keep_prefixes(prompts, self.asked.cache)

    def _candidates(self, trainer: Trainer, k: int | None) -> Chosen:
        if self.neurons is not None:
            found = Chosen(self.neurons.ids, self.neurons.role, self.neurons.score)
        else:
            # Whether a neuron is good goes by the right answer, whatever the goal is.
            objective = "logp_options" if self.goal.name == "degrade" else self.goal.objective
            score = trainer.scores(objective, self.recipe.positions).float()
            role = np.where(score.numpy() >= 0, "good", "bad")
            found = Chosen(torch.arange(len(score)), role, score)
        return found if k is None else found.strongest(MANY * k)

    def _judges(self, engine: Engine) -> Judges:
        kept = self._kept(engine)
        return lambda groups: Judge(self.model, groups, self.goal, self.ranks, self.asked.batch_size, kept)

    def _splits(self, judge: Judges, groups: Groups, validation: Groups | None) -> list[Split]:
        every = range(len(groups))
        if validation is not None:
            return [Split(every, judge(validation))] * self.asked.seeds
        parts = folds(groups, max(LEAST_FOLDS, self.asked.seeds), self.asked.seed)[: self.asked.seeds]
        return [Split([n for n in every if n not in part], judge([groups[n] for n in part])) for part in parts]

    def _seeds(self, bar: Any, trainer: Trainer, splits: Sequence[Split], name: str, ids: Tensor) -> list[Trained]:
        def told(facts: dict[str, float]) -> None:
            bar.update()
            bar.set_postfix({what: f"{value:.3f}" for what, value in facts.items()}, refresh=False)

        return [
            trainer.train(f"{name}-{number}", ids, APART * self.asked.seed + number, split.search, split.judge, told)
            for number, split in enumerate(splits)
        ]

    # ---- the decision ----

    def _decide(self, splits: Sequence[Split], ids: Tensor, trained: Sequence[Trained]) -> dict[str, Any]:
        """What the edit gains on validation questions, and whether it is kept."""
        weighed = Weighed.of(splits, ids, [self._found_by(one) for one in trained], self.recipe.positions)
        gain = weighed.accuracy
        deciding = gain._replace(mean=self.goal.sign * gain.mean) if self.goal.by_accuracy else weighed.objective
        moved = any(one.step for one in trained)
        margin = self.asked.margin
        kept = margin is None or (deciding.worth(margin) and not weighed.collapsed and moved)
        return {"kept": bool(kept), **weighed.to_dict()}

    def _found_by(self, one: Trained) -> Tensor:
        """The factors of a seed: without a margin also those that do no better than none."""
        return one.forced if self.asked.margin is None else one.factors

    def _controls(self, engine: Engine, learn: Any, ids: Tensor, trained: Sequence[Trained]) -> Controls | None:
        """Random sets learned the same way."""
        if not self.asked.controls:
            return None
        prompts = [prompt for group in self.groups for prompt in group]
        strength = strengths(engine, prompts, self.ranks)
        return learned_controls(learn, ids, trained, self.anatomy, strength, self.asked.controls)

    def _bias(self, judge: Judge) -> Bias | None:
        """One number for each option and nothing else, learned on the same questions; it can only help."""
        return None if self.goal.name == "degrade" else Bias.fitted(judge.base.answers)

    def _result(self, found: Learned, digest: str | None) -> NeuronSet:
        chosen, trained = found.chosen, found.trained
        stacked = torch.stack([self._found_by(one) for one in trained])
        factors = stacked.mean(0)
        learned = {
            "goal": self.goal.name,
            "objective": self.goal.objective.name,
            "questions": len(self.groups),
            "seeds": self.asked.seeds,
            "seed": self.asked.seed,
            "margin": self.asked.margin,
            "neurons": len(factors),
            **self.recipe.to_dict(len(factors)),
            **found.told,
            "steps_taken": [one.step for one in trained],
            "spread": float(stacked.std(0).mean()) if len(trained) > 1 else 0.0,
            "turned": turned(chosen.role, factors),
            "curves": [one.curve for one in trained],
            "retain_texts": len(self.texts),
            "seen": packed([*self.questions, *self.held]),
            "template": _plain(self.asking.template),
            **self.asking.form._asdict(),
        }
        if digest is not None:
            learned["run"] = digest
        provenance = {**self._story(), "learned": learned}
        whole = NeuronSet(chosen.ids, chosen.role, chosen.score, self.anatomy, provenance, factors.float())
        return replace(whole if learned["kept"] else whole.take([]), controls=found.controls)

    def _story(self) -> dict[str, Any]:
        """Where the neurons come from: as they were found, or all of them."""
        if self.neurons is not None:
            return self.neurons.provenance
        return {
            **identity(self.model),
            **wording(self.tokenizer, self.questions, self.asking.template),
            **versions(),
            "method": "learn",
            "positions": self.recipe.positions,
        }

    # ---- what decides every byte ----

    def _settings(self) -> dict[str, Any]:
        flat = [prompt for group in self.groups for prompt in group]
        held = [prompt for group in self.validation or [] for prompt in group]
        return {
            **identity(self.model),
            "weights": weights_hash(self.model),
            "prompts": prompt_hash(flat),
            "grouping": [len(group) for group in self.groups],
            "validation": prompt_hash(held),
            **self.asked.settings(),
            "retain": hashed([[text.tokens, text.start] for text in self.texts]),
            "attention": self.model.config._attn_implementation,
            "device": self.model.device.type,
            "processes": self.ranks.size,
            **versions("torch"),
        }

    def _digest(self) -> str | None:
        """Of the settings, where anybody asks for them."""
        if self.asked.output is None:
            self.ranks.agree(self._settings)
            return None
        settings = self._settings()
        self.ranks.agree(lambda: settings)
        return hashed(settings)

    def _finished(self, digest: str | None) -> NeuronSet | None:
        """The result of the same run, where it ended before."""
        output = self.asked.output
        if output is None or not self.asked.resume or not (Path(output) / CONFIG).is_file():
            return None
        before = NeuronSet.from_pretrained(output)
        if before.provenance.get("learned", {}).get("run") != digest:
            raise InputError(f"output {output}: the set there was learned otherwise: name another folder")
        return before


def turned(role: np.ndarray, factors: Tensor) -> dict[str, int]:
    """How many neurons of each role were turned up, and how many down."""
    up, down = (factors > 1).numpy(), (factors < 1).numpy()
    return {
        f"{name}_{way}": int(((role == name) & where).sum())
        for name in ("good", "bad")
        for way, where in (("up", up), ("down", down))
    }


def _warn_if_shared(groups: Groups, validation: Groups) -> None:
    """Questions that are learned say nothing of whether learning helps."""
    seen = {tuple(prompt.input_ids) for group in groups for prompt in group}
    shared = sum(any(tuple(prompt.input_ids) in seen for prompt in group) for group in validation)
    if shared:
        warn(
            f"validation: {shared} of its {len(validation)} questions are learned on too, so it cannot say when to "
            "stop: give others"
        )


def _plain(template: Any) -> Any:
    return list(template) if isinstance(template, tuple) else template
