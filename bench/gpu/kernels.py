"""Stage: every Triton kernel against its reference in float64, at small and ragged sizes, in every type.

What a kernel may be off by is twice what PyTorch is off in the same type, and half a unit in the last place of the
result; and a second call must give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neuronllm import ops
from neuronllm.kernels.launch import device_name, table

from .diagnosis import ROOT, differences
from .worker import Case, Setting, Wrong

HALF = (torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 4e-6, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
LENGTHS = [3, 0, 37, 16, 129]
Given = dict[str, Any]
Call = Callable[..., Sequence[Tensor | None]]


def cases(setting: Setting) -> list[Case]:
    """One a kernel, type and variant; on a GPU attention refuses float32."""
    found = []
    for op, (call, variants) in OPS.items():
        types = HALF if op == "branch_attention" else (torch.float32, *HALF)
        types = (torch.float32, torch.bfloat16) if setting.pretend else types  # the interpreter is slow
        for dtype in types:
            for name, make in variants.items():
                kind = str(dtype).removeprefix("torch.")
                found.append(Case(f"{op}, {kind}, {name}", _case(op, call, make, dtype, setting.device)))
    return found


def _case(op: str, call: Call, make: Callable[[], Given], dtype: torch.dtype, device: str) -> Callable[[], Given]:
    def run() -> dict[str, Any]:
        torch.manual_seed(0)
        given = _mapped(make(), lambda x: x.to(device, dtype) if x.is_floating_point() else x.to(device))
        wide = _mapped(given, lambda x: x.double() if x.is_floating_point() else x)
        found, again = (list(call(backend="triton", **given)) for _ in range(2))
        plain, right = (list(call(backend="torch", **x)) for x in (given, wide))
        worst = 0.0
        for number, (x, once_more, y, z) in enumerate(zip(found, again, plain, right, strict=True)):
            if x is None or y is None or z is None or once_more is None:
                continue
            try:
                _hold(x, once_more, y, z, f"result {number}")
            except Wrong as error:
                tables = table(ROOT / "kernels" / op)
                sizes = tables["default"] | tables.get(device_name(x.device), {})
                raise Wrong(f"{error}\nlaunched with {sizes}") from None
            worst = max(worst, _off(x, z))
        return {"largest error, of the largest number": worst}

    return run


def _hold(found: Tensor, again: Tensor, plain: Tensor, right: Tensor, what: str) -> None:
    if not torch.equal(found.contiguous().view(torch.uint8), again.contiguous().view(torch.uint8)):
        raise Wrong(f"{what}: two calls differ in a bit\n{differences(found, again)}")
    if not bool(found.isfinite().all()):
        raise Wrong(f"{what}: a number that is not finite\n{differences(found, plain)}")
    error, budget = _off(found, right), 2 * _off(plain, right) + ROUNDING[found.dtype]
    if not error <= budget:
        allowed = budget * float(right.abs().max())
        raise Wrong(f"{what}: error {error:.2e}, budget {budget:.2e}\n{differences(found, right, allowed)}")


def _off(found: Tensor, right: Tensor) -> float:
    if not found.numel():
        return 0.0
    return float((found.double() - right.double()).abs().max() / right.double().abs().max().clamp(min=1e-30))


def _mapped(given: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, ops.Pieces):
        return ops.Pieces(*(change(x) for x in given))
    if isinstance(given, dict):
        return {name: _mapped(x, change) for name, x in given.items()}
    return [_mapped(x, change) for x in given] if isinstance(given, list) else given


# ---- the ops and their inputs ----


def glu_score(backend: str, **given: Any) -> Sequence[Tensor | None]:
    return ops.glu_score(**given, backend=backend)


def _glu(act: str = "silu", fused: bool = False, gate: bool = True, **more: Any) -> Callable[[], Given]:
    def make() -> Given:
        rows, width = sum(LENGTHS), 200
        up = torch.randn(rows, width) if gate and not fused else None
        found = {"gate": torch.randn(rows, 2 * width if fused else width), "up": up, "grad": torch.randn(rows, width)}
        return found | {"lengths": torch.tensor(LENGTHS), "act": act} | more

    return make


def score_gemm(backend: str, **given: Any) -> Sequence[Tensor | None]:
    return [ops.score_gemm(**given, backend=backend)]


def _gemm(fused: bool = False, transposed: bool = False, each: bool = False) -> Callable[[], Given]:
    def make() -> Given:
        rows, width, neurons = sum(LENGTHS), 130, 150
        weight = torch.randn(neurons, width).T if transposed else torch.randn(width, neurons)
        gate = torch.randn(rows, 2 * neurons if fused else neurons)
        found = {"grad": torch.randn(rows, width), "weight": weight, "gate": gate, "each": each}
        found |= {"up": None if fused else torch.randn(rows, neurons)}
        return found | {"lengths": None if each else torch.tensor(LENGTHS)}

    return make


def contrastive_ce(backend: str, **given: Any) -> Sequence[Tensor | None]:
    return list(ops.contrastive_ce(**given, backend=backend))


def _ce(objective: str, forms: int = 1, **more: Any) -> Callable[[], Given]:
    def make() -> Given:
        rows, width, vocabulary, options = 9, 130, 300, 4
        ids = torch.randperm(vocabulary)[: rows * options * forms].view(rows, options, forms)
        found = {"hidden": 0.3 * torch.randn(rows, width), "weight": 0.3 * torch.randn(vocabulary, width)}
        return found | {"options": ids, "right": torch.arange(rows) % options, "objective": objective} | more

    return make


def branch_attention(backend: str, query: Tensor, key: Tensor, value: Tensor, prefix: list[Any], **more: Any) -> Any:
    """The result and the gradients of query, key and value."""
    leaves = [x.detach().requires_grad_() for x in (query, key, value)]
    out = ops.branch_attention(*leaves, prefix, **more, backend=backend)
    above = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).to(out.device).reshape(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, above)]


def _attention(
    width: int, heads: int, groups: int, rows: int, chain: int | None = None, **more: Any
) -> Callable[[], Given]:
    """Rows are chains of so many nodes where that is given."""

    def make() -> Given:
        prompts = 3
        pieces = [([35], [0, 0, 0], [0]), ([7, 18, 3], [0, 1, 2], [35, 35, 35])]
        prefix = []
        for lengths, piece, starts in pieces:
            size = (len(lengths), groups, max(lengths) + 2, width)
            numbers = (torch.tensor(x) for x in (piece, lengths, starts))
            prefix.append(ops.Pieces(torch.randn(size), torch.randn(size), *numbers))
        own = [torch.randn(prompts, n, rows, width) for n in (heads, groups, groups)]
        seen = torch.ones(prompts, chain, chain, dtype=torch.bool).tril() if chain else None
        return dict(zip(("query", "key", "value"), own, strict=True)) | {"prefix": prefix, "seen": seen} | more

    return make


OPS: dict[str, tuple[Call, dict[str, Callable[[], Given]]]] = {
    "glu_score": (
        glu_score,
        {"two matrices": _glu(), "fused, split": _glu("gelu_tanh", fused=True, split=True),
         "no gate": _glu("relu", gate=False)},
    ),
    "score_gemm": (
        score_gemm,
        {"two matrices": _gemm(), "fused": _gemm(fused=True),
         "transposed, each row": _gemm(transposed=True, each=True)},
    ),
    "contrastive_ce": (
        contrastive_ce,
        {"letters": _ce("logp_options"), "margin, two forms, cap": _ce("margin", forms=2, softcap=20.0),
         "vocabulary": _ce("logp_vocab")},
    ),
    "branch_attention": (
        branch_attention,
        {"grouped heads": _attention(64, 8, 2, 17), "width 128": _attention(128, 4, 4, 5),
         "window, cap": _attention(64, 4, 2, 9, window=12, softcap=30.0),
         "trees": _attention(128, 8, 2, 45, chain=5), "trees, window, cap": _attention(
             64, 4, 2, 18, chain=6, window=12, softcap=30.0)},
    ),
}  # fmt: skip
