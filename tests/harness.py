"""lm-eval over questions of ours: a model asked and a local task judged, without a network.

Import it behind `pytest.importorskip("lm_eval")`.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["HF_DATASETS_OFFLINE"] = "1"  # HF_HUB_OFFLINE is set for every test

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def harness(model: Any, tokenizer: Any, batch_size: int) -> HFLM:
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu", dtype="float32")


def log_likelihoods(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], batch_size: int = 8
) -> list[tuple[float, bool]]:
    """Of every context and continuation: the log-probability, and whether it is what greedy decoding gives."""
    asked = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    return harness(model, tokenizer, batch_size).loglikelihood(asked, disable_tqdm=True)


def write_task(folder: Path, name: str, rows: Sequence[dict[str, Any]], choices: str) -> dict[str, Any]:
    """A multiple-choice task of lm-eval on rows of question, answer and what the template `choices` reads."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": choices,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def write_yaml(folder: Path, name: str, splits: dict[str, Sequence[dict[str, Any]]], **config: Any) -> None:
    """A task of lm-eval in files: the rows of every split as JSON Lines, and a YAML file for --include_path."""
    files = {}
    for split, rows in splits.items():
        files[split] = str(folder / f"{name}-{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data_files": files, "cache_dir": str(folder / "cache")}
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": data, **config}
    (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML


def evaluated(model: Any, tokenizer: Any, task: dict[str, Any], batch_size: int) -> tuple[dict[str, float], list[Any]]:
    """lm-eval's metrics, and every sample's log-likelihoods in the order of the file; `model` may be a path."""
    lm = harness(model, tokenizer, batch_size)
    manager = TaskManager(include_defaults=False)
    out = simple_evaluate(lm, tasks=[copy.deepcopy(task)], task_manager=manager, bootstrap_iters=0)
    samples = sorted(out["samples"][task["task"]], key=lambda sample: sample["doc_id"])
    metrics = {name: out["results"][task["task"]][name] for name in ("acc,none", "acc_norm,none")}
    return metrics, [sample["filtered_resps"] for sample in samples]
