"""The kernels as operators: their lanes, what PyTorch demands of an operator, and how a back end is chosen.

Two lanes need no GPU and a process each: one runs the kernels in triton's interpreter, the other compiles them for GPUs
that are not there. Both are in tests/kernels/.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neuronllm import ops
from neuronllm.common import env
from neuronllm.common.errors import InputError
from tests.checks import refused

ROOT = Path(__file__).resolve().parents[1]
needs_triton = pytest.mark.skipif(not env.triton_found()[0], reason=env.triton_found()[1])
OPS = [name for name in env.OPS if (ROOT / "kernels" / name / "kernel.py").exists()]


def lane(*files: str, marks: str = "", **environment: str) -> int:
    """Run test files in a process of their own; the number of tests that passed there."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks]
    command += [f"tests/kernels/{file}" for file in files]
    done = subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return int(re.findall(r"(\d+) passed", done.stdout)[-1])


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize(
    ("file", "least"),
    [*((f"test_{op}.py", 50) for op in OPS), ("test_branch_attention_trees.py", 40), ("test_engine.py", 6)],
)
def test_interpreted(file: str, least: int) -> None:
    assert lane(file, marks="not survey", TRITON_INTERPRET="1") >= least


@pytest.mark.slow
@pytest.mark.survey
@needs_triton
@pytest.mark.parametrize(("file", "least"), [("test_branch_attention_trees.py", 10), ("test_engine.py", 3)])
def test_interpreted_too(file: str, least: int) -> None:
    assert lane(file, marks="survey", TRITON_INTERPRET="1") >= least


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("target", [pytest.param("sm_80", marks=pytest.mark.survey), "sm_90", "gfx942"])
def test_compiled_ahead_of_time(target: str, tmp_path: Path) -> None:
    environment = {"NEURONLLM_TEST_LANE": f"ahead of time: {target}", "TRITON_CACHE_DIR": str(tmp_path)}
    assert lane("test_ahead_of_time.py", **environment) == len(OPS)


# ---- operators ----


def glu_score_inputs() -> tuple[Any, ...]:
    gate, up, grad = (torch.randn(9, 6) for _ in range(3))
    return gate, up, grad, None, torch.tensor([4, 0, 5]), torch.randn(3), "silu", False, True, "torch"


def contrastive_ce_inputs(objective: str = "margin") -> tuple[Any, ...]:
    hidden, weight, bias = torch.randn(3, 5), torch.randn(20, 5), torch.randn(20)
    options = torch.tensor([[[1, 2], [3, -1], [4, -1]]]).repeat(3, 1, 1)
    return hidden, weight, options, torch.tensor([0, 2, 1]), bias, objective, 0.5, 3.0, "torch"


TREE = torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 0], [1, 0, 1]]]).bool()


def branch_attention_inputs(seen: Tensor | None = None) -> tuple[Any, ...]:
    query, key, value = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 6)
    keys, values = [torch.randn(n, 2, 5, 8) for n in (1, 2)], [torch.randn(n, 2, 5, 6) for n in (1, 2)]
    pieces = [torch.zeros(2, dtype=torch.int64), torch.arange(2)]
    lengths, starts = [torch.tensor([5]), torch.tensor([2, 4])], [torch.tensor([0]), torch.tensor([5, 5])]
    positions, sinks = torch.tensor([7, 9]), torch.randn(4)
    return query, key, value, keys, values, pieces, lengths, starts, positions, 0.3, 5.0, 6, seen, sinks, "torch"


def score_gemm_inputs() -> tuple[Any, ...]:
    grad, weight, gate, up = torch.randn(9, 5), torch.randn(5, 6), torch.randn(9, 6), torch.randn(9, 6)
    return grad, weight, gate, up, None, torch.tensor([4, 0, 5]), torch.randn(3), "gelu_erf", False, "torch"


INPUTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "branch_attention": branch_attention_inputs,
    "contrastive_ce": contrastive_ce_inputs,
    "glu_score": glu_score_inputs,
    "score_gemm": score_gemm_inputs,
}


