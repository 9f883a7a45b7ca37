"""A task and fold of the case study: its questions, how they are asked, and what its rows share.

Answers are in words, edits act at all positions, and everything computes in float32. What a row comes to is a `Way`;
how well it answers is asked on questions that no row was made with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asking import folds, number_of
from torch import Tensor

import neuronllm as nl
from neuronllm.common.files import read_json
from neuronllm.data.plain_text import plain_sentences
from neuronllm.engine import open_engine
from neuronllm.engine.asking import Asker, Edit
from neuronllm.engine.retain import Text, text_logprobs
from neuronllm.results.answers import Answers
from neuronllm.runs.processes import Ranks
from neuronllm.steering.controls import strengths
from neuronllm.steering.retained import LONGEST

FOLDS = 3
CLOZE = "cloze"
TEMPLATES = {"past_tense": "continue", "politeness": "chat:continue"}  # of the other tasks: CLOZE
LENGTHS = {"politeness": "tokens"}  # a mean over tokens, or the shorter reply would win; of the other tasks: a sum
PUBLISHED = 12  # search questions that published methods score: each takes many passes
HELD = 40  # search questions at most that say when learning is to stop
ELSEWHERE = 120  # test questions of every other task, at most, that side effects are looked for on


@dataclass(frozen=True)
class Way:
    """How questions are answered in a row: by the model as it is, edited, trained, told more, or with a bias."""

    settings: dict[str, Any] = field(default_factory=dict)
    edit: Edit | None = None
    model: Any = None  # another one than the study's
    template: str | None = None
    bias: Callable[[Sequence[nl.Prompt]], Tensor] | None = None  # (prompts, options), added to the scores of options
    learned: nl.NeuronSet | None = None
    parameters: int | None = None  # that were learned, where these are no factors of neurons

    @property
    def neurons(self) -> int:
        return 0 if self.edit is None else len(self.edit.ids)

    @property
    def changes_the_model(self) -> bool:
        return self.model is not None or self.neurons > 0


class Study:
    """The model, its tasks, and the folder of the rows."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tasks: Mapping[str, Sequence[nl.Question]],
        output: str | Path,
        scores: str | Path | None = None,
        count: int = FOLDS,
    ) -> None:
        """`scores` is a folder for scores that rows share; without it every process finds them anew."""
        self.model, self.tokenizer, self.output = model, tokenizer, Path(output)
        self.scores = None if scores is None else Path(scores)
        self.anatomy = nl.Anatomy.of(model)
        self.folds = {task: folds(questions, count) for task, questions in tasks.items()}
        self._settings: dict[tuple[str, int], Setting] = {}

    def at(self, task: str, fold: int) -> Setting:
        if (task, fold) not in self._settings:
            self._settings[task, fold] = Setting(self, task, fold)
        return self._settings[task, fold]

    def file(self, task: str, fold: int, row: str) -> Path:
        return self.output / task / f"{fold}-{row}.json"

    # ---- plain texts, which are no questions ----

    @cached_property
    def texts(self) -> list[Text]:
        return [Text(self.tokenizer(text).input_ids[:LONGEST]) for text in plain_sentences("judge")]

    @cached_property
    def texts_before(self) -> list[float]:
        return rounded(text_logprobs(self.model, self.anatomy, self.texts))

    def texts_after(self, way: Way) -> list[float]:
        """The mean log-probability of a token of every sentence."""
        if way.model is not None:
            return rounded(text_logprobs(way.model, nl.Anatomy.of(way.model), self.texts))
        assert way.edit is not None
        return rounded(text_logprobs(self.model, self.anatomy, self.texts, way.edit.ids, way.edit.factors))


