"""What all pieces of work share: the model, the tasks, what was asked, and what earlier pieces left in the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import InputError
from ..common.files import read_json
from ..data.forms import Form
from ..data.prompts import Prompt, group_by_question
from ..data.questions import Question
from ..engine.asking import Asker
from ..judging.asking import Asking
from ..methods import get_method
from ..model.anatomy import Anatomy
from ..results.answers import Answers
from ..results.neurons import NeuronSet
from ..results.scores import Scores
from ..runs.processes import Ranks
from .budget import Budget
from .quiet import quietly
from .request import CompareRequest
from .tasks import Task, one_form, sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORK = "work"  # the results of the pieces, one small JSON file each


@dataclass(eq=False)
class Setting:
    """A comparison under way in a folder."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    tasks: Mapping[str, Task]
    request: CompareRequest
    folder: Path
    ranks: Ranks
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)  # what a piece measured by the clock
    _askers: dict[tuple[str, bool], Asker] = field(default_factory=dict)
    _base: dict[tuple[str, bool], Answers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if 2 * self.k > (total := self.anatomy.n_neurons):
            raise InputError(
                f"k={self.k}: so many good and as many bad neurons are asked for, and the model has {total:,} FFN "
                f"neurons; give at most {total // 2}"
            )

    @cached_property
    def anatomy(self) -> Anatomy:
        return Anatomy.of(self.model)

    @cached_property
    def form(self) -> Form:
        return one_form(self.tasks, self.request.answers, self.request.length)

    @property
    def budget(self) -> Budget:
        return self.request.sizes

    @property
    def k(self) -> int:
        assert self.request.k is not None  # checked
        return self.request.k

    @property
    def seed(self) -> int:
        """Of splits, samples and random sets."""
        return self.request.seeds[0]

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.request.methods or ())

    @property
    def edits(self) -> tuple[str, ...]:
        return tuple(self.request.edits or ())

    # ---- asking: every method and edit is judged in the same words ----

    @cached_property
    def asking(self) -> Asking:
        questions = next(iter(self.tasks.values())).splits.test
        return Asking.of(questions, {}, "none", self.request.template, self.form.answers, self.length)

    @property
    def length(self) -> str | None:
        return None if self.form.answers == "letters" else self.form.length

    @property
    def words(self) -> dict[str, Any]:
        """The same, for `nl.evaluate` and its kind."""
        template = None if self.worded else self.asking.template or "default"
        return {"orders": "none", "template": template, "answers": self.form.answers, "length": self.length}

    @cached_property
    def worded(self) -> bool:
        """Whether the questions come in words of their own, which no template has a say in."""
        return next(iter(self.tasks.values())).splits.test[0].wording is not None

    def prompts(self, questions: list[Question]) -> list[Prompt]:
        return self.asking._replace(template=self.words["template"]).prompts(self.model, self.tokenizer, questions)

    def asker(self, task: str, elsewhere: bool = False) -> Asker:
        """Asks the test questions of a task; with `elsewhere` as many as are asked for edits of other tasks."""
        if (task, elsewhere) not in self._askers:
            questions = self.tasks[task].splits.test
            if elsewhere:
                questions = sample(questions, self.budget.elsewhere, self.seed)
            self._askers[task, elsewhere] = Asker(self.model, self.prompts(questions), self.request.batch_size)
        return self._askers[task, elsewhere]

    def answered(self, task: str) -> float:
        """Tokens that the answers of a prompt are read off, the mean: one of letters, a tree of texts."""
        prompts = self.asker(task).prompts
        return sum(len(prompt.tree.tokens) for prompt in prompts) / len(prompts)

    def base(self, task: str, elsewhere: bool = False) -> Answers:
        """How the unedited model answers them."""
        if (task, elsewhere) not in self._base:
            self._base[task, elsewhere] = self.asker(task, elsewhere)()
        return self._base[task, elsewhere]

    def judged(self, task: str) -> list[Prompt]:
        """The prompts on which exact effects are measured, one of a question."""
        prompts = self.prompts(sample(self.tasks[task].splits.search, self.budget.judged, self.seed))
        return [group[0] for group in group_by_question(prompts)]

    # ---- scoring ----

    def searched(self, task: str, method: str) -> list[Question]:
        """The questions that a method scores neurons on."""
        most = self.budget.expensive if get_method(method).expensive else None
        return sample(self.tasks[task].splits.search, most, self.seed)

    def positions(self, method: str) -> str:
        """Where a method scores."""
        return self.request.attribution(method).checked().positions or ""

    # ---- what earlier pieces left ----

    def place(self, *names: str) -> Path:
        """A path in the folder, whose parent is there."""
        path = self.folder.joinpath(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def result(self, *names: str) -> dict[str, Any]:
        """What the piece of work of this name found."""
        *above, last = names
        found: dict[str, Any] = read_json(self.folder.joinpath(WORK, *above), f"{last}.json", "comparison")
        return found

    def scores(self, task: str, method: str) -> Scores:
        return Scores.load(self.folder / "scores" / task / method)

    def found(self, task: str, method: str, most: int | None = None) -> NeuronSet:
        """The best and worst neurons of a method, `most` of each role: as many as were asked for, if not said."""
        neurons: NeuronSet = quietly(self.scores(task, method).find, most or self.k, most or self.k)
        return neurons

    def neurons(self, task: str, method: str, edit: str) -> NeuronSet:
        return NeuronSet.from_pretrained(self.folder / "sets" / task / method / edit)
