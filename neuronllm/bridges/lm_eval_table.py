"""lm-eval's own numbers of a model, of the model under an edit, and of the same edit of random neurons.

lm-eval runs its tasks once for each, and this puts them side by side: how far the edit moves a number, and how many
random sets of the same size in every block, edited the same way, move it as far. Where several numbers stand together,
their p-values are corrected for that (Holm).
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ..common.checks import integer
from ..common.errors import InputError
from ..common.statistics import holm
from ..common.tables import markdown_table, show
from ..engine.borrowed import borrowed
from ..judging.controls import among
from ..model.random_sets import random_like
from ..results.neurons import NeuronSet
from .lm_eval_tasks import SHOTS_SEED, Chat, find_tasks, line_of, need_lm_eval, set_shots

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .lm_eval_model import NeuronLM

BATCH = 8  # sequences, where nobody says how many
BOOTSTRAPS = 1000  # resamples of lm-eval's standard errors


class Value(NamedTuple):
    """A number of lm-eval's and its standard error, None where lm-eval gives none."""

    value: float
    stderr: float | None = None

    def __str__(self) -> str:
        return show(self.value) + ("" if self.stderr is None else f" ± {show(self.stderr)}")


@dataclass
class TaskRow:
    """One metric of one task."""

    task: str
    metric: str
    num_fewshot: int
    higher_is_better: bool | None
    base: Value
    edited: Value | None = None
    controls: dict[str, float] | None = None
    p: float | None = None
    p_holm: float | None = None


@dataclass
class TaskTable:
    """What lm-eval says of tasks: `print` shows it as a table.

    `p` is the share of the random sets, the edit itself counted among them, that move a number at least as far from
    that of the base model as the edit does.
    """

    rows: list[TaskRow]
    sets: int = 0
    edit: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        columns = ["task", "shots", "metric", "base"]
        if self.edit:
            columns.append("edited")
        if self.sets:
            columns += ["random sets", "percentile", "p", "p (Holm)"]
        lines = markdown_table(columns, [self._cells(row) for row in self.rows])
        return "\n".join([*lines, *self._notes()])

    def _cells(self, row: TaskRow) -> list[Any]:
        arrow = {True: " ↑", False: " ↓"}.get(row.higher_is_better, "")  # type: ignore[arg-type]
        cells = [row.task, str(row.num_fewshot), row.metric + arrow, str(row.base)]
        if row.edited is not None:
            cells.append(str(row.edited))
        if row.controls is not None:
            band = f"{show(row.controls['p2.5'])} to {show(row.controls['p97.5'])}"
            cells += [band, show(row.controls["percentile_of_edit"]), show(row.p), show(row.p_holm)]
        return cells

    def _notes(self) -> list[str]:
        if not self.sets:
            return []
        together = f"; {len(self.rows)} numbers are corrected together" * (len(self.rows) > 1)
        return [
            f"random sets: {self.sets} of as many neurons in every block, edited the same way, 95 % of them",
            f"p: how many move a number as far as the edit does, {show(1 / (1 + self.sets))} at the least{together}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self) | {"rows": [{**asdict(row), **_plain(row)} for row in self.rows]}


def _plain(row: TaskRow) -> dict[str, Any]:
    return {"base": row.base._asdict(), "edited": None if row.edited is None else row.edited._asdict()}


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Sequence[str] | Mapping[str, Any],
    neurons: NeuronSet | None = None,
    mode: str | None = None,
    good: float | None = None,
    bad: float | None = None,
    positions: str | None = None,
    controls: int = 20,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: str | PathLike[str] | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    progress: bool = True,
    chat: bool = False,
    fewshot_as_multiturn: bool = True,
) -> TaskTable:
    """lm-eval's numbers of tasks; with `neurons`, of the edited model beside the base model and random controls.

    Tasks are names of lm-eval's (or what its TaskManager loads), of any kind that it gives text. `num_fewshot`, `limit`
    (documents of a task) and `include_path` are as in its command line, chat and fewshot_as_multiturn as in
    `nl.load_task`, mode, good, bad and positions as in `nl.evaluate`.

    >>> print(nl.evaluate_tasks(model, tokenizer, ["arc_easy", "piqa"], neurons))   # doctest: +SKIP
    """
    need_lm_eval("evaluate_tasks")
    if integer(controls) is None or controls < 0:
        raise InputError(f"controls={controls!r}: give a whole number, 0 or more")
    if neurons is None and (mode, good, bad, positions) != (None, None, None, None):
        raise InputError("neurons=None: mode, good, bad and positions need a neuron set")
    loaded = dict(tasks) if isinstance(tasks, Mapping) else find_tasks(tasks, include_path)
    if chat:
        Chat.of(tokenizer, fewshot_as_multiturn)  # refuses a tokenizer without a template
    turns = {"apply_chat_template": True, "fewshot_as_multiturn": bool(fewshot_as_multiturn)} if chat else {}
    run = _Run(loaded, num_fewshot, limit, turns)
    # lm-eval gives a tokenizer a padding token where it has none, and puts the model into eval mode.
    settings: dict[str, Any] = {"tokenizer": copy.deepcopy(tokenizer), "batch_size": batch_size}
    with borrowed(model, attention=None):
        if neurons is None:
            from lm_eval.models.huggingface import HFLM

            return TaskTable(run(HFLM(model, **settings), BOOTSTRAPS, progress))

        from .lm_eval_model import NeuronLM

        neurons.warn_if_empty()
        lm = NeuronLM(model, neurons, mode, good, bad, positions, **settings)
        table = _side_by_side(lm, run, controls, seed, progress)
    table.edit |= neurons.steered_by(neurons.steering(mode, good, bad))
    return table


