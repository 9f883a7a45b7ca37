"""Comparisons made up for tests of the page: every number is drawn, and some texts are out to break it."""

from __future__ import annotations

import random
from typing import Any

NASTY = ["</script><script>window.broken = 1</script>", "<img src=x onerror='window.broken = 1'>", "{{ 7 * 7 }}"]
NASTY += ["\u202e\x07&amp;", "\ud800"]
WORDS = [" Paris", " the", " capital", " of", " France", "\n", " is", " Rome", " not", " always", " Tokyo", "un", "ed"]
EDITS = ("enhance", "degrade", "good", "bad", "tuned")
LENGTHS = {
    "prompts": 40,
    "picked": {"shortest": 0.24, "between": 0.14, "longest": 0.62},
    "right": {"shortest": 0.37, "between": 0.25, "longest": 0.38},
}
SIZES = {  # layers, neurons a layer, neurons a bin, tasks, methods, cards of each role and method
    "small": (4, 64, 1, 2, 3, 2),
    "7b": (32, 11_008, 16, 4, 6, 12),
}


def comparison(size: str = "small", seed: int = 0) -> dict[str, Any]:
    """The facts of comparison.json."""
    layers, width, bin_, n_tasks, n_methods, n_cards = SIZES[size]
    draw = random.Random(seed)
    tasks = ["facts", "sentiment", "verbs", "capitals"][:n_tasks]
    methods = ["gradient", "ace", "relp", "qrnca", "knowledge", "random"][:n_methods]
    rows = lambda: [_row(draw, layer, width, bin_) for layer in range(layers)]  # noqa: E731
    return {
        "format": "neuronllm-comparison",
        "version": 1,
        "model": {
            "name": "tiny/world-1M" if size == "small" else "large/world-7B",
            "revision": "8c1f0e2",
            "config_hash": "d41d8cd98f00",
            "architecture": "LlamaForCausalLM",
            "parameters": 1_180_000 if size == "small" else 6_738_415_616,
            "layers": layers,
            "neurons": layers * width,
            "dtype": "float32",
        },
        "made": {
            "command": "neuronllm compare --model tiny/world-1M --task facts=search.jsonl,validation.jsonl,test.jsonl",
            "python": 'nl.compare(model, tokenizer, {"facts": ("search.jsonl", "validation.jsonl", "test.jsonl")})',
            "versions": {"neuronllm": "0.1.0", "torch": "2.9.0", "transformers": "5.17.0"},
            "commit": "78cbbb2",
            "seeds": [0, 1, 2],
            "methods": {method: f"what {method} is" for method in methods},
            "edits": {edit: {"aim": "enhance", "good": 2.0, "bad": None, "made": "found"} for edit in EDITS[:-1]}
            | {"tuned": {"aim": "enhance", "good": None, "bad": None, "made": "tuned"}},
            "settings": {"budget": "default", "k": [4, 16, 64], "template": "plain", "holm": True},
        },
        "tasks": [_task(draw, name) for name in tasks],
        "methods": [_method(draw, task, method, layers) for task in tasks for method in methods],
        "edits": [_edit(draw, task, m, edit, tasks) for task in tasks for m in methods for edit in EDITS],
        "curves": [_curve(draw, t, m, edit) for t in tasks for m in methods for edit in EDITS[:2]],
        "maps": [{"task": t, "method": m, "bin": bin_, "rows": rows()} for t in tasks for m in methods],
        "across_tasks": [{"method": method, **_across(draw, tasks)} for method in methods],
        "across_methods": [{"task": task, **_overlaps(draw, methods)} for task in tasks],
        "cards": [
            _card(draw, task, methods[n // 2 % n_methods], role, layers, width, tasks)
            for task in tasks
            for n in range(n_cards * n_methods)
            for role in ("good", "bad")
        ],
    }


def timings(facts: dict[str, Any]) -> dict[str, Any]:
    draw = random.Random(1)
    methods: dict[str, Any] = {}
    for found in facts["methods"]:
        seconds, inference = draw.uniform(1, 20), draw.uniform(0.5, 1)
        taken = {"seconds": seconds, "inference": inference, "ratio": seconds / inference}
        methods.setdefault(found["method"], {})[found["task"]] = taken
    return {"methods": methods, "total_seconds": draw.uniform(100, 300)}


def _task(draw: random.Random, name: str) -> dict[str, Any]:
    accuracy = draw.uniform(0.5, 0.7)
    return {
        "name": name,
        "answers": "letters",
        "questions": {"search": 64, "validation": 48, "test": 96},
        "split": "given",
        "files": {split: f"{name}/{split}.jsonl" for split in ("search", "validation", "test")},
        "shared": [_shared(name)] if name == "facts" else [],
        "chance": 0.25,
        "prompt": f"Question: <b>{name}</b>?\nAnswer:",
        "base": {
            "accuracy": accuracy,
            "interval": [accuracy - 0.09, accuracy + 0.09],
            "p_right": draw.uniform(0.4, 0.6),
            "collapsed": name == "verbs",
            "leaning": {"A": 0.31, "B": 0.27, "C": 0.22, "D": 0.2},
            "lengths": LENGTHS if name == "verbs" else None,
        },
        "summary": f"On {name}, silencing 16 neurons of gradient takes accuracy from 0.64 to 0.31 (no random set did); "
        "no edit raised it beyond what random sets do.",
    }


def _shared(name: str) -> dict[str, Any]:
    also_in = {"task": name, "split": "search"}
    return {"split": "test", "questions": 7, "also_in": also_in, "said": f"7 test questions of {name} stand in it too"}


def _method(draw: random.Random, task: str, method: str, layers: int) -> dict[str, Any]:
    rho = draw.uniform(-0.1, 1)
    return {
        "task": task,
        "method": method,
        "positions": "all" if method == "gradient" else "answer",
        "questions": 64,
        "agreement": {
            "spearman": rho,
            "interval": [rho - 0.02, rho + 0.02] if method == "ace" else None,
            "top": draw.random(),
            "bottom": draw.random(),
            "neurons": 2000,
            "sampled": method == "ace",
            "questions": 8,
        }
        if method != "random"
        else None,
        "no_agreement": None if method != "random" else "it is random here",
        "stability": {"spearman": draw.random(), "overlap": draw.random()},
        "layers": {role: [draw.randrange(9) for _ in range(layers)] for role in ("good", "bad")},
        "warnings": ["leans on B in 61 % of the prompts"] if method == "qrnca" else [],
    }


def _edit(draw: random.Random, task: str, method: str, edit: str, tasks: list[str]) -> dict[str, Any]:
    accuracy = draw.uniform(0.2, 0.9)
    return {
        "task": task,
        "method": method,
        "edit": edit,
        "aim": "degrade" if edit in ("degrade", "bad") else "enhance",
        "neurons": 32,
        "good": 16,
        "bad": 16,
        "accuracy": accuracy,
        "interval": [accuracy - 0.1, accuracy + 0.1],
        "gain": accuracy - 0.6,
        "p": draw.random() ** 8,
        "p_holm": draw.random() ** 4,
        "p_right": draw.random(),
        "rac": draw.uniform(-0.6, 0.4),
        "rcc": draw.uniform(-0.6, 0.4),
        "p_change": draw.uniform(-0.6, 2),
        "p_change_elsewhere": draw.uniform(-0.1, 0.1),
        "pcr": None if len(tasks) == 1 else draw.uniform(0.2, 30),
        "flips": {"to_right": draw.randrange(20), "to_wrong": draw.randrange(40), "other": draw.randrange(5)},
        "collapsed": edit == "bad",
        "leaning": {"A": 0.2, "B": 0.4, "C": 0.22, "D": 0.18},
        "lengths": LENGTHS if task == "facts" else None,
        "controls": None
        if method == "random"
        else {"kind": "edited", "count": 20, "mean": 0.59, "band": [0.52, 0.66], "place": draw.random()},
        "elsewhere": {other: {"before": 0.61, "after": draw.random()} for other in tasks if other != task},
        "examples": [_example(draw, task, n) for n in range(4)],
        "verdict": draw.choice(["as sure as can be, and beyond random sets", "inside the random band: nothing shown"]),
    }


def _example(draw: random.Random, task: str, number: int) -> dict[str, Any]:
    before, after = draw.sample(["Paris", "Rome", "Tokyo", "Lima"], 2)
    question = draw.choice([*NASTY, f"What is the capital of the country of {task} number {number}?"])
    return {"question": question, "before": before, "after": after, "right": draw.choice([before, after, "Oslo"])}


def _curve(draw: random.Random, task: str, method: str, edit: str) -> dict[str, Any]:
    points, accuracy = [{"k": 0, "accuracy": 0.6, "interval": None, "controls": None}], 0.6
    for k in (1, 4, 16, 64):
        accuracy += draw.uniform(0, 0.12) * (1 if edit == "enhance" else -1)
        accuracy = min(0.97, max(0.05, accuracy))
        drawn = draw.uniform(0.57, 0.62)
        band = {"mean": drawn, "band": [drawn - 0.01 * k**0.5, drawn + 0.008 * k**0.5]}
        points.append(
            {
                "k": k,
                "accuracy": accuracy,
                "interval": [accuracy - 0.08, accuracy + 0.08],
                "controls": None if method == "random" else band,
            }
        )
    return {"task": task, "method": method, "edit": edit, "points": points}


def _row(draw: random.Random, layer: int, width: int, bin_: int) -> dict[str, Any]:
    values = [draw.gauss(0, 1) ** 5 * 1e-4 for _ in range(-(-width // bin_))]
    return {"label": f"layer {layer}", "layer": layer, "expert": -1, "first": layer * width, "values": values}


def _overlaps(draw: random.Random, names: list[str]) -> dict[str, Any]:
    def pairs() -> list[list[dict[str, float]]]:
        return [[{"jaccard": 1.0 if a == b else draw.random() / 2, "chance": 0.008} for b in names] for a in names]

    return {"names": names, "good": pairs(), "bad": pairs(), "good_bad": pairs()}


def _across(draw: random.Random, tasks: list[str]) -> dict[str, Any]:
    change = [[[draw.uniform(-0.4, 0.3) for _ in tasks] for _ in tasks] for _ in EDITS]
    transfer = [{"edit": edit, "change": matrix} for edit, matrix in zip(EDITS, change, strict=True)]
    faces = [
        {"layer": 1, "expert": -1, "index": n, "id": 64 + n, "good": tasks[:1], "bad": tasks[1:]} for n in range(3)
    ]
    return {**_overlaps(draw, tasks), "transfer": transfer, "two_faced": faces}


def _card(
    draw: random.Random, task: str, method: str, role: str, layers: int, width: int, tasks: list[str]
) -> dict[str, Any]:
    layer, index = draw.randrange(layers), draw.randrange(width)
    names = [method, "exact"] if draw.random() < 0.2 else [method]
    also = [{"task": tasks[-1], "role": "bad", "methods": names}]
    return {
        "task": task,
        "layer": layer,
        "expert": -1,
        "index": index,
        "id": layer * width + index,
        "judged": 8,
        "methods": [_said(draw, name, role) for name in names],
        "promoted": [{"token": draw.choice([*WORDS, NASTY[0]]), "value": draw.uniform(0, 4)} for _ in range(10)],
        "suppressed": [{"token": draw.choice([*WORDS, NASTY[1]]), "value": -draw.uniform(0, 4)} for _ in range(10)],
        "spans": [_span(draw, number) for number in range(5)],
        "positive": draw.random(),
        "read": 728,
        "also": also if draw.random() < 0.3 and task != tasks[-1] else [],
    }


def _said(draw: random.Random, method: str, role: str) -> dict[str, Any]:
    score = draw.uniform(0.001, 0.05) * (1 if role == "good" else -1)
    return {
        "method": method,
        "role": role,
        "score": score,
        "interval": [score - 0.004, score + 0.004],
        "exact": draw.choice([None, score * 1.1]),
        "factor": draw.choice([None, 1.7]),
    }


def _span(draw: random.Random, number: int) -> dict[str, Any]:
    texts = [draw.choice([*WORDS, *NASTY] if draw.random() < 0.1 else WORDS) for _ in range(25)]
    return {"question": f"q{number}", "tokens": [{"text": t, "activation": draw.gauss(0, 1) ** 3} for t in texts]}
