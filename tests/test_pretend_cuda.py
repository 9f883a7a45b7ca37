"""The library on a pretended CUDA device: every call gives the CPU's numbers, and no tensor is on the wrong side."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm.attribution.dry_run import dry_run
from neuronllm.data.prompts import Prompt
from neuronllm.engine.batching import CUDA_ANSWER_TOKENS, Plan
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.memory import available, peak_memory
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.methods import METHODS
from neuronllm.select import extremes, extremes_rows
from neuronllm.select.cuda import refusal
from tests.checks import quiz
from tests.pretend import Device, Pretend, placed, pretended
from tests.test_fast import CALLS, differences, ragged
from tests.tiny import random_prompts, tiny

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU nothing need be pretended")
FAMILIES = ["llama", "gemma2", "gpt_neox", "qwen3_moe", "opt", "deepseek_v3", "gpt_oss"]
FEW = ["integrate", "gradient everywhere", "relp detached", "some effects", "activations"]


# ---- the pretended device itself ----


@pytest.mark.parametrize(
    "call",
    [
        lambda here, cpu: here + cpu,
        lambda here, cpu: torch.cat([here, cpu]),
        lambda here, cpu: here @ cpu,
        lambda here, cpu: here.gather(0, cpu.long()),
        lambda here, cpu: torch.stack([here[0], cpu[0]]),
        lambda here, cpu: cpu[here.long()],
        lambda here, cpu: cpu.add_(here),
        lambda here, cpu: torch.where(cpu > 0, here, 0),
    ],
)
def test_tensors_of_two_devices_do_not_meet(call: Callable[..., Any]) -> None:
    with pretended():
        here, cpu = torch.ones(3).to("cuda:0"), torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            call(here, cpu)
        call(here, cpu.to(here))


def test_what_cuda_allows_is_allowed() -> None:
    with pretended() as device:
        here = torch.arange(4.0, device="cuda:0", requires_grad=True)
        assert here.is_cuda and here.device == torch.device("cuda:0") and not here.is_meta
        found = here[torch.tensor([1, 2])] * torch.tensor(2.0)
        (grad,) = torch.autograd.grad(found.sum(), here)
        assert grad.is_cuda and grad.tolist() == [0, 2, 2, 0]
        assert float(found.sum().detach()) == 6 and torch.equal(found.detach().cpu(), torch.tensor([2.0, 4.0]))
        assert device.waits == {"to cuda": 2, "to cpu": 2, "item": 1}
        with pytest.raises(TypeError):
            here.detach().numpy()


def test_memory_is_counted_and_limited() -> None:
    with pretended(memory=2000) as device:
        first = torch.zeros(100, device="cuda:0")
        view = first[10:]
        assert device.held == 400 and available(first.device) == 1600
        assert peak_memory(lambda: torch.ones(100, device="cuda:0") * 2, first.device) == 800
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(500, device="cuda:0")
        del first
        assert device.held == 400 and len(view) == 90
        del view
        assert device.held == 0


# ---- the engines ----


def on_both(work: Callable[[Any], torch.Tensor], model: Callable[[], Any]) -> tuple[torch.Tensor, torch.Tensor, Device]:
    """What `work` gives with a model on the CPU and with the same on the pretended device."""
    right = work(model())
    with pretended() as device:
        found = work(placed(model()))
    assert not isinstance(found, Pretend)
    return found, right, device


@pytest.mark.parametrize("name", FAMILIES)
def test_the_fast_engine(name: str) -> None:
    prompts, labels = ragged()[1:3], CALLS if name == "gpt_neox" else FEW

    def work(model: Any) -> torch.Tensor:
        with FastEngine(model, dtype=torch.float64) as engine:
            assert engine.unusable(prompts) is None
            return torch.cat([CALLS[label](engine, prompts).flatten() for label in labels])

    found, right, _ = on_both(work, lambda: tiny(name))
    assert torch.allclose(found, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_the_judge(name: str) -> None:
    prompts = random_prompts(1, length=5)

    def work(model: Any) -> torch.Tensor:
        with ReferenceEngine(model, dtype=torch.float64) as engine:
            return torch.cat([CALLS[label](engine, prompts).flatten() for label in (*FEW, "direct")])

    found, right, _ = on_both(work, lambda: tiny(name))
    assert torch.allclose(found, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_16_bit_weights_under_float32_go_through_split_products(name: str) -> None:
    prompts = random_prompts(2)

    def work(model: Any) -> torch.Tensor:
        with FastEngine(model) as engine:
            assert engine.unusable(prompts) is None
            return engine.effects(prompts, "logp_options")

    found, right, device = on_both(work, lambda: tiny(name, torch.bfloat16))
    assert differences(found, right) <= 1e-3 and device.ran["aten.mm.dtype"] > 0


def shared_prompts() -> list[Prompt]:
    """Questions of unequal numbers of variants, with a common start and stems: all three levels of the tree."""
    first, prompts = random_prompts(1, length=40)[0], []
    for stem, variants in ((5, 3), (6, 2), (7, 1)):
        for variant in range(variants):
            ids = [*first.input_ids[:34], *[stem] * 20, 10 + variant, 20, 30 + stem]
            prompts.append(Prompt(ids, first.option_ids, variant % 3, question_id=str(stem)))
    return prompts


def test_shared_prefixes_and_blocks_that_run_again() -> None:
    prompts = shared_prompts()

    def work(model: Any) -> torch.Tensor:
        with FastEngine(model, dtype=torch.float64) as engine:
            assert engine.unusable(prompts) is None and engine.plan.root == 34
            assert len(engine._prefilled(prompts).levels) == 3
            found = [CALLS[label](engine, prompts) for label in ("integrate", "gradient", "effects")]
            engine.plan.recompute = True
            return torch.cat([*found, CALLS["gradient everywhere"](engine, prompts)])

    found, right, _ = on_both(work, lambda: tiny("gemma2"))
    assert torch.allclose(found, right, rtol=1e-9, atol=1e-12)


def waits(model: Any, label: str, prompts: list[Prompt]) -> dict[str, int]:
    with pretended() as device, FastEngine(placed(model)) as engine:
        CALLS[label](engine, prompts)
        device.waits.clear()
        CALLS[label](engine, prompts)
        return device.waits


@pytest.mark.parametrize("prompts", [quiz(4), shared_prompts()], ids=["alone", "shared"])
@pytest.mark.parametrize("label", ["gradient", "integrate", "gradient everywhere"])
def test_the_host_waits_once_a_layer_at_most(label: str, prompts: list[Prompt]) -> None:
    """For scores that leave the device; whatever else a layer needs is there."""
    few, many = (waits(tiny("llama", num_hidden_layers=n), label, prompts) for n in (2, 4))
    more = {kind: many[kind] - few[kind] for kind in many if many[kind] != few[kind]}
    assert more in ({"to cpu": 2}, {"to cpu": 4})


# ---- memory ----


@pytest.mark.slow
def test_the_plan_is_one_of_a_gpu_and_memory_that_ends_is_survived() -> None:
    prompts = quiz(6)

    def score(model: Any, progress: bool = False) -> torch.Tensor:
        return nl.attribute(model, None, prompts, "gradient", positions="all", keep="all", progress=progress).per_prompt

    model = tiny("llama", torch.float32)
    right = score(model)
    with pretended() as device:
        text = dry_run(placed(tiny("llama", torch.float32)), None, prompts, "gradient", positions="all")
        assert f"passes of {CUDA_ANSWER_TOKENS} answer tokens" in text and "peak above the weights" in text
        there = placed(tiny("llama", torch.float32))
        held = device.held
        with FastEngine(there) as engine:
            need = peak_memory(lambda: CALLS["gradient everywhere"](engine, prompts), there.device)
    with pretended(memory=held + need * 2 // 3) as device:
        plan = Plan(prompts=64, answer_tokens=CUDA_ANSWER_TOKENS, window=64)
        with FastEngine(placed(tiny("llama", torch.float32)), plan=plan) as engine:
            found = CALLS["gradient everywhere"](engine, prompts)
        assert plan.backoffs and device.ran["empty_cache"] > 0 and plan.prompts < len(prompts)
    with FastEngine(model) as engine:
        assert differences(found, CALLS["gradient everywhere"](engine, prompts)) <= 1e-4
    with pretended(memory=held + need) as device:
        assert differences(score(placed(tiny("llama", torch.float32))), right) <= 1e-4


# ---- the public calls ----


@pytest.mark.parametrize("method", list(METHODS))
def test_attribute(method: str) -> None:
    prompts, keep = quiz(2), "topk" if method == "gradient" else "all"

    def work(model: Any) -> torch.Tensor:
        scores = nl.attribute(model, None, prompts, method, positions="answer", keep=keep, k=4, progress=False)
        kept = scores.per_prompt if keep == "all" else scores.top.largest.values
        return torch.cat([scores.values, kept.flatten().float()])

    found, right, _ = on_both(work, lambda: tiny("llama", torch.float32))
    assert torch.allclose(found, right, rtol=1e-3, atol=1e-5 * float(right.abs().max()))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_steering(tmp_path: Any) -> None:
    prompts = quiz(3)

    def work(model: Any) -> torch.Tensor:
        ids = torch.tensor([prompts[0].input_ids], device=model.device)
        scores = nl.attribute(
            model,
            None,
            prompts,
            "gradient",
            positions="answer",
            output=tmp_path / str(model.device.type),
            progress=False,
        )
        neurons, found = scores.find(good=3, bad=3), [nl.pushes(model, None, prompts, progress=False).flatten()]
        for where in ("answer", "all"):
            report = nl.evaluate(model, None, prompts, neurons, "enhance", positions=where, controls=2, progress=False)
            found.append(torch.tensor([report.accuracy, report.p_right]))
        asked = {"ks": [2], "factors": [0.0, 2.0], "positions": ("all", "answer")}
        tuned = nl.tune(model, None, neurons, prompts, **asked, progress=False)
        found.append(torch.tensor([point["p_right"] for point in tuned.tuned["curve"]]))
        handle = nl.bake(model, neurons, mode="degrade", positions="all")
        found.append(model(ids).logits.detach().flatten().cpu())
        handle.undo()
        for positions in ("all", -1, slice(2, 4), torch.tensor([1])):
            with nl.edit(model, neurons.ids, 0.5, positions=positions):
                found.append(model(ids).logits.detach().flatten().cpu())
        with nl.edit(model, neurons.ids, 0.5, positions="answer", answer_start=2):
            found.append(model(ids).logits.detach().flatten().cpu())
        return torch.cat(found)

    found, right, _ = on_both(work, lambda: tiny("qwen3_moe", torch.float32))
    assert torch.allclose(found, right, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", "qwen3_moe"])
def test_describe(name: str) -> None:
    texts = [Prompt(list(range(3 + n, 12)), [[[3]]], 0) for n in range(3)]

    def work(model: Any) -> torch.Tensor:
        cards = nl.describe(model, None, [30, 2, 41], texts, tokens=4, window=2, progress=False).cards
        tokens = [[token["id"], token["value"]] for card in cards for token in card["promoted"] + card["suppressed"]]
        places = [[span["peak"], span["activation"]] for card in cards for span in card["spans"]]
        return torch.tensor(tokens + places)

    found, right, _ = on_both(work, lambda: tiny(name, torch.float32))
    assert torch.allclose(found, right, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_generation_under_an_edit_of_the_answer(name: str) -> None:
    def work(model: Any) -> torch.Tensor:
        ids, found = torch.tensor([[3, 4, 5, 6, 7], [0, 0, 8, 9, 10]], device=model.device), []
        asked = {"attention_mask": (ids != 0).long(), "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
        for cache in (True, False):
            with nl.edit(model, torch.arange(20), -2.0, positions="answer"):
                found.append(model.generate(ids, **asked, eos_token_id=None, use_cache=cache).cpu())
        return torch.cat(found)

    found, right, _ = on_both(work, lambda: tiny(name, torch.float32))
    assert torch.equal(found, right)


def test_selection_falls_back_to_torch() -> None:
    x = torch.randn(3, 50)
    x[1, :45] = float("nan")
    with pretended():
        there = x.to("cuda:0")
        assert refusal(there) and refusal(x)
        for found, right in (
            (extremes_rows(there, 7, 4), extremes_rows(x, 7, 4)),
            (extremes(there[0], 5), extremes(x[0], 5)),
        ):
            for end, same in zip(found[:2], right[:2], strict=True):
                assert end.values.is_cuda and end.indices.is_cuda
                assert torch.equal(end.values.cpu().nan_to_num(9), same.values.nan_to_num(9))
                assert torch.equal(end.indices.cpu(), same.indices)


# ---- the benchmarks, whose checks run on the device that they time ----


@pytest.mark.parametrize("name", ["kernels", "engine"])
def test_benchmarks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).resolve().parents[1])])  # bench/ is not installed
    from bench import engine as bench_engine
    from bench import kernels as bench_kernels
    from bench.harness import Setup

    monkeypatch.setattr(bench_kernels, "backend", lambda setup: "torch")
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    for benchmark in {"kernels": bench_kernels.BENCHMARKS, "engine": bench_engine.BENCHMARKS[:2]}[name]:
        with pretended():
            case = benchmark.build(Setup("cuda:0", 1, "toy", None, 0))
            with case.stack:
                assert all(check.fine for check in case.check()), benchmark.name
