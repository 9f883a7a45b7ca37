"""`neuronllm demo`: the whole way on the bundled model, every claim on questions that the search never saw.

For each task: score all neurons on the search questions, compare every method with the exact effects, tune on the
validation questions, and judge base, enhanced, degraded and tuned model on the test questions beside random sets.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..attribution.driver import attribute
from ..common.files import check_new_folder, new_folder, write_json
from ..common.statistics import spearman
from ..data.loading import load_questions
from ..data.questions import Question
from ..data.rendering import render
from ..engine.asking import Asker, Edit
from ..judging.evaluate import evaluate
from ..model.loading import load_model
from ..model.random_sets import random_like
from ..results.factors import FACTORS
from ..results.neurons import NeuronSet
from ..results.pictures import curves_figure, require_matplotlib
from ..results.scores import Scores
from ..steering.learn import learn
from ..steering.tune import tune
from . import demo_task, demo_tasks
from .report import Task, markdown, print_summary, print_task, record

TEMPLATE = "plain"
MARK = "neuronllm-demo.json"
FOUND = 64  # neurons of each role
KS = (4, 16, 64)  # sizes that tuning tries
CURVE = (1, 4, 16, 64)
METHODS = ("gradient", "relp", "neurgrad", "ace", "qrnca", "knowledge", "logprob", "activation", "random")
JUDGED_PROMPTS = 8
RANDOM_CURVES = 3
RETAINED = 12  # questions of every other task that learning is to leave alone


def run_demo(
    output: str | os.PathLike[str] = "neuronllm-demo", tasks: Sequence[str] | None = None, progress: bool = True
) -> None:
    """Run the demonstration and leave tables, plots, scores and neuron sets in a folder.

    >>> run_demo("neuronllm-demo", tasks=["facts"])   # doctest: +SKIP
    """
    require_matplotlib()
    check_new_folder(output, MARK)
    names = list(tasks or demo_tasks())
    for name in names:
        demo_task(name)
    model, tokenizer = load_model("demo", dtype=torch.float32)  # a CPU computes it faster than bfloat16
    done = []
    with new_folder(output, MARK) as folder:
        for name in names:
            task = _task(model, tokenizer, name, progress)
            print_task(task)
            task.scores.save(folder / name / "scores")
            task.neurons.save_pretrained(folder / name / "neurons")
            task.tuned.save_pretrained(folder / name / "tuned")
            task.learned.save_pretrained(folder / name / "learned")
            task.scores.plot(f"{name}: score of every neuron").savefig(folder / f"{name}-neurons.png", dpi=120)
            _accuracy_figure(task).savefig(folder / f"{name}-accuracy.png", dpi=120)
            done.append(task)
        write_json(folder / MARK, {task.name: record(task, CURVE) for task in done})
        (folder / "README.md").write_text(markdown(done), encoding="utf-8")
    print_summary(done)
    print(f"Tables, plots, scores and neuron sets are in {output}/")


def _task(model: Any, tokenizer: Any, name: str, progress: bool) -> Task:
    print(f"\n{name}")
    search, validation, test = (load_questions(demo_task(name, split)) for split in ("search", "validation", "test"))
    scores = attribute(model, tokenizer, search, "gradient", positions="all", template=TEMPLATE, progress=progress)
    neurons = _quietly(scores.find, FOUND, FOUND)
    faithfulness = _faithfulness(model, tokenizer, search, progress)
    tuned = tune(model, tokenizer, neurons, validation, ks=KS, template=TEMPLATE, progress=progress)
    others = [load_questions(demo_task(other, "validation"), limit=RETAINED) for other in demo_tasks() if other != name]
    given: dict[str, Any] = {"template": TEMPLATE, "retain": [question for some in others for question in some]}
    learned = learn(model, tokenizer, search, validation, neurons=neurons, **given, progress=progress)
    judged = {"tuned": (tuned, "tuned"), "learned": (learned, None)}
    reports = {}
    for mode in ("base", "enhance", "degrade", "tuned", "learned"):
        chosen, how = judged.get(mode, (neurons.top(KS[1], KS[1]), mode))
        reports[mode] = _quietly(
            evaluate,
            model,
            tokenizer,
            test,
            None if mode == "base" else chosen,
            mode=None if mode == "base" else how,
            template=TEMPLATE,
            progress=progress,
        )
    return Task(name, scores, neurons, tuned, learned, reports, faithfulness, _curves(model, tokenizer, test, neurons))


def _accuracy_figure(task: Task) -> Any:
    """Test accuracy against the number of edited neurons, beside the range of random sets."""
    bands = list(zip(task.curves["random low"], task.curves["random high"], strict=True))
    curves = [
        {
            "task": task.name,
            "method": "gradient",
            "edit": f"{mode} (good x{good:g}, bad x{bad:g})",
            "points": [
                {"k": k, "accuracy": accuracy, "controls": {"band": band}}
                for k, accuracy, band in zip(CURVE, task.curves[mode], bands, strict=True)
            ],
        }
        for mode, (good, bad) in FACTORS.items()
    ]
    return curves_figure(curves, {task.name: task.reports["base"].accuracy})


def _quietly(call: Any, *args: Any, **kwargs: Any) -> Any:
    """The tables say what these warnings say: too few neurons, a letter collapse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call(*args, **kwargs)


def _faithfulness(model: Any, tokenizer: Any, questions: list[Question], progress: bool) -> dict[str, float]:
    """Mean over prompts of each method's rank correlation with the exact effects, at the answer position."""
    step = max(1, len(questions) // JUDGED_PROMPTS)
    prompts = render(tokenizer, questions[::step][:JUDGED_PROMPTS], "none", TEMPLATE)
    exact = attribute(model, None, prompts, "exact", positions="answer", keep="all", progress=progress)
    found = {}
    for method in METHODS:
        scores = attribute(model, None, prompts, method, positions="answer", keep="all", progress=False)
        pairs = zip(_rows(scores), _rows(exact), strict=True)
        found[method] = float(np.mean([spearman(mine, truth) for mine, truth in pairs]))
    return found


def _rows(scores: Scores) -> np.ndarray:
    assert scores.per_prompt is not None  # keep="all"
    return scores.per_prompt[:].numpy()


def _curves(model: Any, tokenizer: Any, test: list[Question], neurons: NeuronSet) -> dict[str, list[float]]:
    """Test accuracy by the number of neurons, enhanced, degraded, and with random neurons in their place."""
    ask = Asker(model, render(tokenizer, test, "none", TEMPLATE), "auto")
    generator = torch.Generator().manual_seed(0)
    curves: dict[str, list[float]] = {name: [] for name in ("enhance", "degrade", "random low", "random high")}
    for k in CURVE:
        subset, drawn = neurons.top(k, k), []
        for mode in FACTORS:
            change = Edit(*subset.edits(model, subset.steering(mode)), "all")
            curves[mode].append(ask(change).accuracy)
            for _ in range(RANDOM_CURVES):
                drawn.append(ask(change._replace(ids=random_like(change.ids, ask.anatomy, generator))).accuracy)
        curves["random low"].append(min(drawn))
        curves["random high"].append(max(drawn))
    return curves
