"""The case study of examples/real_model: every row runs on a tiny model, and the page counts right."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.common.statistics import holm
from tests.checks import refused, untouched
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "real_model"
MODULES = ("study", "rows", "setting", "reference", "random_sets", "page", "pooled", "pictures", "asking")
FACTS = {"row", "task", "fold", "settings", "accuracy", "neurons", "parameters", "questions", "right", "p_right"}
FACTS |= {"seconds", "warnings", "versions", "commit", "machine"}
KINDS = ("random", "matched", "edited")
WORDS = "ash bay cob dam elm fen gum hay ink jay kin log mud net oak pea rye sap tar urn vat wax yam zip".split()


@pytest.fixture(scope="module")
def here() -> Iterator[SimpleNamespace]:
    """The modules of the study, as a script beside them imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in MODULES:
            sys.modules.pop(name)


def words(count: int) -> list[nl.Question]:
    """Three choices, each question with its own."""
    return [
        nl.Question(f"What rhymes with {WORDS[n]}?", tuple(WORDS[(n + k) % 24] for k in (1, 2, 5)), n % 3, id=f"words/{n}")
        for n in range(count)
    ]


def labels(count: int) -> list[nl.Question]:
    both = ("warm", "cold")
    return [nl.Question(f"{WORDS[n]} is what?", both, n % 2, id=f"labels/{n}") for n in range(count)]


def past_tense(count: int) -> list[nl.Question]:
    """Asked as a text to be continued."""
    return [
        nl.Question(f"Today {WORDS[n]}, then", (f"{WORDS[n]}ed", f"{WORDS[n]}en"), n % 2, id=f"past_tense/{n}")
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def ready(here: SimpleNamespace) -> Iterator[tuple[Any, Any]]:
    """A tiny model with 640 neurons and its tokenizer; two short steps of learning, one set of each kind."""
    tokenizer = byte_level()
    model = tiny(
        "llama", torch.float32, vocab_size=len(tokenizer), intermediate_size=320, max_position_embeddings=512, std=0.1
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"steps": 2, "batch": 4}.items():
            patch.setitem(here.rows.RECIPE, name, value)
        yield model, tokenizer


@pytest.fixture
def study(here: SimpleNamespace, ready: tuple[Any, Any], tmp_path: Path) -> Any:
    tasks = {"words": words(12), "labels": labels(12), "past_tense": past_tense(12)}
    return here.setting.Study(*ready, tasks, tmp_path / "results", tmp_path / "scores")


def read(study: Any, task: str, row: str, fold: int = 0) -> dict[str, Any]:
    return json.loads(study.file(task, fold, row).read_text(encoding="utf-8"))


def test_every_row_is_a_file(here: SimpleNamespace, study: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [name for name in here.rows.ROWS if name.partition("-")[0] not in KINDS or name.endswith("-00")]
    places = here.study.chosen(study, ["words"], [0], rows)
    with untouched(study.model):
        here.study.run(study, places)
    print(capsys.readouterr().out)
