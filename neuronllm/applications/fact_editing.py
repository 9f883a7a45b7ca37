"""The work of editing facts: what each is to become, its neurons, its edit, and how the model answers then."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..attribution.job import Job
from ..common.errors import InputError
from ..common.warning import warn
from ..data.forms import Form
from ..data.prompts import Prompt
from ..data.questions import Question
from ..engine.asking import Asker, Edit
from ..judging.asking import Asking
from ..model.anatomy import Anatomy
from ..model.bridged import plain_model
from ..model.random_sets import random_like
from ..results.answers import Answers
from ..results.neurons import NeuronSet
from ..steering.learn import learn
from .fact_report import FactEdit, FactEdits, Outcome
from .fact_request import FactRequest, name_of
from .queries import Background, QueryScores, query_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Fact(NamedTuple):
    """A question, the choice that the model gives, and the one that it is to give; None: any other."""

    number: int
    question: Question
    before: int
    wanted: int | None
    how: str

    @property
    def target(self) -> str:
        """The choice in words that the answer is compared with."""
        return self.question.choices[self.before if self.wanted is None else self.wanted]

    def wants_neurons_of(self, answer: str) -> bool:
        """Whether its edit takes the neurons of the answer that is "wanted", or of the one "before"."""
        return self.how != ("suppress" if answer == "wanted" else "boost")

    def as_wanted(self, chosen: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Whether the chosen choices are what is wanted; `of`: which choice is the target, question by question."""
        return np.asarray(chosen != of if self.wanted is None else chosen == of)


class Near(NamedTuple):
    """A question and its paraphrases, to be asked under one edit after the other."""

    ask: Asker
    questions: tuple[Question, ...]


