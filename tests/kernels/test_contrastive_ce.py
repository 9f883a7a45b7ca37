"""contrastive_ce: kernel and reference against the engine's own objectives in float64, gradients by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuronllm.engine.objectives import NEVER, OBJECTIVES, Readout
from neuronllm.kernels.contrastive_ce import reference
from neuronllm.ops import ContrastiveCE, contrastive_ce
from tests.kernels.lanes import DEVICE, DTYPES, bits, only_interpreted, poisoned, same_bits, watched, within_budget

# rows, width, vocabulary, options, forms
SHAPES = {
    "no row": (0, 40, 50, 4, 1),
    "one option": (2, 40, 50, 1, 1),
    "two options": (1, 33, 50, 2, 1),
    "four letters": (5, 130, 200, 4, 2),
    "ten options": (3, 64, 77, 10, 2),
}


def inputs(shape: tuple[int, ...], dtype: torch.dtype, bias: bool = False, seed: int = 0) -> dict[str, Any]:
    rows, width, vocabulary, count, forms = shape
    draw = torch.Generator().manual_seed(seed)
    options = torch.randint(vocabulary, (rows, count, forms), generator=draw)
    if forms > 1:
        options[:, 1:, -1] = -1  # options of different numbers of forms
    if count > 2:
        options[::2, -1] = -1  # questions of different numbers of options
    right = torch.randint(max(1, count - 1), (rows,), generator=draw)
    found = {
        "hidden": torch.randn(rows, width, generator=draw),
        "weight": torch.randn(vocabulary, width, generator=draw),
    }
    if bias:
        found["bias"] = torch.randn(vocabulary, generator=draw)
    found = {name: (x * 0.3).to(dtype).to(DEVICE) for name, x in found.items()}
    return found | {"options": options.to(DEVICE), "right": right.to(DEVICE)}


def wide(given: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.items()}


def judged(given: dict[str, Any], objective: str, scale: float, softcap: float | None) -> ContrastiveCE:
    """The engine's objectives on logits of the whole vocabulary, in float64."""
    given = wide(given)
    hidden = given["hidden"].clone().requires_grad_()
    logits = hidden @ given["weight"].T
    logits = (logits + given["bias"] if "bias" in given else logits) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    options = given["options"]
    found = logits[:, None].expand(-1, options.shape[1], -1).gather(-1, options.clamp(min=0))
    scores = found.masked_fill(options < 0, NEVER).logsumexp(-1)
    value = OBJECTIVES[objective].value(Readout(scores, given["right"][:, None], logits.logsumexp(-1)))
    (grad,) = torch.autograd.grad(value.sum(), hidden)
    return ContrastiveCE(value.detach(), scores.detach(), grad)


def check(given: dict[str, Any], objective: str, scale: float = 1.0, softcap: float | None = None) -> None:
    options: dict[str, Any] = {"objective": objective, "scale": scale, "softcap": softcap}
    right = judged(given, objective, scale, softcap)
    for x, y in zip(contrastive_ce(**wide(given), **options, backend="torch"), right, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)
    with poisoned():
        found = contrastive_ce(**given, **options, backend="triton")
    plain = contrastive_ce(**given, **options, backend="torch")
    for x, y, z in zip(found, plain, right, strict=True):
        within_budget(x, y, z)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("objective", reference.OBJECTIVES)
def test_objectives(objective: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(inputs(shape, dtype), objective)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("objective", ["logp_options", "margin", "p_vocab"])
def test_bias_scale_and_cap(objective: str, dtype: torch.dtype) -> None:
    for scale, softcap in ((0.25, None), (1.0, 3.0), (2.0, 1.5)):
        check(inputs((3, 70, 90, 4, 2), dtype, bias=True), objective, scale, softcap)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_vocabulary_of_several_splits(dtype: torch.dtype) -> None:
    check(inputs((17, 24, 1200, 4, 1), dtype), "logp_vocab")


def test_views_of_larger_tensors() -> None:
    given = inputs((4, 40, 60, 3, 2), torch.bfloat16)
    for name in ("hidden", "weight"):
        x = given[name]
        given[name] = torch.cat([x, x], 1)[:, : x.shape[1]]
    check(given, "margin")
    given["hidden"] = given["hidden"].T.contiguous().T
    check(given, "logp_options")


@pytest.mark.parametrize("objective", ["margin", "p_vocab"])
def test_a_bias_of_any_stride(objective: str) -> None:
    given = inputs((3, 20, 11, 4, 1), torch.float32)
    draw = torch.Generator().manual_seed(1)
    for bias in (torch.randn(11, 2, generator=draw).to(DEVICE)[:, 0], torch.tensor(2.0, device=DEVICE).expand(11)):
        check(given | {"bias": bias, "right": given["right"].int()}, objective, softcap=3.0)


@pytest.mark.parametrize("objective", ["logp_options", "p_options", "margin", "logp_vocab"])
@pytest.mark.parametrize("odd", [float("nan"), float("inf")], ids=str)
def test_nan_and_infinity_reach_their_row_only(odd: float, objective: str) -> None:
    given = inputs((3, 40, 60, 4, 1), torch.float32)
    whole = contrastive_ce(**given, objective=objective, backend="triton")
    given["hidden"][1, 3] = odd
    found = contrastive_ce(**given, objective=objective, backend="triton")
    plain = contrastive_ce(**given, objective=objective, backend="torch")
    for x, y in zip(plain[:2], found[:2], strict=True):
        assert not x[1].isfinite().all()
        assert torch.equal(x.isnan(), y.isnan()) and torch.equal(x[x.isinf()], y[y.isinf()])
    assert bool(plain.grad[1].isnan().any()) and bool(found.grad[1].isnan().any())
    for x, y in zip(found, whole, strict=True):
        assert torch.equal(x[[0, 2]], y[[0, 2]])


@pytest.mark.parametrize("objective", ["logp_options", "p_vocab"])
def test_bits_do_not_depend_on_batch_or_order(objective: str) -> None:
    given = inputs((18, 24, 600, 4, 2), torch.bfloat16)
    same_bits(lambda: contrastive_ce(**given, objective=objective, backend="triton"))
    if objective == "p_vocab" and DEVICE == "cuda":
        pytest.skip("PyTorch's products of other sizes have other bits")
    together = contrastive_ce(**given, objective=objective, backend="triton")
    for row in (0, 17):
        one = {k: v[row : row + 1] if k in ("hidden", "options", "right") else v for k, v in given.items()}
        alone = contrastive_ce(**one, objective=objective, backend="triton")
        mine = [x[row : row + 1] for x in together][: 2 if objective == "p_vocab" else 3]
        assert all(torch.equal(a, b) for a, b in zip(bits(alone[: len(mine)]), bits(mine), strict=True))


@only_interpreted
@pytest.mark.parametrize("objective", ["margin", "p_vocab"])
def test_one_writer_and_no_address_outside(objective: str) -> None:
    with watched() as launches:
        contrastive_ce(**inputs((5, 45, 600, 3, 2), torch.bfloat16, bias=True), objective=objective, backend="triton")
        contrastive_ce(**inputs((1, 33, 40, 1, 1), torch.float32), objective=objective, softcap=2.0, backend="triton")
    assert len(launches) == (4 if objective == "p_vocab" else 2)