def differentiable(values: tuple[Any, ...], names: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(v.requires_grad_() if n in names else v for n, v in enumerate(values))


DIFFERENTIABLE = {
    "branch_attention": (0, 1, 2),
    "contrastive_ce": (0,),
    "glu_score": (0, 1, 2),
    "score_gemm": (0, 2, 3),
}


@pytest.mark.parametrize("op", INPUTS)
def test_opcheck(op: str) -> None:
    operator = getattr(torch.ops.neuronllm, op).default
    torch.library.opcheck(operator, INPUTS[op]())
    torch.library.opcheck(operator, differentiable(INPUTS[op](), DIFFERENTIABLE[op]))


def test_opcheck_of_the_backward_operators() -> None:
    operators, (gate, up, grad, starts, lengths, *_) = torch.ops.neuronllm, glu_score_inputs()
    torch.library.opcheck(
        operators.glu_score_backward.default, (torch.randn(3, 6), gate, up, grad, starts, lengths, "silu", False)
    )
    values = score_gemm_inputs()[:6]
    torch.library.opcheck(operators.score_gemm_backward.default, (torch.randn(3, 6), *values, "silu", False))
    for seen in (None, TREE):
        *rows, sinks, backend = branch_attention_inputs(seen)
        out, lse = operators.branch_attention(*rows, sinks, backend)
        values = (torch.randn_like(out), out, lse, *rows, backend)
        torch.library.opcheck(operators.branch_attention_backward.default, values)


def test_opcheck_of_branch_attention_over_trees() -> None:
    operator = torch.ops.neuronllm.branch_attention.default
    torch.library.opcheck(operator, branch_attention_inputs(TREE))
    torch.library.opcheck(operator, differentiable(branch_attention_inputs(TREE), DIFFERENTIABLE["branch_attention"]))


@pytest.mark.parametrize("seen", [None, TREE])
def test_branch_attention_gradients(seen: Tensor | None) -> None:
    rows = [x.double() if isinstance(x, Tensor) else x for x in branch_attention_inputs(seen)[:3]]
    keys, values = [torch.randn(1, 2, 5, n, dtype=torch.float64) for n in (8, 6)]
    zero = torch.zeros(2, dtype=torch.int64)
    level = ops.Pieces(keys, values, zero, zero[:1] + 4, zero[:1])

    def mixed(*own: Tensor) -> Tensor:
        return ops.branch_attention(*own, [level], window=4, softcap=3.0, seen=seen)

    assert torch.autograd.gradcheck(mixed, tuple(x.requires_grad_() for x in rows))


def test_opcheck_of_glu_score_variants() -> None:
    gate, up, grad, starts, lengths, weights, *_ = glu_score_inputs()
    for values in (
        (torch.cat([gate, up], 1), None, grad, None, None, None, "gelu_erf", True, True, "torch"),
        (
            gate,
            None,
            grad.bfloat16().float(),
            lengths,
            lengths,
            weights[:, None] + gate[:3],
            "relu",
            True,
            False,
            "torch",
        ),
    ):
        if values[3] is not None:
            values = (*values[:3], torch.tensor([0, 0, 4]), *values[4:])
        torch.library.opcheck(torch.ops.neuronllm.glu_score.default, values)
        torch.library.opcheck(torch.ops.neuronllm.glu_score.default, differentiable(values, (0, 2)))
    into = torch.zeros(6)
    torch.library.opcheck(torch.ops.neuronllm.glu_score_into.default, (into, *glu_score_inputs()))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("layout", ["separate", "fused", "no gate"])
@pytest.mark.parametrize("act", ["silu", "gelu_tanh", "gelu_erf", "relu2", "identity"])
def test_glu_score_gradients(act: str, layout: str, split: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    gate, up, grad = (torch.randn(7, 4, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(3))
    lengths, weights = torch.tensor([3, 0, 4]), torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)

    def scores(*factors: Tensor) -> Tensor:
        g, *u, dh = factors
        first = torch.cat([g, *u], 1) if layout == "fused" else g
        second = u[0] if layout == "separate" else None
        return ops.glu_score(first, second, dh, lengths, act=act, weights=weights, split=split, backend="torch").scores

    assert torch.autograd.gradcheck(scores, (gate, grad) if layout == "no gate" else (gate, up, grad))


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("layout", ["separate", "fused", "no gate"])
def test_score_gemm_gradients(layout: str, each: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(7, 4, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(2))
    grad = torch.randn(7, 3, dtype=torch.float64, generator=draw).requires_grad_()
    down = torch.randn(3, 4, dtype=torch.float64, generator=draw)
    lengths, weights = None if each else torch.tensor([3, 0, 4]), torch.arange(1.0, 8 if each else 4)

    def scores(*factors: Tensor) -> Tensor:
        dy, g, *u = factors
        first = torch.cat([g, *u], 1) if layout == "fused" else g
        second = u[0] if layout == "separate" else None
        return ops.score_gemm(dy, down, first, second, lengths, weights=weights, each=each, backend="torch")

    assert torch.autograd.gradcheck(scores, (grad, gate) if layout == "no gate" else (grad, gate, up))


class Scored(torch.nn.Module):
    """A model that calls every op, as a user's would."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = torch.nn.Linear(5, 6), torch.nn.Linear(5, 6)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        h = torch.nn.functional.silu(gate) * up
        found = ops.glu_score(gate, up, h.detach(), lengths)
        sums = torch.zeros(6)
        ops.glu_score(gate.detach(), up.detach(), h.detach(), lengths, into=sums, gradients=False)
        chosen = torch.arange(12).reshape(3, 4) % 6
        answers = ops.contrastive_ce(h[:3], torch.eye(6), chosen, torch.tensor([0, 3, 1]), objective="p_vocab")
        q = h.reshape(1, 9, 2, 3).transpose(1, 2)
        one = torch.zeros(1, dtype=torch.int64)
        shared = ops.Pieces(q.detach(), q.detach(), one, one + 5, one)
        mixed = ops.branch_attention(q, q, q, [shared], window=4)
        mixed = mixed + ops.branch_attention(q, q, q, [shared], window=4, seen=torch.ones(1, 3, 3).tril().bool())
        summed = ops.score_gemm(x, torch.ones(5, 6), gate, up, lengths).sum(0)
        return found.scores.sum(0) + sums + found.gate.sum(0) + answers.value.sum() + mixed.sum() + summed


@pytest.mark.parametrize("compiler", ["aot_eager"])
def test_compiled_models_equal_eager(compiler: str) -> None:
    model, lengths = Scored(), torch.tensor([4, 5])
    x = torch.randn(9, 5)
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    results = []
    for run in (model, compiled):
        model.zero_grad()
        out = run(x, lengths)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == 5
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_sizes_that_a_compiler_traces_as_unknown_are_checked() -> None:
    def scores(gate: Tensor, lengths: Tensor) -> Tensor:
        one = ops.glu_score(gate, gate, gate, lengths, weights=torch.ones(2)).scores
        return one + ops.score_gemm(gate, torch.eye(4), gate, None, lengths, weights=torch.ones(2, 4))

    compiled = torch.compile(scores, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in (torch.tensor([1, 2]), torch.tensor([3, 4])):
        x = torch.randn(int(lengths.sum()), 4)
        torch.testing.assert_close(compiled(x, lengths), scores(x, lengths))


# ---- back ends ----


def test_a_missing_back_end_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, 3)
    with refused('backend="triton"', "CPU"):
        ops.glu_score(x, x, x, backend="triton")
    with refused('backend="triton"', "float64"):
        ops.glu_score(x.double(), x.double(), x.double(), backend="triton")
    with refused("backend='cuda'", "auto, triton, torch"):
        ops.glu_score(x, x, x, backend="cuda")
    with refused("backend='cuda'"), ops.using("cuda"):
        pass
    with refused('backend="triton"', "CPU"), ops.using("triton"):
        ops.glu_score(x, x, x)
    with ops.using("triton"), ops.using("auto"):
        assert ops.glu_score(x, x, x).scores.shape == (1, 3)
    monkeypatch.setattr(env, "package_version", lambda name: None)
    with refused('backend="triton"', "not installed"):
        ops.glu_score(x, x, x, backend="triton")
    assert ops.glu_score(x, x, x).scores.shape == (1, 3)


def test_auto_takes_a_kernel_where_it_was_measured_to_win(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.kernel_choice("glu_score", None) == ("torch", "torch finds no CUDA device")
    name, reason = env.kernel_choice("glu_score", "A new GPU")
    assert name == "torch" and "A new GPU" in reason
    report = env.report()["kernels"]
    assert set(report) == set(env.OPS)
    assert all(entry["backend"] in ("triton", "torch") and entry["reason"] for entry in report.values())
    assert all(op in env.describe() for op in env.OPS)


def test_ops_import_and_work_without_triton() -> None:
    code = (
        "import sys, torch, neuronllm.ops as ops; print('triton' in sys.modules); sys.modules['triton'] = None\n"
        "x = torch.ones(2, 3); print(ops.glu_score(x, x, x, act='relu').scores.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["False", "[[2.0, 2.0, 2.0]]"]


def test_contrastive_ce_refuses_what_it_cannot_read() -> None:
    hidden, weight, options, right, bias, *_ = contrastive_ce_inputs()
    bad: list[tuple[str, dict[str, Any]]] = [
        ("objective='nll'", {"objective": "nll"}),
        ("weight", {"weight": weight.double()}),
        ("weight", {"weight": weight[:, :4]}),
        ("options", {"options": options.float()}),
        ("options", {"options": options[:2]}),
        ("options: token id 20", {"options": options + 16}),
        ("right", {"right": right + 1}),
        ("right", {"right": right[:2]}),
        ("bias", {"bias": bias[:3]}),
        ("softcap", {"softcap": 0.0}),
        ("softcap=nan", {"softcap": float("nan")}),
        ("hidden: give a tensor, not list", {"hidden": hidden.tolist()}),
        ("options: give a tensor, not ndarray", {"options": options.numpy()}),
        *((f"{n}: it is on meta", {n: x.to("meta")}) for n, x in (("weight", weight), ("options", options))),
        *((f"{n}: it is on meta", {n: x.to("meta")}) for n, x in (("right", right), ("bias", bias))),
        ("takes no gradient", {"weight": weight.clone().requires_grad_()}),
    ]
    given = {"hidden": hidden, "weight": weight, "options": options, "right": right, "bias": bias}
    assert ops.contrastive_ce(**given).value.shape == (3,)
    for name, changed in bad:
        with refused(name):
            ops.contrastive_ce(**given | changed)
    small = ops.contrastive_ce(**given | {"options": options.int(), "right": right.int()})
    assert torch.equal(small.grad, ops.contrastive_ce(**given).grad)
    many = torch.zeros(3, 33, dtype=torch.int64)
    with refused("at most 32 option tokens"):
        ops.contrastive_ce(**given | {"options": many}, backend="triton")


def test_score_gemm_refuses_what_it_cannot_read() -> None:
    grad, weight, gate = torch.ones(3, 5), torch.ones(5, 4), torch.ones(3, 4)
    bad: list[tuple[str, Callable[[], object]]] = [
        ("weight", lambda: ops.score_gemm(grad, weight.T, gate)),
        ("gate", lambda: ops.score_gemm(grad, weight, gate[:2])),
        ("gate", lambda: ops.score_gemm(grad, weight, gate.double())),
        ("act=", lambda: ops.score_gemm(grad, weight, gate, act="swish")),
        ("each", lambda: ops.score_gemm(grad, weight, gate, lengths=torch.tensor([3]), each=True)),
        ("weights", lambda: ops.score_gemm(grad, weight, gate, weights=torch.ones(2))),
        ("weights: it is on meta", lambda: ops.score_gemm(grad, weight, gate, weights=torch.ones(1, device="meta"))),
        ("weights: give a tensor, not list", lambda: ops.score_gemm(grad, weight, gate, weights=[1.0])),
        ("lengths: it is on meta", lambda: ops.score_gemm(grad, weight, gate, lengths=torch.tensor([3]).to("meta"))),
        ("detach", lambda: ops.score_gemm(grad, weight.clone().requires_grad_(), gate)),
    ]
    for name, call in bad:
        with refused(name):
            call()


def test_glu_score_refuses_what_it_cannot_read() -> None:
    x, three = torch.ones(3, 4), torch.tensor([1, 2])
    bad: list[tuple[str, Callable[[], object]]] = [
        ("act='tanh'", lambda: ops.glu_score(x, x, x, act="tanh")),
        ("gate, up", lambda: ops.glu_score(x[:2], x, x)),
        ("gate, up", lambda: ops.glu_score(torch.ones(3, 5), None, x)),
        ("up", lambda: ops.glu_score(x, x.double(), x)),
        ("gate", lambda: ops.glu_score(x[0], None, x)),
        ("starts", lambda: ops.glu_score(x, x, x, starts=three)),
        ("lengths", lambda: ops.glu_score(x, x, x, three.float())),
        ("lengths: give a tensor, not list", lambda: ops.glu_score(x, x, x, [1, 2])),
        ("gate: give a tensor, not ndarray", lambda: ops.glu_score(x.numpy(), x, x)),
        ("gate: give a tensor, not NoneType", lambda: ops.glu_score(None, x, x)),
        ("float16, bfloat16", lambda: ops.glu_score(*[x.to(torch.float8_e4m3fn)] * 3)),
        ("lengths: it is on meta", lambda: ops.glu_score(x, x, x, three.to("meta"))),
        ("weights: it is on meta", lambda: ops.glu_score(x, x, x, three, weights=torch.ones(2, device="meta"))),
        ("lengths", lambda: ops.glu_score(x, x, x, three + 1)),
        ("share a row", lambda: ops.glu_score(x, x, x, three, torch.tensor([1, 0]))),
        ("weights", lambda: ops.glu_score(x, x, x, three, weights=torch.ones(3))),
        ("into", lambda: ops.glu_score(x, x, x, three, into=torch.ones(3))),
        ("into", lambda: ops.glu_score(x, x, x, three, into=torch.ones(4).double())),
    ]
    for name, call in bad:
        with refused(name):
            call()
    with pytest.raises(InputError):
        ops.glu_score(x, x, x, torch.tensor([-1, 2]))