class Editing:
    """`nl.edit_facts`, checked; `run` does it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        request: FactRequest,
    ) -> None:
        self.model, self.tokenizer, self.questions, self.asked = plain_model(model), tokenizer, questions, request
        search = request.search.checked(questions)
        template = search.template
        words = template if template is None or isinstance(template, str) else template[0]
        self.judged = Asking(Form(search.answers or "letters", search.length or "sum"), request.orders, words)
        self.anatomy = Anatomy.of(self.model)

    def run(self) -> FactEdits:
        near = [self._near(number) for number in range(len(self.questions))]  # what cannot be asked is refused at once
        far = self._far()
        facts = self._facts([one.ask() for one in near])
        unchanged = far() if far is not None else None
        scored = self._scores(facts)
        edits = []
        for fact in tqdm(facts, desc="editing", disable=not self.asked.progress, unit="fact"):
            one = _OneFact(self, fact, near[fact.number], far, unchanged)
            edits.append(one.edited(self._neurons(fact, scored)))
        return FactEdits(tuple(edits), self.asked.seed)

    # ---- what is asked ----

    def _near(self, number: int) -> Near:
        """The question and its paraphrases."""
        question = replace(self.questions[number], id=f"{number}")
        others = []
        for n, given in enumerate((self.asked.paraphrases or [])[number]):
            if not isinstance(given, (str, Question)):
                raise InputError(f"paraphrases: give texts or questions, not {type(given).__name__}")
            other = replace(question, stem=given, wording=None) if isinstance(given, str) else given
            others.append(replace(other, id=f"{number}, paraphrase {n}"))
        prompts = self.judged.prompts(self.model, self.tokenizer, [question, *others])
        return Near(Asker(self.model, prompts, self.asked.batch_size), (question, *others))

    def _far(self) -> Asker | None:
        """The unrelated questions, as they are written; without any the facts themselves, where there are others."""
        unrelated = self.asked.unrelated
        if unrelated is None and len(self.questions) < 2:
            return None
        given = self.questions if unrelated is None else unrelated
        prompts = self.judged._replace(orders="none").prompts(self.model, self.tokenizer, given)
        return Asker(self.model, prompts, self.asked.batch_size)

    def _facts(self, before: Sequence[Answers]) -> list[Fact]:
        facts = []
        for number, (question, answers) in enumerate(zip(self.questions, before, strict=True)):
            now, goal = int(answers.choice[0]), (self.asked.to or [])[number]
            wanted = None if goal is None else question.choices.index(goal)
            if goal is None and now != question.answer:
                wanted = question.answer
            if wanted == now:
                raise InputError(f"to: question {name_of(question)} is answered so already, {question.choices[now]!r}")
            how = self.asked.how or ("suppress" if wanted is None else "boost")
            if wanted is None and how != "suppress":
                raise InputError(
                    f'how="{how}": the model is right about question {name_of(question)}; say with to= which answer it '
                    "is to give instead"
                )
            facts.append(Fact(number, question, now, wanted, how))
        return facts

    # ---- the neurons ----

    def _scores(self, facts: Sequence[Fact]) -> dict[str, tuple[Job, QueryScores]]:
        """Of the answers that are wanted, and of those that are to go, as far as any fact needs them.

        All facts take part either way, since each tells what the others have in common.
        """
        labels = {}
        if any(fact.wants_neurons_of("wanted") for fact in facts):
            labels["wanted"] = [fact.before if fact.wanted is None else fact.wanted for fact in facts]
        if any(fact.wants_neurons_of("before") for fact in facts):
            labels["before"] = [fact.before for fact in facts]
        found = {}
        for name, choices in labels.items():
            asked = [_labelled(fact.question, choice) for fact, choice in zip(facts, choices, strict=True)]
            job = Job.of(self.model, self.tokenizer, asked, self.asked.search)
            found[name] = job, query_scores(job, self.asked.k, self._background)
        return found

    @cached_property
    def _background(self) -> Background | None:
        if self.asked.background is None:
            return None
        job = Job.of(self.model, self.tokenizer, self.asked.background, self.asked.search)
        return Background.of(job, self.asked.k)

    def _neurons(self, fact: Fact, scored: dict[str, tuple[Job, QueryScores]]) -> NeuronSet:
        """What speaks for the wanted answer is good, what speaks for the old one bad; what does both is neither."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        provenance: dict[str, Any] = {}
        for name, (job, scores) in scored.items():
            if fact.wants_neurons_of(name):
                found[name] = scores.neurons(fact.number, self.asked.k)
                provenance = job.provenance(job.groups)
        nothing = torch.empty(0, dtype=torch.int64), torch.empty(0)
        (good, plus), (bad, minus) = found.get("wanted", nothing), found.get("before", nothing)
        own, theirs = ~torch.isin(good, bad), ~torch.isin(bad, good)
        good, plus, bad, minus = good[own], plus[own], bad[theirs], minus[theirs]
        boost, suppress = (float(factor) for factor in self.asked.factors)
        edited = {"question": fact.question.stem, "id": fact.question.id, "how": fact.how, "k": self.asked.k}
        edited |= {"before": fact.question.choices[fact.before]}
        edited |= {"wanted": None if fact.wanted is None else fact.target}
        return NeuronSet(
            torch.cat([good, bad]),
            np.array(["good"] * len(good) + ["bad"] * len(bad), dtype="<U4"),
            torch.cat([plus, -minus]).float(),
            self.anatomy,
            {**provenance, "questions": 1, "fact": edited},
            torch.tensor([boost] * len(good) + [suppress] * len(bad)),
        )


