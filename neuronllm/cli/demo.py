"""`neuronllm demo`: find, steer, learn and judge on the bundled model, in one comparison that ends with its page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from ..common.env import first_process
from ..common.tables import print_table, show
from ..comparing.comparison import Comparison
from ..comparing.request import CompareRequest
from ..comparing.run import compared, read_tasks
from ..comparing.splits import SIDES, Splits
from ..comparing.tasks import Task
from ..data.loading import load_questions
from ..demo import DEMO, demo_task, demo_tasks
from ..model.loading import load_model
from ..page.page import PAGE
from ..runs.checkpoint import Interrupted, partial_folder

METHOD, TEMPLATE = "gradient", "plain"
EDITS = {
    "enhance": "good neurons doubled, bad ones silenced",
    "degrade": "the other way around",
    "tuned": "how many neurons and how hard, chosen on validation questions",
    "learned": "a factor for every neuron, by gradient descent on the search questions",
}
BUDGET = "quick,search=all,validation=all,test=all"  # all questions; little else costs time
COLUMNS = ("", "neurons", "accuracy", "change", "beats", "p", "verdict")


def demonstrate(
    output: str | os.PathLike[str], tasks: Sequence[str] | None = None, budget: str = BUDGET, progress: bool = True
) -> Comparison:
    """Compare the edits on the bundled tasks, leave the page and all numbers in a folder, and say what was found.

    An earlier demonstration is replaced, and one that was stopped goes on.

    >>> demonstrate("neuronllm-demo", ["facts"])   # doctest: +SKIP
    """
    names = list(tasks or demo_tasks())
    begun = partial_folder(output).exists()
    request = CompareRequest(
        methods=[METHOD],
        edits=list(EDITS),
        template=TEMPLATE,
        budget=budget,
        output=output,
        resume=begun,
        overwrite=not begun,
        progress=progress,
    ).checked()
    read = read_tasks({name: bundled(name) for name in names}, request)
    if first_process():
        print(f"Find, steer, learn and judge on the bundled model, {', '.join(names)}: a minute or two.", flush=True)
    model, tokenizer = load_model("demo")
    try:
        comparison = compared(model, tokenizer, read, request)
    except Interrupted as stop:
        raise Interrupted(f"{str(stop).partition(';')[0]}; the same command goes on") from stop
    if first_process():
        tell(comparison)
        print(f"\nThe page with all of it: {os.path.join(output, PAGE)}")
    return comparison


def bundled(name: str) -> Task:
    """A bundled task with its own splits."""
    search, validation, test = (load_questions(demo_task(name, side)) for side in SIDES)
    return Task(name, Splits(search, validation, test), {"all": f"{DEMO}{name}"})


def tell(comparison: Comparison) -> None:
    """What was found, on one screen."""
    data = comparison.data
    model, k = data["model"], data["made"]["settings"]["k"]
    print(f"\nA model of {model['layers']} layers, {model['neurons']:,} FFN neurons, scored by {METHOD}. The edits:")
    print("\n".join(f"  {edit:<8} {what}" for edit, what in EDITS.items()))
    asked = sum(task["questions"]["test"] for task in data["tasks"])
    title = f"\nWhat the {k} best and the {k} worst neurons do on {asked:,} questions that the search never saw:"
    print_table(title, COLUMNS, [row for task in data["tasks"] for row in _rows(data, task)])
    tested = sum(edit["neurons"] > 0 for edit in data["edits"])
    sets = next((edit["controls"]["count"] for edit in data["edits"] if edit["controls"]), 0)
    print(f"beats: of {sets} random sets, as large and in the same layers, those that do less of what it is for")
    print(f"shown: beyond the middle 95 % of these, and p < .05 (McNemar; Holm, for {tested} edits side by side)")
    agreements = [one["agreement"]["spearman"] for one in data["methods"]]
    print(f"\nThe scores rank neurons as silencing them does: correlation {show(min(agreements))}", end="")
    print(f" to {show(max(agreements))}.")
    first = data["tasks"][0]["name"]
    print("Methods side by side, here or with a model and tasks of yours:")
    print(f"  neuronllm compare --model demo --task {DEMO}{first} --methods gradient ace random --output DIR")
    if find_spec("plotly") is None:
        print("The page lacks its figures: they need plotly, pip install 'neuronllm[report]'.")


def _rows(data: dict[str, Any], task: dict[str, Any]) -> list[list[Any]]:
    """The task as it is, then its edits."""
    rows: list[list[Any]] = [[task["name"], "", task["base"]["accuracy"], "", "", "", ""]]
    for edit in data["edits"]:
        if edit["task"] == task["name"]:
            beats = f"{edit['controls']['place']:.0%}" if edit["controls"] else ""
            judged = [f"{edit['gain']:+.3f}", beats, edit["p_holm"]] if edit["neurons"] else [""] * 3
            verdict = edit["verdict"].partition(":")[0]
            rows.append([f"  {edit['edit']}", edit["neurons"], edit["accuracy"], *judged, verdict])
    return rows
