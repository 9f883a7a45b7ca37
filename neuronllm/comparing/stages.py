"""The pieces of work that a comparison is made of.

Each is a function of what was asked and of earlier pieces, and its result is one small JSON file, which is there whole
or not at all: whatever kills a run, the pieces that are done are not done again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.env import package_version
from ..methods import get_method
from .agreement import agreement, truth
from .cards import SHOWN, cards
from .edits import EDITS, sizes
from .judged import CURVES, curve, judged, unedited
from .making import TRIED_ON, TUNED_FACTORS, saved
from .scoring import scored

if TYPE_CHECKING:
    from ..data.prompts import Prompt
    from .setting import Setting

Work = Callable[["Setting"], dict[str, Any]]
# Passes of a whole prompt that scoring one is about worth: one back and forth; a few more of one token for each step.
BACKWARD, INTEGRAL, VOCABULARY = 3.0, 10.0, 8.0


class Stage(NamedTuple):
    """A piece of work: the names of its result, its cost in passes of a prompt (about), and what it does."""

    name: tuple[str, ...]
    cost: float
    work: Work
    together: bool = False  # all processes take part, as they must where neurons are scored or factors learned
    scratch: tuple[str, ...] = ()  # a folder that nobody needs when it is done

    @property
    def label(self) -> str:
        return " ".join(self.name)


def stages(setting: Setting) -> list[list[Stage]]:
    """All pieces; those of a list need only those of the lists before, and nothing of each other."""
    pairs = [(task, method) for task in setting.tasks for method in setting.methods]
    positions = {method: setting.positions(method) for method in setting.methods}
    wanted = sorted({positions[method] for method in setting.methods if not get_method(method).needs_answers})
    curves = [edit for edit in setting.edits if edit in CURVES]
    learned = [edit for edit in setting.edits if EDITS[edit].made == "learned"]
    others = [edit for edit in setting.edits if edit not in learned]
    cost = Cost(setting)
    return [
        [
            Stage(("scores", *pair), cost.scores(*pair), partial(_call, scored, pair), True, ("prompts", *pair))
            for pair in pairs
        ],
        [Stage(("tasks", task), cost.test(task), partial(_call, unedited, (task,))) for task in setting.tasks]
        + [
            Stage(("truth", task, where), cost.truth(task, where), partial(_call, truth, (task, where)))
            for task in setting.tasks
            for where in wanted
        ],
        [Stage(("agreement", *pair), cost.agreement(pair[1]), partial(_call, agreement, pair), True) for pair in pairs]
        + [_set(cost, (*pair, edit)) for pair in pairs for edit in others]
        + [Stage(("cards", task), cost.search(task), partial(_call, cards, (task,))) for task in setting.tasks],
        [_set(cost, (*pair, edit), together=True) for pair in pairs for edit in learned],
        [
            Stage(("edits", *pair, edit), cost.judged(pair[0]), partial(_call, judged, (*pair, edit)))
            for pair in pairs
            for edit in setting.edits
        ],
        [
            Stage(("curves", *pair, edit), cost.curve(pair[0]), partial(_call, curve, (*pair, edit)))
            for pair in pairs
            for edit in curves
        ],
    ]


def _set(cost: Cost, name: tuple[str, str, str], together: bool = False) -> Stage:
    task, _, edit = name
    return Stage(("sets", *name), cost.set(task, edit), partial(_call, saved, name), together)


def _call(work: Callable[..., dict[str, Any]], arguments: tuple[str, ...], setting: Setting) -> dict[str, Any]:
    return work(setting, *arguments)


class Cost:
    """About how many passes of a whole prompt every piece takes, for the bar and for the dry run."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.budget = setting, setting.budget
        self.n_neurons = setting.anatomy.n_neurons

    def test(self, task: str) -> float:
        return float(len(self.setting.tasks[task].splits.test))

    def search(self, task: str) -> float:
        return float(len(self.setting.tasks[task].splits.search))

    def one(self, method: str, positions: str) -> float:
        """Of the scores of one prompt."""
        how = get_method(method)
        if how.objective is None:
            return 1.0
        if how.expensive:
            return self.effects(self.n_neurons, positions)
        return INTEGRAL * self.answered if how.integrates else VOCABULARY if method == "logprob" else BACKWARD

    def effects(self, neurons: int, positions: str) -> float:
        """A neuron is silenced in the middle of the model on average, and at the answer for few tokens of a prompt."""
        return neurons / 2 if positions == "all" else neurons / 2 * self.answered / self.tokens

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self.setting.asker(next(iter(self.setting.tasks))).prompts

    @property
    def tokens(self) -> float:
        return sum(len(prompt.input_ids) for prompt in self.prompts) / len(self.prompts)

    @property
    def answered(self) -> float:
        return self.setting.answered(next(iter(self.setting.tasks)))

    def scores(self, task: str, method: str) -> float:
        questions = self.setting.searched(task, method)
        how, request = get_method(method), self.setting.request.attribution(method).checked(questions)
        orders = {"rotate": len(questions[0].choices), "shuffle3": 3}.get(request.orders or "", 1)
        templates = 1 if request.template is None or isinstance(request.template, str) else len(request.template)
        asked = len(questions) * orders * templates
        return asked * (self.one(how.name, request.positions or "") + 1)

    def truth(self, task: str, positions: str) -> float:
        judged = min(self.budget.judged, len(self.setting.tasks[task].splits.search))
        scored_here = [method for method in self.setting.methods if self.setting.positions(method) == positions]
        with_card = 2 * min(self.setting.k, SHOWN) * len(scored_here)
        answered = self.setting.answered(task)
        neurons = self.budget.neurons(self.n_neurons, judged, positions, answered) + with_card
        return judged * self.effects(min(self.n_neurons, neurons), positions)

    def agreement(self, method: str) -> float:
        if get_method(method).needs_answers:
            return 0.0
        return self.budget.judged * self.one(method, self.setting.positions(method))

    def set(self, task: str, edit: str) -> float:
        how, splits, k = EDITS[edit].made, self.setting.tasks[task].splits, self.setting.k
        if how == "tuned":
            points = 5 * len(sizes(k)) + 2 * (2 * len(TUNED_FACTORS) + 2 * len(sizes(k)))
            return float(points * len(splits.validation))
        if how == "verified":
            return min(TRIED_ON * self.budget.judged, len(splits.validation)) * self.effects(4 * k, "all")
        if how == "learned":
            request = self.setting.request
            one = 16 * (16 * BACKWARD + len(splits.validation))  # steps of so many questions
            return one * len(request.seeds) * (1 + 2 * request.learned_controls)
        return 0.0

    def judged(self, task: str) -> float:
        splits, most = self.setting.tasks, self.budget.elsewhere
        others = [len(splits[other].splits.test) for other in splits if other != task]
        return (1 + self.budget.controls) * self.test(task) + sum(min(n, most or n) for n in others)

    def curve(self, task: str) -> float:
        return (len(sizes(self.setting.k)) - 1) * (1 + self.budget.curve_controls) * self.test(task)


def versions() -> dict[str, str | None]:
    return {name: package_version(name) for name in ("neuronllm", "torch", "transformers", "numpy")}