class _OneFact:
    """A fact under edits."""

    def __init__(self, editing: Editing, fact: Fact, near: Near, far: Asker | None, unchanged: Answers | None) -> None:
        self.editing, self.fact, self.near, self.far, self.unchanged = editing, fact, near, far, unchanged
        self.places = np.array([self._place(question) for question in near.questions])

    def _place(self, question: Question) -> int:
        if self.fact.target not in question.choices:
            raise InputError(
                f"paraphrases: {name_of(self.fact.question)} is to be judged by {self.fact.target!r}, which is no "
                f"choice of {question.stem!r}"
            )
        return question.choices.index(self.fact.target)

    def edited(self, neurons: NeuronSet) -> FactEdit:
        asked, fact = self.editing.asked, self.fact
        if not len(neurons):
            warn(f"no neuron speaks for it: question {name_of(fact.question)} is not edited")
        chosen, neurons = neurons, self._learned(neurons) if fact.how == "learn" else neurons
        change = self._change(neurons)
        generator = torch.Generator().manual_seed(asked.seed + fact.number)
        # No neurons: every random set is the same edit, none.
        random = [self._outcome(self._like(chosen, change, generator)) for _ in range(asked.controls)]
        answers = self.near.ask(change)
        choices = fact.question.choices
        return FactEdit(
            question=fact.question.stem,
            id=fact.question.id,
            before=choices[fact.before],
            wanted=None if fact.wanted is None else fact.target,
            after=choices[int(answers.choice[0])],
            how=fact.how,
            neurons=neurons,
            unedited=self._outcome(None),
            edited=self._outcome(change, answers),
            random=tuple(random),
        )

    def _change(self, neurons: NeuronSet) -> Edit | None:
        if not len(neurons):
            return None
        return Edit(*neurons.edits(self.editing.model, neurons.steering()), neurons.positions or "all")

    def _like(self, chosen: NeuronSet, change: Edit | None, generator: torch.Generator) -> Edit | None:
        """The same edit of random neurons, with factors of their own where factors are learned."""
        if self.fact.how == "learn" and len(chosen):
            drawn = replace(chosen, ids=random_like(chosen.ids, chosen.anatomy, generator))
            return self._change(self._learned(drawn))
        return change and change._replace(ids=random_like(change.ids, chosen.anatomy, generator))

    def _learned(self, neurons: NeuronSet) -> NeuronSet:
        """A factor for each of these neurons, learned on the question until it is answered as wanted."""
        asked, judged = self.editing.asked, self.editing.judged
        if not len(neurons) or self.fact.wanted is None:
            return neurons
        question = [_labelled(self.fact.question, self.fact.wanted)]
        with warnings.catch_warnings():  # that it is learned and judged on is what is meant here
            warnings.filterwarnings("ignore", message="validation: ")
            warnings.filterwarnings("ignore", message=".* is the right letter of ")
            learned = learn(
                self.editing.model,
                self.editing.tokenizer,
                question,
                question,
                neurons=neurons.with_factors(None),
                orders=asked.orders,
                template=judged.template,
                answers=judged.form.answers,
                length=judged.form.length if judged.form.answers == "texts" else None,
                steps=asked.steps,
                margin=None,
                seeds=1,
                seed=asked.seed,
                batch_size=asked.batch_size,
                backend=asked.backend,
                progress=False,
            )
        return learned

    def _outcome(self, change: Edit | None, answers: Answers | None = None) -> Outcome:
        if answers is None:
            answers = self.near.ask(change)
        right = self.fact.as_wanted(answers.choice, self.places).astype(float)
        p = float(np.mean([_probability(answers, n, p, self.places[0]) for n, p in enumerate(answers.groups[0])]))
        told = self.far is not None and self.unchanged is not None
        locality, moved = self._elsewhere(change) if told else (None, None)
        return Outcome(
            efficacy=float(right[0]),
            p_wanted=1 - p if self.fact.wanted is None else p,
            generalisation=float(right[1:].mean()) if len(right) > 1 else None,
            locality=locality,
            moved=moved,
        )

    def _elsewhere(self, change: Edit | None) -> tuple[float, float]:
        """The share of unrelated questions with the same answer, and how far their probabilities move on average."""
        assert self.far is not None and self.unchanged is not None
        before = self.unchanged
        after = before if change is None else self.far(change)
        others = np.ones(len(before.groups), dtype=bool)
        if self.editing.asked.unrelated is None:
            others[self.fact.number] = False  # the facts are each other's unrelated questions
        same = (before.choice == after.choice)[others].mean()
        moved = (before.logprobs.exp() - after.logprobs.exp()).abs().sum(-1) / 2
        return float(same), float(before.by_question(moved.double().numpy())[others].mean())


def _labelled(question: Question, choice: int) -> Question:
    """The question as if that choice were the right one."""
    return replace(question, answer=choice, answers=())


def _probability(answers: Answers, row: int, prompt: Prompt, choice: int) -> float:
    place = prompt.order.index(choice) if prompt.order else choice
    return float(answers.logprobs[row, place].exp())
