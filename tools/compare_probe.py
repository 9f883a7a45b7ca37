#!/usr/bin/env python3
"""The half of compare_commits.py that runs inside a tree: it computes numbers with neuronllm and writes them down.

    PYTHONPATH=TREE python tools/compare_probe.py LABEL TREE OUTPUT GROUP...

A group is SUBJECT/KIND: a subject of compare_subjects.py, and what is asked of it. It becomes OUTPUT/GROUP.safetensors
and OUTPUT/GROUP.json.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_subjects import BACKENDS, DEAR, METHODS, POSITIONS, TASKS, TINY, Subject, subject_of
from safetensors.torch import load_file, save_file
from torch import Tensor

# Method, a name, and the options that differ from those of METHODS and of `Subject.attribute`.
VARIATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("gradient", "margin", {"objective": "margin"}),
    ("gradient", "p_options", {"objective": "p_options", "positions": "all"}),
    ("gradient", "logp_vocab", {"objective": "logp_vocab"}),
    ("gradient", "keep-all", {"keep": "all", "positions": "all"}),
    ("gradient", "keep-all-16", {"keep": "all", "keep_dtype": torch.bfloat16}),
    ("gradient", "keep-topk", {"keep": "topk", "k": 5}),
    ("gradient", "right", {"items": "right"}),
    ("gradient", "wrong", {"items": "wrong"}),
    ("gradient", "float64", {"dtype": torch.float64}),
    ("gradient", "unbatched", {"batch_size": 1}),
    ("gradient", "batches-of-5", {"batch_size": 5, "positions": "all"}),
    ("gradient", "shuffled", {"orders": "shuffle3", "template": "default"}),
    ("gradient", "as-written", {"orders": "none", "template": ["plain", "brief"]}),
    ("relp", "detached", {"attention": "detached", "positions": "all"}),
    ("ace", "ambiguous", {"mask": "ambiguous", "z": 0.1, "steps": 3, "quadrature": "right"}),
    ("ace", "unmasked", {"mask": "none", "steps": 3, "quadrature": "endpoints"}),
    ("qrnca", "released-code", {"compat": "released-code", "objective": "p_vocab_bare", "quadrature": "endpoints"}),
    ("knowledge", "lenient", {"threshold": 0.1, "share": 0.3}),
    ("exact", "doubled", {"factor": 2.0}),
    ("activation", "frequency", {"statistic": "frequency", "positions": "all"}),
    ("random", "seed-3", {"seed": 3}),
]


@dataclass
class Record:
    """What a group found: tensors, plain data, and what was refused. A key begins with its method, if it has one."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # only that it was refused is compared, not the wording
    unknown: list[str] = field(default_factory=list)  # methods that this commit does not have
    error: str | None = None  # what ended the group

    def known(self, methods: Iterable[str], subject: Subject) -> list[str]:
        """The methods that this commit has; the others are noted."""
        there = subject.nl.methods.METHODS
        self.unknown += [method for method in methods if method not in there and method not in self.unknown]
        return [method for method in methods if method in there]

    @contextmanager
    def trying(self, subject: Subject, key: str) -> Iterator[None]:
        """Some things cannot be asked of every method or model. What is refused must be so in both trees."""
        try:
            yield
        except subject.nl.InputError as error:
            self.refused[key] = str(error)

    def add(self, key: str, **tensors: Tensor | None) -> None:
        found = {f"{key}/{name}": tensor for name, tensor in tensors.items() if tensor is not None}
        self.tensors |= {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}

    def write(self, path: Path) -> None:
        """The tensors first: a group whose JSON is there is complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, path.with_suffix(".safetensors"))
        plain = {"data": self.data, "refused": self.refused, "unknown": self.unknown, "error": self.error}
        path.with_suffix(".json").write_text(json.dumps(plain, indent=1), encoding="utf-8")


def flat(option: list[Any]) -> list[int]:
    """The tokens of an option, which is a list of them, or of sequences of one in later commits."""
    return [token for part in option for token in (part if isinstance(part, list) else [part])]


# ---- the kinds: each asks one thing of a subject ----


def prompts(subject: Subject, record: Record) -> None:
    """How questions are rendered; tiny models are given theirs."""
    for orders in ("rotate", "shuffle3", "none"):
        for template in ("default", "plain", "brief"):
            asked = {"orders": orders, "template": template, "seed": 0, "max_length": None}
            for number, prompt in enumerate(subject.nl.render(subject.tokenizer, subject.search, **asked)):
                fields = ("input_ids", "option_ids", "answer", "question_id", "order")
                plain = {name: getattr(prompt, name) for name in fields}
                plain["option_ids"] = [flat(option) for option in plain["option_ids"]]
                record.data[f"{orders}/{template}/{number}"] = plain


def scores(subject: Subject, record: Record) -> None:
    """Every method at both positions, by both engines where that is cheap."""
    for method, positions, backend in product(record.known(METHODS, subject), POSITIONS, BACKENDS):
        key = f"{method}/{positions}/{backend}"
        if backend == "reference" and method in DEAR and subject.name in TASKS:
            continue
        with record.trying(subject, key):
            _note_scores(record, key, subject.scores(method, positions, backend))


def _note_scores(record: Record, key: str, found: Any) -> None:
    record.add(key, values=found.values, stderr=found.stderr, sign_consistency=found.sign_consistency)
    record.data[key] = found.provenance
    if found.per_prompt is not None:
        record.add(key, per_prompt=found.per_prompt[:])
    if found.top is not None:
        for name in ("largest", "smallest"):
            end = getattr(found.top, name)
            record.add(f"{key}/{name}", ids=end.ids, values=end.values)


def options(subject: Subject, record: Record) -> None:
    """Objectives, batches, what is kept, runs on disk, and the methods' own options."""
    known = record.known([method for method, _, _ in VARIATIONS], subject)
    for method, name, changed in VARIATIONS:
        if method in known:
            with record.trying(subject, f"{method}/{name}"):
                _note_scores(record, f"{method}/{name}", subject.attribute(method, **changed))
    with tempfile.TemporaryDirectory() as folder:
        asked = {"keep": "all", "positions": "all", "resume": False, "overwrite": False}
        on_disk = subject.attribute("gradient", output=f"{folder}/scores", **asked)
        _note_scores(record, "gradient/on-disk", on_disk)
        _note_scores(record, "gradient/loaded", subject.nl.Scores.load(f"{folder}/scores"))


