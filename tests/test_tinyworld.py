"""The bundled demo model and its tasks are what examples/tinyworld writes: records, sizes, splits and real answers."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronllm.data.loading import load_questions
from neuronllm.data.templates import TEMPLATES

pytestmark = pytest.mark.slow  # a model is trained

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "neuronllm" / "demo"
TASKS = ("facts", "sentiment", "entailment", "ordering")
SPLITS = ("search", "validation", "test")


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def train() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tinyworld_train", ROOT / "examples" / "tinyworld" / "train.py")
    assert spec is not None and spec.loader is not None
    path = list(sys.path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def rows(task: str, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO / "tasks" / task / f"{split}.jsonl").open(encoding="utf-8")]


def test_first_steps_have_the_recorded_losses(train: ModuleType, manifest: dict[str, Any]) -> None:
    _, _, model, lessons = train.set_up(manifest["seed"])
    losses = train.train(model, lessons, 20, manifest["steps"])
    # other processors sum in another order; 20 steps let that grow to some 1e-4, another seed differs by tenths
    assert losses == pytest.approx(manifest["first_losses"], abs=1e-3)


def test_weights_are_the_recorded_ones(manifest: dict[str, Any]) -> None:
    file = DEMO / "model" / "model.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == manifest["sha256"]
    assert file.stat().st_size <= 6_000_000
    with safe_open(file, "pt") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        assert {tensors.get_slice(name).get_dtype() for name in shapes} == {"BF16"}
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert count == manifest["parameters"] <= 2_900_000


def test_task_files_are_what_the_world_writes(train: ModuleType, manifest: dict[str, Any]) -> None:
    world = train.World(manifest["seed"])
    for task in TASKS:
        for split, questions in world.splits(task, manifest["seed"]).items():
            assert rows(task, split) == [train.asdict(question) for question in questions]


@pytest.mark.parametrize("task", TASKS)
def test_splits_load_and_share_no_item(task: str) -> None:
    items = {split: {(row["question"], *sorted(row["choices"])) for row in rows(task, split)} for split in SPLITS}
    sizes = [len(load_questions(DEMO / "tasks" / task / f"{split}.jsonl")) for split in SPLITS]
    assert min(sizes) >= 120 and sizes[2] >= 280
    assert len(set.union(*items.values())) == sum(sizes)
    stems = {split: {row["question"] for row in rows(task, split)} for split in SPLITS}
    if task == "facts":  # not even the same fact among other choices
        assert not stems["search"] & stems["test"] and not stems["validation"] & stems["test"]


def test_entailment_splits_share_no_animal(train: ModuleType) -> None:
    members = set(train.World().kind_of)
    found = [
        {word for row in rows("entailment", split) for word in re.findall(r"\w+", row["question"])} for split in SPLITS
    ]
    search, validation, test = (words & members for words in found)
    assert search and not search & validation and not search & test and not validation & test


def test_the_cue_is_balanced_where_it_is_judged() -> None:
    for split in SPLITS:
        subjects = [row["subject"] for row in rows("sentiment", split)]
        assert set(subjects) == {"agrees", "conflicts"}
        assert 0.4 < subjects.count("agrees") / len(subjects) < 0.6


@pytest.mark.parametrize("task", TASKS)
def test_there_is_room_above_and_below(task: str, manifest: dict[str, Any]) -> None:
    assert 0.6 <= manifest["accuracy"][task]["test"]["all"] <= 0.95


def test_the_model_answers_as_recorded(train: ModuleType, manifest: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    assert tokenizer.chat_template is None and tokenizer.pad_token_id == 0
    for task in TASKS:
        questions = train.World(manifest["seed"]).splits(task, manifest["seed"])["validation"]
        found = train.accuracy(model, tokenizer, questions)["all"]
        assert found == pytest.approx(manifest["accuracy"][task]["validation"]["all"], abs=0.02)


@pytest.mark.parametrize("template", TEMPLATES)
def test_letters_are_single_tokens_in_context(template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    text = TEMPLATES[template].format(question="Which of these is honey?", options="A. bread\nB. honey")
    for letter in "ABCDEF":
        with_letter = tokenizer.encode(f"{text} {letter}")
        assert with_letter[:-1] == tokenizer.encode(text)
        assert tokenizer.decode(with_letter[-1:]) == f" {letter}"