class Setting:
    """One task and fold."""

    def __init__(self, study: Study, task: str, fold: int) -> None:
        self.study, self.task, self.fold = study, task, fold
        self.model, self.tokenizer, self.anatomy = study.model, study.tokenizer, study.anatomy
        self.search, self.test = study.folds[task][fold]
        self.template, self.length = TEMPLATES.get(task, CLOZE), LENGTHS.get(task, "sum")
        self.scoring = 0.0  # CPU seconds that went into scores so far
        self._scores: dict[str, nl.Scores] = {}

    @property
    def asked(self) -> dict[str, Any]:
        """How its questions are asked, and how many rows are made with."""
        length = {} if self.length == "sum" else {"length": self.length}
        return {"template": self.template, **length, "searched": len(self.search)}

    # ---- asking ----

    def prompts(self, questions: Sequence[nl.Question], template: str | None = None) -> list[nl.Prompt]:
        how = {"answers": "texts", "length": self.length}
        return nl.render(self.tokenizer, questions, "none", template or self.template, **how)

    @cached_property
    def ask(self) -> Asker:
        return Asker(self.model, self.prompts(self.test))

    @cached_property
    def before(self) -> Tensor:
        """(prompts, options): the scores of options without an edit."""
        return self.ask.scores()

    @cached_property
    def base(self) -> Answers:
        return answered(self.ask.prompts, self.before)

    def answers(self, way: Way) -> Answers:
        """How the test questions are answered."""
        if way.template is not None:
            return Asker(self.model, self.prompts(self.test, way.template))()
        if way.bias is not None:
            return answered(self.ask.prompts, self.before + way.bias(self.ask.prompts))
        return asked(self.ask, way) if way.changes_the_model else self.base

    @cached_property
    def some(self) -> tuple[Asker, list[int]]:
        """Some of the test questions, for rows of other tasks, and which of them are answered right without an edit."""
        ask = Asker(self.model, self.prompts(self.test[:ELSEWHERE]))
        return ask, ones(ask())

    def elsewhere(self, way: Way) -> dict[str, dict[str, list[int]]]:
        """Which questions of the other tasks are answered right, before and after."""
        found = {}
        for task in self.study.folds:
            if task != self.task:
                ask, before = self.study.at(task, self.fold).some
                found[task] = {"before": before, "after": ones(asked(ask, way))}
        return found

    # ---- neurons ----

    def scores(self, method: str) -> nl.Scores:
        """Scores that several rows share: of all search questions at all positions."""
        return self._shared(method, self.search)

    def published(self, method: str) -> nl.Scores:
        """The same of a published method, which scores fewer questions, at the answer, in its own wordings."""
        template = None if self.template == CLOZE else self.template
        return self._shared(method, self.search[:PUBLISHED], positions="answer", template=template)

    def _shared(self, method: str, questions: Sequence[nl.Question], **more: Any) -> nl.Scores:
        if method not in self._scores:
            if self.study.scores is not None:
                folder = self.study.scores / f"{self.task}-{self.fold}-{method}"
                more |= {"output": folder, "resume": True}
            self._scores[method] = self.scored(method, questions, **more)
        return self._scores[method]

    def scored(self, method: str, questions: Sequence[nl.Question], **more: Any) -> nl.Scores:
        began = time.process_time()
        how = {"positions": "all", "template": self.template, "answers": "texts", "length": self.length}
        how |= {"progress": False} | more
        found = nl.attribute(self.model, self.tokenizer, questions, method, **how)
        self.scoring += time.process_time() - began
        return found

    def of(self, ids: Tensor, scores: nl.Scores | None = None) -> nl.NeuronSet:
        """Neurons with the roles that the scores give them: those of `gradient` unless others are given."""
        scores = self.scores("gradient") if scores is None else scores
        values = scores.values[ids]
        role = np.where(values.numpy() >= 0, "good", "bad")
        return nl.NeuronSet(ids, role, values, self.anatomy, dict(scores.provenance))

    def strongest(self, k: int, scores: nl.Scores | None = None, but: Tensor | None = None) -> nl.NeuronSet:
        """The k neurons with the largest abs(score), `but` for some."""
        scores = self.scores("gradient") if scores is None else scores
        order = scores.values.abs().argsort(descending=True, stable=True)
        return self.of((order if but is None else order[~torch.isin(order, but)])[:k], scores)

    @cached_property
    def strength(self) -> Tensor:
        prompts = self.prompts(self.search)
        with open_engine(self.model, self.anatomy, prompts) as engine:
            return strengths(engine, prompts, Ranks())

    def generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(number_of(f"{self.task} {self.fold} {name}") % 2**63)

    def learned_in(self, row: str) -> Edit:
        """What an earlier row learned."""
        path = self.study.file(self.task, self.fold, row)
        if not path.is_file():
            raise nl.InputError(f"it needs the row {row} of the same task and fold: do that first")
        facts = read_json(path.parent, path.name, "row")
        if "ids" not in facts:
            raise nl.InputError(f"the row {row} has no neurons, so that there is nothing to compare with it")
        return Edit(torch.tensor(facts["ids"]), torch.tensor(facts["factor"]), "all")


def parted(questions: Sequence[nl.Question]) -> tuple[list[nl.Question], list[nl.Question]]:
    """Those that are learned on, and a few that say when to stop; no item is on both sides."""
    rest, held = folds(questions, 3)[0]
    return rest, held[:HELD]


def asked(ask: Asker, way: Way) -> Answers:
    """How an edited or trained model answers the questions of `ask`."""
    return ask(way.edit) if way.model is None else Asker(way.model, ask.prompts)()


def answered(prompts: Sequence[nl.Prompt], scores: Tensor) -> Answers:
    return Answers(prompts, scores.float().log_softmax(-1))


def ones(answers: Answers) -> list[int]:
    """1 for every question that is answered right, 0 for the others."""
    return [int(right) for right in answers.question_right]


def rounded(values: Any, digits: int = 5) -> list[float]:
    return [round(float(value), digits) for value in values]