def pushes(subject: Subject, record: Record) -> None:
    """Which option every neuron pushes."""
    for backend in BACKENDS:
        asked = {"orders": "rotate", "backend": backend, "dtype": None, **subject.wording}
        for name, ids in (("all", None), ("chosen", subject.neurons.ids)):
            found = subject.nl.pushes(subject.model, subject.tokenizer, subject.search, ids, **subject.worded(asked))
            record.add(f"{name}/{backend}", pushes=found)


def neurons(subject: Subject, record: Record) -> None:
    """What is found in the scores, sets of sets, and what is saved of them."""
    for method, positions in product(record.known(METHODS, subject), POSITIONS):
        with record.trying(subject, f"{method}/{positions}"):
            _note_neurons(record, f"{method}/{positions}", subject.scores(method, positions).find(good=8, bad=8))
    one, other = (subject.scores("gradient", positions).find(good=8, bad=8) for positions in POSITIONS)
    for name, combined in (("or", one | other), ("and", one & other), ("minus", one - other), ("top", one.top(3, 2))):
        _note_neurons(record, f"sets/{name}", combined)
    with tempfile.TemporaryDirectory() as folder:
        one.save_pretrained(f"{folder}/set")
        record.add("saved", **load_file(f"{folder}/set/neurons.safetensors"))
        record.data["saved"] = json.loads(Path(folder, "set", "neuron_config.json").read_text("utf-8"))
        _note_neurons(record, "read", subject.nl.NeuronSet.from_pretrained(f"{folder}/set"))


def _note_neurons(record: Record, key: str, found: Any) -> None:
    record.add(key, ids=found.ids, layer=found.layer, expert=found.expert, index=found.index, score=found.score)
    record.data[f"{key}/role"] = found.role.tolist()


def edited(subject: Subject, record: Record) -> None:
    """The logits of a prompt while neurons are edited, and after that."""
    for name, where in (("all", "all"), ("last", -1), ("some", slice(2, 4))):
        for good, bad in ((2.0, 0.0), (0.0, 2.0), (0.7, 1.3)):
            with subject.neurons.apply(subject.model, good, bad, where):
                record.add(f"{name}/{good:g}/{bad:g}", logits=subject.logits())
    record.add("unedited", logits=subject.logits())


def reports(subject: Subject, record: Record) -> None:
    """Every mode at both positions beside random controls, with other factors, seeds and unrelated questions."""
    record.data["no neurons"] = _said(subject.evaluate(None, orders="rotate", seed=0))
    tuned = subject.tune("p_right", 0.0, ("all",))
    for where in POSITIONS:
        for mode, chosen in (("enhance", subject.neurons), ("degrade", subject.neurons), ("tuned", tuned)):
            record.data[f"{mode}/{where}"] = _said(subject.evaluate(chosen, mode=mode, positions=where))
    asked = {"good": 1.5, "bad": 0.3, "seed": 0, "controls": 0, "positions": "answer", "unrelated": subject.unrelated}
    other = subject.evaluate(subject.neurons, **asked)
    record.data["factors"] = _said(other)


