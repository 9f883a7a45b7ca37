"""What a comparison would do, and about how long it would take, without doing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ..engine.asking import Asker
from ..methods import get_method
from ..model.bridged import plain_model
from ..runs.checkpoint import partial_folder
from ..runs.processes import Ranks
from .request import CompareRequest
from .setting import WORK, Setting
from .splits import SIDES
from .stages import Stage, stages
from .tasks import Task, shared

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ASKED = 32  # prompts of every task, at most, that are asked to see how long a pass takes


def planned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Mapping[str, Task],
    request: CompareRequest,
) -> str:
    """The work in a few lines; with resume=True also how much of it is left."""
    folder = partial_folder(request.output) if request.output is not None else Path()
    with Ranks.here() as ranks, ranks.together():
        setting = Setting(plain_model(model), tokenizer, tasks, request, folder, ranks)
        pieces = [stage for phase in stages(setting) for stage in phase]
        a_pass = seconds_a_pass(setting)
        lines = [f"{setting.anatomy.describe()}: {setting.anatomy.n_neurons} neurons", *_tasks(setting)]
        lines += [*_truths(setting), *_pieces(setting, pieces, a_pass)]
        if unknown := request.unknown:
            lines += [f"preset {request.preset}: its paper does not say, so that this stands in:"]
            lines += [f"  {one}" for one in unknown]
    return "\n".join(lines)


def seconds_a_pass(setting: Setting, most: int = ASKED) -> float:
    """Of a prompt among others, as they are asked for the judgement: the mean over the tasks, measured."""
    found = []
    for task in setting.tasks:
        prompts = setting.asker(task).prompts[:most]
        ask = Asker(setting.model, prompts, setting.request.batch_size)
        ask()  # the first call finds out how the model may be asked
        start = perf_counter()
        ask()
        found.append((perf_counter() - start) / len(prompts))
    return sum(found) / len(found)


def _tasks(setting: Setting) -> list[str]:
    lines = []
    twice = shared(setting.tasks)
    for name, task in setting.tasks.items():
        sizes = ", ".join(f"{len(getattr(task.splits, side))} {side}" for side in SIDES)
        split = "" if task.splits.how == "given" else f", split {task.splits.how}"
        lines.append(f"task {name}: {sizes} questions{split}; answered in {setting.form.answers}")
        lines += [f"  {one['said']}" for one in twice[name]]
    return lines


def _truths(setting: Setting) -> list[str]:
    """Of how many neurons the exact effects are measured."""
    total, lines = setting.anatomy.n_neurons, []
    judged = min(setting.budget.judged, *(len(task.splits.search) for task in setting.tasks.values()))
    where = {setting.positions(method) for method in setting.methods if not get_method(method).needs_answers}
    answered = max(setting.answered(task) for task in setting.tasks)
    for positions in sorted(where):
        count = setting.budget.neurons(total, judged, positions, answered)
        which = "all neurons" if count == total else f"a sample of {count} neurons"
        lines.append(
            f"exact effects at positions {positions}: of {which}, on {judged} question{'s' * (judged > 1)} of each task"
        )
    return lines


def _pieces(setting: Setting, pieces: list[Stage], a_pass: float) -> list[str]:
    done = {stage for stage in pieces if _is_done(setting, stage)}
    lines = [f"{len(pieces)} pieces of work, {len(done)} of them done"] if done else [f"{len(pieces)} pieces of work"]
    kinds = Counter(stage.name[0] for stage in pieces)
    for kind, count in kinds.items():
        cost = sum(stage.cost for stage in pieces if stage.name[0] == kind and stage not in done)
        lines.append(f"  {kind}: {count}, about {cost:,.0f} passes of a prompt")
    seconds = a_pass * sum(stage.cost for stage in pieces if stage not in done) / setting.ranks.size
    shown = f"{seconds / 60:,.0f} minutes" if seconds >= 90 else f"{seconds:,.0f} seconds"
    lines.append(f"  time: roughly {shown} in all, at {1000 * a_pass:.2f} ms a pass as this machine is now")
    return lines


def _is_done(setting: Setting, stage: Stage) -> bool:
    path = setting.folder.joinpath(WORK, *stage.name[:-1], f"{stage.name[-1]}.json")
    return setting.request.resume and path.is_file()
