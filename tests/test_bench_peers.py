"""The benchmarks beside other libraries: the ways of the others are right, and a missing library is named.

The libraries are not needed: what runs them is skipped without them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm.engine import open_engine
from neuronllm.engine.quadrature import quadrature
from neuronllm.model.anatomy import Anatomy
from tests.benches import modules

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ["captum", "TransformerLens", "nnsight"]


@pytest.fixture(scope="module")
def bench() -> Any:
    peers = ("peers", "peers_by_hand", "peers_lm_eval", "peers_tools")
    return modules("harness", "shapes", "plain", "plain_texts", *peers, "__main__")


@pytest.fixture
def toy(bench: Any) -> SimpleNamespace:
    """A model in float64, three prompts, and the prompts as tensors."""
    shape = bench.shapes.SHAPES["toy"]
    model, prompts = bench.shapes.random_model(shape).double(), bench.shapes.random_prompts(shape, 3, 5)
    return SimpleNamespace(model=model, prompts=prompts, tensors=bench.plain.tensors(prompts, "cpu"))


def without(bench: Any, monkeypatch: pytest.MonkeyPatch, *absent: str) -> None:
    """Let the import of some libraries fail, and that of the others succeed."""

    def load(module: str) -> Any:
        for peer in bench.peers_tools.PEERS:
            if peer.module == module and peer.name in absent:
                raise ModuleNotFoundError(f"No module named {module!r}")
        return SimpleNamespace()

    monkeypatch.setattr(bench.peers_tools, "import_module", load)


# ---- the ways of the others ----


def by_reference(model: Any, prompts: list[nl.Prompt], objective: str, rule: str, steps: int) -> torch.Tensor:
    with open_engine(model, Anatomy.of(model), prompts, "reference") as engine:
        return engine.integrate(prompts, objective, *quadrature(rule, steps))


@pytest.mark.parametrize("batch", [None, 2])
def test_the_steps_of_qrnca_are_its_integral(bench: Any, toy: Any, batch: int | None) -> None:
    ups = [layer.mlp.up_proj for layer in toy.model.model.layers]
    letters = torch.tensor([prompt.first_tokens[prompt.answer][0] for prompt in toy.prompts])
    found = bench.peers_by_hand.qrnca_scores(toy.model, toy.tensors[0], letters, steps=6, batch=batch)
    right = by_reference(toy.model, toy.prompts, "p_vocab", "endpoints", 6)
    assert found.dtype == torch.float64 and bench.harness.relative(found, right) < 1e-10
    assert all(layer.mlp.up_proj is up for layer, up in zip(toy.model.model.layers, ups, strict=True))


def test_a_projection_is_put_back_when_the_model_fails(bench: Any, toy: Any) -> None:
    mlp = toy.model.model.layers[0].mlp
    up = mlp.up_proj

    def fail(module: Any, args: tuple[torch.Tensor]) -> None:
        if len(args[0]) > 1:  # not in the clean pass
            raise MemoryError

    toy.model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        bench.peers_by_hand.qrnca_scores(toy.model, toy.tensors[0], torch.tensor([1, 2, 3]), steps=4)
    assert mlp.up_proj is up


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("name", [*LIBRARIES, "lm-eval, hooked"])
def test_libraries_give_the_same_numbers_over_answers_in_words(bench: Any, name: str, everywhere: bool) -> None:
    (peer,) = (peer for peer in (*bench.peers.PEERS, bench.peers.LmEval) if peer.name == name)
    pytest.importorskip(peer.module)
    shape = replace(bench.shapes.SHAPES["toy"], answer_tokens=3)
    model, prompts = bench.shapes.random_model(shape).double(), bench.shapes.random_prompts(shape, 3, 5)
    with open_engine(model, Anatomy.of(model), prompts, "reference") as engine:
        right = engine.gradients(prompts, "logp_options", positions="all" if everywhere else "answer")
    asked = bench.plain_texts.tensors(prompts, "cpu")
    found = peer(bench.shapes.twin(model)).texts(asked, everywhere=everywhere)
    assert bench.harness.relative(found, right) < 1e-4  # the log-probabilities are in float32


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_give_the_same_numbers(bench: Any, toy: Any, name: str) -> None:
    (peer,) = (peer for peer in bench.peers_tools.PEERS if peer.name == name)
    pytest.importorskip(peer.module)
    way = peer(bench.shapes.twin(toy.model))
    with open_engine(toy.model, Anatomy.of(toy.model), toy.prompts, "reference") as engine:
        right = engine.gradients(toy.prompts, "logp_options")
    assert bench.harness.relative(way.gradient(*toy.tensors), right) < 1e-4  # the objective is in float32
    right = by_reference(toy.model, toy.prompts, "logp_options", "midpoint", 4)
    assert bench.harness.relative(way.integrated_gradients(*toy.tensors, steps=4), right) < 1e-4


def test_the_case_of_qrnca_is_checked(bench: Any) -> None:
    setup = bench.harness.Setup(shape="toy", rounds=1)
    result = bench.harness.run_case(bench.peers.qrnca(setup), setup, lambda name: {"peak": 1})
    (check,) = result["checks"]
    assert 0 < check["value"] <= check["limit"] == 1e-4
    assert [(view["of"], view["against"]) for view in result["views"]] == [
        ("time", "QRNCA's code"),
        ("peak", "QRNCA's code"),
    ]


# ---- libraries that are missing ----


@pytest.mark.parametrize("name", ["peers.gradient", "peers.ig"])
def test_without_any_library_it_is_left_out(
    bench: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    without(bench, monkeypatch, *LIBRARIES)
    command = ["bench", "run", name, "--shape", "toy", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert bench.main.main() == 1  # nothing is wrong, but nothing ran either
    said = capsys.readouterr().err
    assert f"{name}, toy, 1 thread: left out" in said and "pip install -c constraints.txt -e '.[peers]'" in said
    assert all(library in said for library in LIBRARIES) and "No module named 'captum.attr'" in said
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_in_the_table(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without(bench, monkeypatch, "nnsight")
    here, missing = bench.peers.peers_here()
    assert [peer.name for peer in here] == ["captum", "TransformerLens"]
    table = bench.peers.told(here, missing, "IG", {})
    captum, _, nnsight = table["rows"]
    assert captum[2] == here[0].lacks["IG"] and nnsight[:2] == ["nnsight", "not installed"]
    assert nnsight[2] == (
        "ModuleNotFoundError: No module named 'nnsight'; pip install -c constraints.txt -e '.[peers]'"
    )
    assert len(table["columns"]) == len(captum) == len(nnsight)


def test_a_library_made_for_another_transformers_counts_as_missing(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(module: str) -> Any:
        raise AttributeError("module 'transformers' has no attribute 'Old'")

    monkeypatch.setattr(bench.peers_tools, "import_module", load)
    here, missing = bench.peers_tools.installed()
    assert not here and missing["captum"] == "AttributeError: module 'transformers' has no attribute 'Old'"


def test_every_library_is_in_the_extra(bench: Any) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (extra,) = (line for line in text.splitlines() if line.startswith("peers = "))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for peer in bench.peers_tools.PEERS:
        assert f'"{peer.package}>=' in extra and f"\n{peer.package}==" in pins
        assert set(peer.lacks) == {bench.peers_tools.GRADIENT, bench.peers_tools.IG, bench.peers_tools.TEXTS}
