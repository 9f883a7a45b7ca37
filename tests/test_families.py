"""Families that once ended in a traceback, a few of the survey, and its page."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import neuronllm as nl
from neuronllm.model import discovery
from tests import plain
from tests.checks import untouched
from tests.tiny import random_prompts, tiny

ROOT = Path(__file__).resolve().parents[1]
# A plain decoder, experts, a mixture that is refused, an encoder as decoder, mixers alone, and attention of its own.
QUICK = ("gemma2", "qwen3_moe", "jetmoe", "bert", "mamba", "mpt", "llava")


@pytest.fixture(scope="module")
def families() -> Iterator[ModuleType]:
    sys.path.append(str(ROOT / "tools"))
    try:
        import families

        yield families
    finally:
        sys.path.remove(str(ROOT / "tools"))


def test_the_page_is_what_the_survey_found(families: ModuleType) -> None:
    page = families.page(families.written())
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == page, "run: python tools/families.py --page"
    assert len(page.split()) < 3000


def test_every_family_has_a_verdict_and_no_family_ends_in_a_traceback(families: ModuleType) -> None:
    found = families.written()
    same_version(families)
    assert [family["family"] for family in found["families"]] == [*families.names(), *families.MULTIMODAL]
    assert {family["verdict"] for family in found["families"]} <= {"fast", "reference", "refused", "not built"}
    for family in found["families"]:
        assert family["verdict"] == "fast" or (family["why"] and "\n" not in family["reason"])
        if family["verdict"] == "fast":
            assert family["difference"] <= families.EXACT[family["dtype"]]


@pytest.mark.parametrize("family", QUICK)
def test_some_families_are_what_the_page_says(families: ModuleType, family: str) -> None:
    same_version(families)
    assert not families.differing([{"family": family} | families.tried(family)])


@pytest.mark.slow
@pytest.mark.survey
def test_all_families_are_what_the_page_says(families: ModuleType) -> None:
    same_version(families)
    checked = subprocess.run([sys.executable, "tools/families.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def same_version(families: ModuleType) -> None:
    """What a family's code does follows from the versions of transformers and torch."""
    now, then = families.versions(), families.written()
    if any(now[library] != then[library] for library in now):
        pytest.skip(f"docs/models.json is of {then['transformers']} and {then['torch']}")


def test_the_page_teaches_llama_4s_shared_experts(families: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_REGISTRY", {})
    (code,) = re.findall(r"```python\n(.*?)```", families.page(families.written()), re.DOTALL)
    exec(code, {})
    small = {"num_hidden_layers": 2, "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0]}
    small |= {"intermediate_size_mlp": 20, "num_local_experts": 4, "attention_chunk_size": 8, "moe_layers": [0, 1]}
    model, (prompt, *_) = tiny("llama4_text", **small), random_prompts(1)
    weight = model.model.layers[1].feed_forward.shared_expert.down_proj.weight
    values = []
    for factor in (1.0, 0.0):
        with torch.no_grad():
            weight[:, 5] *= factor
            logits = model(input_ids=torch.tensor([prompt.input_ids])).logits[0, -1]
        values.append(plain.option_scores(logits, prompt).log_softmax(0)[prompt.answer])
        if factor:
            scores = nl.attribute(model, None, [prompt], "exact", positions="all", progress=False)
    assert scores.anatomy.n_neurons == 2 * 28
    assert float(scores.values[28 + 5]) == pytest.approx(float(values[0] - values[1]), rel=1e-4)


def test_a_crash_and_a_hang_are_verdicts(families: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    endings = {"crash": lambda: os.kill(os.getpid(), signal.SIGKILL), "hang": lambda: time.sleep(60)}
    monkeypatch.setattr(families, "tried", lambda family: endings[family]())
    monkeypatch.setattr(families, "WAIT", 0.5)
    found = [families.in_a_process_of_its_own(family) for family in endings]
    assert [family["verdict"] for family in found] == ["defect", "defect"]
    assert "exit code -9" in found[0]["reason"] and "no end" in found[1]["reason"]


def test_an_attention_that_names_no_implementation_is_given_back() -> None:
    """MPT's attention has a configuration of its own, which says None."""
    model = tiny("mpt", d_model=16, n_layers=2, n_heads=4, max_seq_len=96)
    with untouched(model):
        scores = [
            nl.attribute(model, None, random_prompts(), "gradient", progress=False, backend=backend).values
            for backend in ("fast", "reference")
        ]
    assert (scores[0] - scores[1]).norm() <= 1e-6 * scores[1].norm()
    assert model.config.attn_config._attn_implementation is None
