"""Suite `quality`: how faithful the methods' scores are, what they cost, and whether steering by them does anything.

`faithfulness` compares every method with what silencing each neuron really does, prompt by prompt: in rank over all
neurons, and in the neurons at both ends. `steering` finds neurons of the bundled model on the search questions of a
task and edits them on its test questions, beside random sets of as many neurons in each layer. Both go to
docs/leaderboard.md.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.common.statistics import spearman
from neuronllm.demo import demo_task, demo_tasks
from neuronllm.engine import open_engine
from neuronllm.engine.asking import Asker, Edit
from neuronllm.methods import METHODS
from neuronllm.model.anatomy import Anatomy
from neuronllm.select import extremes

from . import plain
from .fixture import OBJECTIVE
from .harness import Benchmark, Case, Check, Choice, Comparison, Setup, Side, relative
from .methods import TRUTH, judged, score
from .methods import agreement as every_method
from .shapes import SHAPES, random_model, random_prompts, twin

DEMO, TEMPLATE = "demo", "plain"
RANDOM_PROMPTS = "random prompts"  # the one task of a random model
JUDGED = 8  # prompts of a task that are compared with the exact effects
KS = (10, 100)
COSTED = {TRUTH: 4}  # prompts of a timed run, where fewer than BATCH
BATCH = 32
ASKED = 64  # prompts of a run of inference
SAMPLE = 64  # neurons whose effects the reference engine computes too
STEERED = 16  # neurons of each role
MODES = ("degrade", "enhance")
EVERYWHERE = "gradient, all positions"  # the recipe of the demonstration, beside all methods at the answer position


# ---- faithfulness ----


class Subject:
    """A model and prompts for it, by task."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        if setup.shape == DEMO:
            self.model, tokenizer = nl.load_model(DEMO, dtype=torch.float32)
            self.model.requires_grad_(False)
            self.name = f"the bundled model, {Anatomy.of(self.model).describe()}"
            asked = {task: nl.load_questions(demo_task(task, "search")) for task in demo_tasks()}
            self.tasks = {task: nl.render(tokenizer, _spread(some), "none", TEMPLATE) for task, some in asked.items()}
            self._pool = _of_one_length(nl.render(tokenizer, asked[demo_tasks()[0]], "rotate", TEMPLATE))
        else:
            self.model = random_model(SHAPES[setup.shape], setup.device, setup.seed)
            self.name = f"random weights, {SHAPES[setup.shape]}"
            self.tasks = {RANDOM_PROMPTS: random_prompts(SHAPES[setup.shape], JUDGED, setup.seed)}
            self._pool = []
        self.model = self.model.to(setup.device)
        self.anatomy = Anatomy.of(self.model)

    def timed(self, turn: int, count: int) -> list[nl.Prompt]:
        """Prompts of one length for a run that is timed."""
        if not self._pool:
            return random_prompts(SHAPES[self.setup.shape], count, self.setup.seed + 1 + turn)
        start = turn * count % len(self._pool)
        return (self._pool[start:] + self._pool * -(-count // len(self._pool)))[:count]


def _spread(questions: Sequence[Any]) -> list[Any]:
    return list(questions[:: max(1, len(questions) // JUDGED)][:JUDGED])


def _of_one_length(prompts: Sequence[nl.Prompt]) -> list[nl.Prompt]:
    """The prompts of the length that most have."""
    by_length: dict[int, list[nl.Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_length[len(prompt.input_ids)].append(prompt)
    return max(by_length.values(), key=len)


def faithfulness(setup: Setup) -> Case:
    """Every method beside the exact effects, and its time a prompt beside inference."""
    subject = Subject(setup)
    case = Case(sides=[], check=partial(_effects_are_right, subject), views=[])
    prompts = subject.timed(0, BATCH)
    engine = case.stack.enter_context(open_engine(subject.model, subject.anatomy, prompts))
    case.sides = [_inference(subject)]
    for name in (*judged(), TRUTH):
        count = COSTED.get(name, BATCH)
        run = partial(score, name, engine)
        case.sides.append(Side(name, lambda turn, count=count: (subject.timed(turn, count),), run, work=count))
        case.views.append(Comparison(name, "inference", "inference", name, "cost"))
    case.facts = lambda peaks: _faithful(subject)
    case.settings = {"model": subject.name, "neurons": subject.anatomy.n_neurons, "prompts": JUDGED}
    case.settings |= {"tokens": len(prompts[0].input_ids), "engine": engine.name}
    case.notes = [f"Agreement: mean over {JUDGED} prompts a task, answer position, each method with its own objective"]
    return case


def _inference(subject: Subject) -> Choice:
    """Plain inference at the best batch size, on a model of its own."""
    model = twin(subject.model)

    def side(batch: int) -> Side:
        def inputs(turn: int) -> tuple[Any, ...]:
            return plain.tensors(subject.timed(turn, ASKED), subject.setup.device)[:1]

        return Side(f"batch {batch}", inputs, lambda ids: plain.inference(model, ids, batch), work=ASKED)

    return Choice("inference", [side(batch) for batch in (8, 16, 32, ASKED)])


def _effects_are_right(subject: Subject) -> list[Check]:
    """What all methods are measured by, and every method itself, beside the reference engine in float64.

    Ours may be off by twice what float32 costs the reference: the effect of one neuron is a small difference.
    """
    prompts, n = next(iter(subject.tasks.values()))[:2], subject.anatomy.n_neurons
    few = torch.randperm(n, generator=torch.Generator().manual_seed(subject.setup.seed))[:SAMPLE]
    with open_engine(subject.model, subject.anatomy, prompts) as engine:
        found = engine.effects(prompts, OBJECTIVE).cpu()
    with open_engine(subject.model, subject.anatomy, prompts, dtype=torch.float64) as engine:
        wide = engine.effects(prompts, OBJECTIVE).cpu()
    with open_engine(subject.model, subject.anatomy, prompts, "reference", dtype=torch.float64) as engine:
        right = engine.effects(prompts, OBJECTIVE, ids=few).cpu()
        truth = {name: score(name, engine, prompts) for name in judged()}
    with (
        open_engine(subject.model, subject.anatomy, prompts) as fast,
        open_engine(twin(subject.model), subject.anatomy, prompts, "reference") as engine,
    ):
        plainly = engine.effects(prompts, OBJECTIVE, ids=few).cpu()
        others = every_method(fast, engine, prompts, judged(), truth)
    off = relative(plainly, right)
    same = min(spearman(*rows) for rows in zip(found.numpy(), wide.numpy(), strict=True))
    return [
        Check("effects of the reference: relative difference from float64", off, 1e-2),
        Check("effects: relative difference from float64", relative(found[:, few], right), max(1e-3, 2 * off)),
        Check("effects: Spearman with float64", same, 0.99, at_least=True),
        *others,
    ]


def _faithful(subject: Subject) -> dict[str, Any]:
    columns = {"task": "text", "method": "text", "Spearman": "number"}
    columns |= {f"{end} {k}": "number" for k in KS for end in ("highest", "lowest")}
    rows = []
    for task, prompts in subject.tasks.items():
        truth = _rows(subject.model, prompts, TRUTH)
        for name in judged():
            rows.append([task, name, *agreement(_rows(subject.model, prompts, name), truth)])
    return {"columns": columns, "rows": rows}


def _rows(model: Any, prompts: list[nl.Prompt], method: str) -> Tensor:
    kept = _quietly(
        nl.attribute, model, None, prompts, method, positions="answer", keep="all", progress=False
    ).per_prompt
    return torch.as_tensor(kept[:])


def agreement(found: Tensor, truth: Tensor) -> list[float | None]:
    """Spearman, then for each k the overlap at the highest and at the lowest end; means over the rows.

    >>> agreement(torch.arange(200.0)[None], torch.arange(200.0)[None])
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    pairs = list(zip(found, truth, strict=True))
    figures: list[list[float]] = [[spearman(a.numpy(), b.numpy()) for a, b in pairs]]
    for k in KS:
        for largest in (True, False):
            figures.append([overlap(a, b, k, largest) for a, b in pairs])
    means = [float(np.mean(values)) for values in figures]
    return [None if mean != mean else round(mean, 6) for mean in means]


def overlap(found: Tensor, truth: Tensor, k: int, largest: bool) -> float:
    """The share of the k highest (or lowest) values that two arrays have at the same places; NaN if k is all of them.

    >>> overlap(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 7.0, 8.0]), 2, largest=True)
    0.5
    """
    if k >= len(found):
        return float("nan")
    ends = [extremes(x, largest=k, smallest=k) for x in (found, truth)]
    first, second = (set((end.largest if largest else end.smallest).indices.tolist()) for end in ends)
    return len(first & second) / k


# ---- steering ----


def steering(setup: Setup) -> Case:
    """Accuracy on held-out questions with neurons edited, beside random sets; nothing is timed."""
    model, tokenizer = nl.load_model(DEMO, dtype=torch.float32)
    case = Case(sides=[], check=partial(_edits_are_right, model, tokenizer), views=[], timed=False)
    case.facts = lambda peaks: steered(model, tokenizer, demo_tasks(), [*METHODS, EVERYWHERE])
    case.settings = {"model": f"the bundled model, {Anatomy.of(model).describe()}", "neurons": STEERED}
    case.notes = [
        "Scored on the search questions in every order, answer position; edited at all positions on the test questions",
        f"{STEERED} good and {STEERED} bad neurons; degrade: x0 and x2, enhance: x2 and x0; 20 random sets each",
    ]
    return case


def _edits_are_right(model: Any, tokenizer: Any) -> list[Check]:
    """The live edit against a copy of the model whose weights were scaled by hand."""
    questions = nl.load_questions(demo_task(demo_tasks()[0], "test"), limit=8)
    prompts = nl.render(tokenizer, questions, "none", TEMPLATE)
    anatomy = Anatomy.of(model)
    ids = torch.randperm(anatomy.n_neurons, generator=torch.Generator().manual_seed(0))[:32]
    factors = torch.tensor([0.0, 2.0], dtype=torch.float64).repeat(16)
    by_hand = copy.deepcopy(model)
    layers, _, indices = anatomy.locate(ids)
    with torch.no_grad():
        for layer, index, factor in zip(layers.tolist(), indices.tolist(), factors.tolist(), strict=True):
            by_hand.model.layers[layer].mlp.down_proj.weight[:, index] *= factor
    found = Asker(model, prompts).logprobs(Edit(ids, factors, "all"))
    return [
        Check(
            "edited answers: relative difference from scaled weights", relative(found, _asked(by_hand, prompts)), 1e-4
        )
    ]


@torch.no_grad()
def _asked(model: Any, prompts: Sequence[nl.Prompt]) -> Tensor:
    """Log-probabilities of the options, prompt by prompt."""
    rows = []
    for prompt in prompts:
        logits = model(torch.tensor([prompt.input_ids]), use_cache=False).logits[0, -1].double()
        rows.append(torch.stack([logits[ids].logsumexp(0) for ids in prompt.first_tokens]).log_softmax(0))
    return torch.stack(rows)


def steered(
    model: Any, tokenizer: Any, tasks: Sequence[str], methods: Sequence[str], limit: int | None = None
) -> dict[str, Any]:
    """A row for each task, method and mode; `limit` questions of each file."""
    kinds = {"base": "number", "accuracy": "number", "random low": "number", "random high": "number"}
    columns = {"task": "text", "method": "text", "mode": "text", "questions": "text", "neurons": "text"} | kinds
    columns |= {"percentile": "number", "p": "number", "letters": "text"}
    rows = []
    for task in tasks:
        search, test = (nl.load_questions(demo_task(task, split), limit=limit) for split in ("search", "test"))
        for name in methods:
            how = {"positions": "all" if name == EVERYWHERE else "answer"}
            scores = _quietly(
                nl.attribute, model, tokenizer, search, name.split(",")[0], template=TEMPLATE, progress=False, **how
            )
            neurons = _quietly(scores.find, STEERED, STEERED)
            for mode in MODES:
                judge = partial(_quietly, nl.evaluate, model, tokenizer, test, neurons, mode, positions="all")
                rows.append([task, name, mode, *_figures(judge(template=TEMPLATE, progress=False))])
    return {"columns": columns, "rows": rows}


def _figures(report: nl.Report) -> list[Any]:
    assert report.base is not None and report.controls is not None
    band = report.controls["accuracy"]
    accuracy = [report.base["accuracy"], report.accuracy, band["p2.5"], band["p97.5"]]
    letters = "collapsed" if report.collapsed else "sound"
    return [report.questions, report.edit["neurons"], *accuracy, band["percentile_of_edit"], report.mcnemar, letters]


def _quietly(call: Any, *args: Any, **kwargs: Any) -> Any:
    """The tables say what these warnings say: too few neurons, collapsed letters, a norm behind the FFN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call(*args, **kwargs)


RANDOM_MODELS = ("narrow", "narrow-olmo2", "narrow-neox")
BENCHMARKS = [
    Benchmark(
        "quality.faithfulness",
        "agreement with exact effects",
        faithfulness,
        {"cpu": (DEMO, *RANDOM_MODELS), "cuda": RANDOM_MODELS},
        quick=False,
    ),
    Benchmark("quality.steering", "steering on held-out questions", steering, {"cpu": (DEMO,)}, quick=False),
]