def _side_by_side(lm: NeuronLM, run: _Run, controls: int, seed: int, progress: bool) -> TaskTable:
    """The model without its edit, with it, and with the same edit of random neurons."""
    change = lm.change
    assert change is not None
    lm.change = None
    rows = run(lm, BOOTSTRAPS, progress)
    lm.change = change
    for row, edited in zip(rows, run(lm, BOOTSTRAPS, progress), strict=True):
        row.edited = edited.base
    generator = torch.Generator().manual_seed(seed)
    drawn: list[list[float]] = []
    for _ in tqdm(range(controls), desc="random sets", disable=not progress, unit="set", leave=False):
        lm.change = change._replace(ids=random_like(change.ids, lm.anatomy, generator))
        drawn.append([row.base.value for row in run(lm)])
    if drawn:
        _place(rows, [list(values) for values in zip(*drawn, strict=True)])
    return TaskTable(rows, controls, {"positions": change.positions, "neurons": len(change.ids)})


def _place(rows: Sequence[TaskRow], drawn: Sequence[Sequence[float]]) -> None:
    """Where every number of the edit stands among those of random sets."""
    for row, values in zip(rows, drawn, strict=True):
        assert row.edited is not None
        row.controls = among(values, row.edited.value)
        moved = abs(row.edited.value - row.base.value)
        row.p = (1 + sum(abs(value - row.base.value) >= moved for value in values)) / (1 + len(values))
    corrected = holm([row.p for row in rows if row.p is not None])
    for row, value in zip(rows, corrected, strict=True):
        row.p_holm = value


class _Run:
    """The same tasks, loaded once, run by lm-eval again and again with the same demonstrations."""

    def __init__(
        self, loaded: dict[str, Any], num_fewshot: int | None, limit: int | None, turns: dict[str, bool]
    ) -> None:
        self.loaded, self.limit, self.turns = loaded, limit, turns
        for name, task in loaded["tasks"].items():
            set_shots(name, task, num_fewshot)

    def __call__(self, lm: Any, bootstraps: int = 0, progress: bool = False) -> list[TaskRow]:
        """The numbers of a model, as `base` of their rows; standard errors where there are bootstraps."""
        from lm_eval.evaluator import evaluate

        for task in self.loaded["tasks"].values():
            task.set_fewshot_seed(SHOTS_SEED)
        try:
            with nullcontext() if progress else redirect_stderr(io.StringIO()):  # its bars cannot be switched off
                said = evaluate(
                    lm, self.loaded, limit=self.limit, bootstrap_iters=bootstraps, log_samples=False, **self.turns
                )
        except ValueError as error:  # a task that shows images, or runs code
            raise InputError(f"lm-eval does not run these tasks: {line_of(error)}") from error
        return _rows(said)


def _rows(said: Any) -> list[TaskRow]:
    """The numbers of every task, in lm-eval's order; of a group also those of the whole."""
    rows = []
    for task, told in said["results"].items():
        better = said.get("higher_is_better", {}).get(task, {})
        shots = said.get("n-shot", {}).get(task, 0)
        for key, value in told.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            stderr = told.get(f"{metric}_stderr,{filtered}")
            error = float(stderr) if isinstance(stderr, (int, float)) else None
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            rows.append(TaskRow(task, name, shots, better.get(metric), Value(float(value), error)))
    return rows
