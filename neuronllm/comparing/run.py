"""`nl.compare`: every method and every edit on every task, in one call that may be killed and goes on where it was.

While it is under way, OUTPUT.partial holds compare.json (what decides the bytes of the result) and the results of the
pieces of work (stages.py). At the end comparison.json is put together, and the folder takes the place of OUTPUT.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from ..common.errors import InputError
from ..common.files import clear_aside, read_json, take_place, write_json
from ..model.bridged import plain_model
from ..model.identity import identity
from ..page.page import PAGE, write_page
from ..runs.checkpoint import Interrupted, partial_folder
from ..runs.processes import Ranks
from ..runs.provenance import check_same, weights_hash
from .assembly import assembled, plain
from .budget import Budget
from .comparison import TIMINGS, Comparison
from .dry_run import seconds_a_pass
from .progress import Bar
from .request import COMPARISON, MANIFEST, CompareRequest
from .setting import WORK, Setting
from .stages import Stage, stages, versions
from .tasks import Task, as_tasks, check_split_by, one_form, warn_if_seen

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEPT = {COMPARISON, TIMINGS, MANIFEST, PAGE, "sets"}
FEW = 8  # prompts of every task that are asked to estimate the time left, until a piece of work is done
CLOCK = "clock"  # seconds of the pieces, which decide no byte of comparison.json


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Any],
    methods: Sequence[str] | None = None,
    *,
    edits: Sequence[str] | None = None,
    preset: str | None = None,
    k: int | None = None,
    answers: str | None = None,
    length: str | None = None,
    positions: str | None = None,
    edit_positions: str | None = None,
    orders: str | None = None,
    template: str | Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    budget: str | Budget = "standard",
    controls: int | None = None,
    learned_controls: int = 0,
    split_by: str = "id",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int | str = "auto",
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Comparison:
    """Compare methods and edits on tasks: cost, agreement with exact effects, stability, and what every edit is worth.

    tasks: names, each with one source of questions, which is split here (`split_by` "id" or "subject"; no item is on
    two sides), or with three: to search on, to choose on, to judge on. A source is a file or a list of questions.
    methods: as of `nl.attribute`; by default gradient, relp, ace, qrnca, knowledge and random. edits: of "enhance"
    (good x2, bad x0), "degrade" (good x0, bad x2), "good" (good x2 alone), "bad" (bad x0 alone), "suppress" (good x0
    alone), "tuned", "verified" and "learned"; by default enhance, degrade and tuned. k: neurons of a role. preset:
    "neuronllm", "qrnca" or "knowledge" sets what is not given as its paper does; `data["made"]["unknown"]` says what of
    it is not known.

    positions: where to score; by default each method's own. edit_positions: where to edit; by default where the neurons
    were found. answers, length, orders, template, batch_size: as of `nl.attribute`; all edits are judged in the same
    words. options: of methods, such as {"ace": {"steps": 8}}. seeds: the first is that of splits, samples and random
    sets; stability is the mean over all of them, and learning takes as many trainings.

    budget: "quick", "standard", "thorough", or a `Budget`: how many questions, exact effects and random sets; other
    sizes stand behind the name ("quick,test=all"). Where all neurons' exact effects would cost more, a sample's are
    measured. controls: random sets beside every edit, edited the same way; learned_controls: random sets learned the
    same way as learned ones.

    output: a folder for report.html, comparison.json, timings.json and the neuron sets. A run that was stopped or
    killed goes on with resume=True, and ends with the same comparison.json to the byte. Inside torch.distributed
    (torchrun) every process calls this alike, and they share the work.

    >>> files = {name: [nl.demo_task(name, split) for split in ("search", "validation", "test")] for name in ("facts",)}
    >>> comparison = nl.compare(model, tokenizer, files, ["gradient", "ace"], output="comparison")  # doctest: +SKIP
    >>> comparison.print()                                                                           # doctest: +SKIP
    """
    request = CompareRequest(
        methods=methods,
        edits=edits,
        preset=preset,
        k=k,
        answers=answers,
        length=length,
        positions=positions,
        edit_positions=edit_positions,
        orders=orders,
        template=template,
        seeds=seeds,
        budget=budget,
        controls=controls,
        learned_controls=learned_controls,
        split_by=split_by,
        options=options or {},
        batch_size=batch_size,
        output=output,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )
    with Ranks.here() as ranks, ranks.together():
        request = request.checked()
        read = read_tasks(tasks, request)
    return compared(model, tokenizer, read, request)


def read_tasks(tasks: Mapping[str, Any], request: CompareRequest) -> dict[str, Task]:
    """The tasks of a request that was checked, within its budget, after refusing what cannot be compared."""
    read = as_tasks(tasks, request.seeds[0], request.split_by)
    read = {name: task.within(request.sizes, request.seeds[0]) for name, task in read.items()}
    one_form(read, request.answers, request.length)
    check_split_by(read, request.split_by)
    warn_if_seen(read)
    for method in request.methods or ():
        request.attribution(method).checked(next(iter(read.values())).splits.search)
    return read


def compared(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Mapping[str, Task],
    request: CompareRequest,
) -> Comparison:
    """What `compare` does, with a checked request and its tasks."""
    if request.output is None:
        with Ranks.here() as ranks, tempfile.TemporaryDirectory() as folder:
            shared = Path(ranks.gather(folder)[0])  # of the first process
            found = _compared(model, tokenizer, tasks, request, shared / "comparison", ranks)
            ranks.wait()
        return Comparison(found.data, found.timings)
    with Ranks.here() as ranks:
        return _compared(model, tokenizer, tasks, request, Path(request.output), ranks)


def _compared(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Mapping[str, Task],
    request: CompareRequest,
    target: Path,
    ranks: Ranks,
) -> Comparison:
    with ranks.together():
        folder = partial_folder(target)
        setting = Setting(plain_model(model), tokenizer, tasks, request, folder, ranks)
        done = _begin(setting, target)
    if not done:
        work(setting)
        with ranks.together():
            if ranks.first:
                _finish(setting, target)
    ranks.wait()
    return Comparison.load(target)


def _begin(setting: Setting, target: Path) -> bool:
    """Make the folder, or take up what is there; whether nothing is left to do."""
    folder, ranks, settings = setting.folder, setting.ranks, json.loads(json.dumps(settings_of(setting)))
    ranks.agree(lambda: settings)
    for place in (folder, target):
        if setting.request.resume and (place / MANIFEST).is_file():
            begun = read_json(place, MANIFEST, "comparison")
            check_same(begun, settings, f"output {place}: the comparison was begun with")
            if not (place / COMPARISON).is_file():
                return False
            if ranks.first and place == folder:
                _settle(folder, target)
            return True
    if ranks.first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"output {folder}: cannot be made: {error.strerror}") from error
        write_json(folder / MANIFEST, settings)
    return False


def settings_of(setting: Setting) -> dict[str, Any]:
    """All that decides the bytes of the result."""
    return {
        **setting.request.settings(),
        **identity(setting.model),
        "weights": weights_hash(setting.model),
        "tasks": {name: task.settings() for name, task in setting.tasks.items()},
        "device": setting.model.device.type,
        "processes": setting.ranks.size,
        "versions": versions(),
    }


def work(setting: Setting) -> None:
    """Do all pieces that are not done yet; several processes share them."""
    ranks, phases = setting.ranks, stages(setting)
    pieces = [stage for phase in phases for stage in phase]
    done = set(map(tuple, ranks.gather([stage.name for stage in pieces if _result(setting, stage).is_file()])[0]))
    total = sum(stage.cost for stage in pieces) or 1.0
    before = sum(stage.cost for stage in pieces if stage.name in done)
    show = setting.request.progress and ranks.first
    with ranks.together():
        a_pass = seconds_a_pass(setting, FEW) / ranks.size if show else None
    with Bar(total, before, a_pass, show) as bar:
        try:
            for phase in phases:
                left = [stage for stage in phase if stage.name not in done]
                for number, stage in enumerate(left):
                    if stage.together or number % ranks.size == ranks.rank:
                        bar.set_description_str(stage.label)
                        with ranks.together() if stage.together else nullcontext():
                            _do(setting, stage)
                    bar.update(stage.cost)
                    done.add(stage.name)
                ranks.wait()
        except KeyboardInterrupt as stop:
            if setting.request.output is None:
                raise
            said = (
                f"interrupted, {len(done)} of {len(pieces)} pieces of work are done; go on with resume=True (--resume)"
            )
            raise Interrupted(said) from stop


def _do(setting: Setting, stage: Stage) -> None:
    """A piece of work, and its result on the disk; of one done together the first process writes it."""
    start = perf_counter()
    try:
        found = stage.work(setting)
    except InputError as error:
        raise InputError(f"{stage.label}: {error}") from error
    if not stage.together or setting.ranks.first:
        measured = setting.seconds.pop(stage.label, None)
        took = {"seconds": perf_counter() - start, "measured": measured}
        write_json(setting.place(CLOCK, *stage.name[:-1], f"{stage.name[-1]}.json"), took)
        path = _result(setting, stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
        if stage.scratch:
            shutil.rmtree(setting.folder.joinpath(*stage.scratch), ignore_errors=True)


def _result(setting: Setting, stage: Stage) -> Path:
    return setting.folder.joinpath(WORK, *stage.name[:-1], f"{stage.name[-1]}.json")


def _finish(setting: Setting, target: Path) -> None:
    """Put all results together, and the folder in the place of OUTPUT."""
    with torch.inference_mode(False):
        data = assembled(setting)
    write_json(setting.folder / TIMINGS, timings(setting))
    write_json(setting.folder / COMPARISON, data, indent=None)
    _settle(setting.folder, target)


def timings(setting: Setting) -> dict[str, Any]:
    """What was measured by the clock; nothing of scores that were taken up again in the middle."""
    clock = setting.folder / CLOCK
    kinds = {
        kind.name: sum(json.loads(path.read_text())["seconds"] for path in sorted(kind.rglob("*.json")))
        for kind in sorted(clock.iterdir())
    }
    methods: dict[str, dict[str, Any]] = {method: {} for method in setting.methods}
    for method, of_tasks in methods.items():
        for task in setting.tasks:
            measured = read_json(clock / "scores" / task, f"{method}.json", "comparison")["measured"]
            if measured is not None:
                ratio = measured["seconds"] / measured["inference"] if measured["inference"] else None
                of_tasks[task] = {**measured, "ratio": ratio}
    found: dict[str, Any] = plain({"methods": methods, "stages": kinds, "total_seconds": sum(kinds.values())})
    return found


def _settle(folder: Path, target: Path) -> None:
    """The last steps of a comparison that is written, which may have been cut short at any of them."""
    if not (folder / PAGE).is_file():
        write_page(folder)
    for path in folder.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    take_place(folder, target)
    clear_aside(target)