def _said(report: Any) -> dict[str, Any]:
    """A report in the form of the first commits, where all intervals stand in one table.

    What reports have said since then has no counterpart: which questions flipped, intervals of the base, own factors,
    where positions are from.
    """
    data = report.to_dict()
    data.pop("flipped", None)
    data["edit"] = {
        name: value for name, value in data["edit"].items() if name != "positions_from" and (name != "own" or value)
    }
    if "base" in data["ci"]:
        ci = data["ci"]
        change = {f"{name}_change": interval for name, interval in ci.get("change", {}).items()}
        data["ci"] = ci.get("edited", ci["base"]) | change
    return data


def tuned(subject: Subject, record: Record) -> None:
    """What tuning chooses, and every point that it looked at."""
    for criterion, margin, where in (("accuracy", 2.0, POSITIONS), ("p_right", 0.0, ("all",))):
        found = subject.tune(criterion, margin, where)
        _note_neurons(record, criterion, found)
        record.data[criterion] = found.tuned


def baked(subject: Subject, record: Record) -> None:
    """A hash of every tensor of the model with neurons in its weights, and after the undoing."""
    choices = {"enhance": {"mode": "enhance"}, "degrade": {"mode": "degrade"}, "factors": {"good": 1.7, "bad": 0.3}}
    for name, chosen in choices.items():
        asked = {"good": None, "bad": None, "mode": None} | chosen
        _note_baked(subject, record, name, subject.neurons, asked)
    found = subject.tune("p_right", 0.0, ("all",))
    _note_baked(subject, record, "tuned", found, {"good": None, "bad": None, "mode": None})
    record.data["undone"] = _hashes(subject.model)


def _note_baked(subject: Subject, record: Record, name: str, chosen: Any, asked: dict[str, Any]) -> None:
    handle = subject.nl.bake(subject.model, chosen, **asked)
    record.data[name] = _hashes(subject.model)
    handle.undo()


def _hashes(model: Any) -> dict[str, str]:
    tensors = {name: t.detach().contiguous().reshape(-1).view(torch.uint8) for name, t in model.state_dict().items()}
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


KINDS: dict[str, Callable[[Subject, Record], None]] = {
    kind.__name__: kind for kind in (prompts, scores, options, pushes, neurons, edited, reports, tuned, baked)
}
GROUPS = [f"{subject}/{kind}" for subject in (*TASKS, *TINY) for kind in KINDS if subject in TASKS or kind != "prompts"]
QUICK = ("sentiment", "gpt2", "mixtral")


# ---- running ----


def run(nl: Any, groups: list[str], output: Path, say: Callable[[str], None]) -> None:
    """Write the groups one after the other. One that fails is written as such, and the others are still tried."""
    subject = None
    for number, group in enumerate(groups, 1):
        say(f"{number}/{len(groups)} {group}")
        name, kind = group.split("/")
        record = Record()
        random.seed(0)
        np.random.seed(0)
        try:
            if subject is None or subject.name != name:
                subject = subject_of(nl, name)
            torch.manual_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of few controls, and of neurons that there are too few of
                KINDS[kind](subject, record)
        except Exception as error:  # noqa: BLE001 - whatever a commit does wrong belongs into its results
            traceback.print_exc()
            record.error = f"{type(error).__name__}: {error}"
            subject = None  # it may have been left edited
        record.write(output / group)


def package_of(tree: Path) -> Any:
    """neuronllm of this tree and of no other: an installation would step in for modules that the tree lacks."""
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if "__editable__" not in str(getattr(finder, "__module__", ""))
    ]
    import neuronllm

    check_origin(tree)
    return neuronllm


def check_origin(tree: Path) -> None:
    for name, module in sorted(sys.modules.items()):
        origin = getattr(module, "__file__", None) if name.split(".")[0] == "neuronllm" else None
        if origin is not None and not Path(origin).resolve().is_relative_to(tree.resolve()):
            raise SystemExit(f"{name} comes from {origin}, not from {tree}")


def main(label: str, tree: str, output: str, *groups: str) -> None:
    torch.set_num_threads(1)
    nl = package_of(Path(tree))
    run(nl, list(groups), Path(output), lambda line: print(f"{label}: {line}", file=sys.stderr, flush=True))
    check_origin(Path(tree))


if __name__ == "__main__":
    main(*sys.argv[1:])
