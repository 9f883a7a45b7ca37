"""What the operators refuse in one line, and what must not matter to them: padding, and inputs of no size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from neuronllm import ops
from neuronllm.kernels.contrastive_ce.reference import contrastive_ce
from neuronllm.kernels.questions import cut
from tests.checks import refused

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def score(lengths: Tensor, starts: Tensor | None) -> Tensor:
    return ops.glu_score(X, X, X, lengths, starts, act="identity").scores


def gemm(lengths: Tensor, starts: Tensor | None) -> Tensor:
    return ops.score_gemm(X, torch.eye(4), X, None, lengths, starts, act="identity")


@pytest.mark.parametrize("op", [score, gemm])
def test_rows_whose_numbers_overflow_are_refused(op: Callable[..., Tensor]) -> None:
    huge = 2**63 - 1
    bad: list[tuple[str, list[int], list[int] | None]] = [
        ("reaches beyond the 6 rows", [1, 1], [huge, 0]),
        ("reaches beyond the 6 rows", [huge, 0], [1, 0]),
        ("reaches beyond the 6 rows", [1, 0], [huge, 0]),
        ("reaches beyond the 6 rows", [2**62] * 4, None),
        ("reaches beyond the 6 rows", [4, 3], None),
        ("reaches beyond the 6 rows", [0], [7]),
        ("lengths: -1 rows", [-1, 5], None),
        ("lengths: -1 rows", [-1, 5], [0, 0]),
        ("starts: -2 is no row", [1, 5], [-2, 0]),
    ]
    for message, lengths, starts in bad:
        with refused(message):
            op(torch.tensor(lengths), None if starts is None else torch.tensor(starts))
    assert torch.equal(op(torch.tensor([0, 6]), torch.tensor([6, 0]))[1], op(torch.tensor([6]), None)[0])


@pytest.mark.parametrize("lengths", [[2**63 - 1, 3], [-9, 30], [100, 100]])
def test_chunks_of_lengths_that_nobody_looked_at_stay_inside(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = torch.tensor(lengths)
    monkeypatch.setattr("neuronllm.kernels.questions.bounds", lambda *_: (wrong.cumsum(0) - wrong, wrong))
    chunks = cut(wrong, None, 6, 2, torch.device("cpu"), known=False)
    _, row, count = chunks.table
    assert bool((row >= 0).all() and (count >= 0).all() and (row + count <= 6).all())
    assert bool((chunks.first >= 0).all() and (chunks.first <= chunks.table.shape[1]).all())


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "window": 3}])
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), float("-inf")])
def test_padding_of_branch_attention_never_matters(rubbish: float, options: dict[str, float]) -> None:
    draw, results = torch.Generator().manual_seed(0), []
    own, keys, values = (torch.randn(n, 2, m, 8, generator=draw) for n, m in ((2, 3), (1, 5), (1, 5)))
    zero = torch.zeros(2, dtype=torch.int64)
    for padding in (0.0, rubbish):
        keys[:, :, 3:], values[:, :, 3:] = padding, padding
        rows = [(own * n).requires_grad_() for n in (1, 2, 3)]
        level = ops.Pieces(keys, values, zero, zero[:1] + 3, zero[:1])
        out = ops.branch_attention(*rows, [level], **options)  # type: ignore[arg-type]
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), rows)])
    for clean, found in zip(*results, strict=True):
        assert torch.equal(clean, found)


def test_branch_attention_refuses_what_it_cannot_read() -> None:
    own, one = torch.randn(2, 2, 3, 8), torch.zeros(2, dtype=torch.int64)
    level = ops.Pieces(torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8), one, one + 5, one)
    tree = torch.ones(2, 3, 3, dtype=torch.bool).tril()
    assert ops.branch_attention(own, own, own, [level]).shape == own.shape
    assert ops.branch_attention(own, own, own, [level], seen=tree).shape == own.shape

    def eye(nodes: int) -> Tensor:
        return torch.eye(nodes, dtype=torch.bool).repeat(2, 1, 1)

    bad: list[tuple[str, Callable[[], object]]] = [
        ("query", lambda: ops.branch_attention(own[0], own, own)),
        ("groups", lambda: ops.branch_attention(own, own[:, :, :2], own)),
        ("one type", lambda: ops.branch_attention(own, own.double(), own)),
        ("prefix[0].keys", lambda: ops.branch_attention(own, own, own, [level._replace(keys=level.keys[..., :4])])),
        ("prefix[1].values", lambda: ops.branch_attention(own, own, own, [level, level._replace(values=own)])),
        ("prefix: give a list", lambda: ops.branch_attention(own, own, own, level)),
        ("prefix[0]: give Pieces", lambda: ops.branch_attention(own, own, own, [own])),  # type: ignore[list-item]
        ("query: give a tensor", lambda: ops.branch_attention(own.tolist(), own, own)),
        ("key: it is on meta", lambda: ops.branch_attention(own, own.to("meta"), own)),
        ("sinks: it is on meta", lambda: ops.branch_attention(own, own, own, sinks=torch.zeros(2, device="meta"))),
        ("sinks", lambda: ops.branch_attention(own, own, own, sinks=one)),
        ("positions", lambda: ops.branch_attention(own, own, own, positions=one.float())),
        ("positions: it is on meta", lambda: ops.branch_attention(own, own, own, positions=one.to("meta"))),
        *((f"softcap={x}", lambda x=x: ops.branch_attention(own, own, own, softcap=x)) for x in (0.0, -1, math.nan)),
        *((f"window={x}", lambda x=x: ops.branch_attention(own, own, own, window=x)) for x in (0, -3, 2.5, True)),
        ("positions", lambda: ops.branch_attention(own, own, own, positions=one[:1])),
        ("sinks", lambda: ops.branch_attention(own, own, own, sinks=torch.zeros(3))),
        ("seen: give a tensor", lambda: ops.branch_attention(own, own, own, seen=[[True]])),
        ("seen: it is on meta", lambda: ops.branch_attention(own, own, own, seen=tree.to("meta"))),
        *(
            ("seen: give a bool (2 prompts, nodes, nodes)", lambda x=x: ops.branch_attention(own, own, own, seen=x))
            for x in (tree.int(), tree[0], tree[:1], tree[:, :2])
        ),
        *(
            ("seen: 3 rows are no whole trees", lambda n=n: ops.branch_attention(own, own, own, seen=eye(n)))
            for n in (0, 2)
        ),
        ("3 levels", lambda: ops.branch_attention(own, own, own, [level] * 4, backend="triton")),
    ]
    parts: list[tuple[str, dict[str, Any]]] = [
        ("prefix[0]: give a piece for", {"piece": one[:1]}),
        ("prefix[0].piece: give numbers of pieces, from 0 to 1", {"piece": one + 2}),
        ("prefix[0].piece: give numbers of pieces, from 0 to 1", {"piece": one - 1}),
        ("prefix[0].piece: give whole numbers", {"piece": one.byte()}),
        ("prefix[0].lengths: give numbers of tokens, from 0 to the 5", {"lengths": one + 6}),
        ("prefix[0].lengths: give numbers of tokens, from 0 to the 5", {"lengths": one - 1}),
        ("prefix[0].lengths: give whole numbers", {"lengths": one.float()}),
        ("prefix[0].lengths: give a tensor, not list", {"lengths": [5, 5]}),
        ("prefix[0].starts: give whole numbers", {"starts": one.double()}),
        *((f"prefix[0].{n}", {n: getattr(level, n).to("meta")}) for n in ops.Pieces._fields),
    ]
    for name, changed in parts:
        bad.append((name, lambda c=changed: ops.branch_attention(own, own, own, [level._replace(**c)])))  # type: ignore[misc]
    for name, call in bad:
        with refused(name):
            call()


def test_a_running_sum_that_would_lose_gradients_or_inputs_is_refused() -> None:
    into, leaf = torch.zeros(4), X.clone().requires_grad_()
    for rows in ((leaf, X, X), (X, leaf, X), (X, X, leaf)):
        with refused("into: a running sum is not differentiable"):
            ops.glu_score(*rows, into=into)
        with torch.no_grad():
            ops.glu_score(*rows, into=into)
    torch.testing.assert_close(into, 3 * ops.glu_score(X, X, X).scores[0])
    with refused("into: a running sum is not differentiable"):
        ops.glu_score(X, X, X, into=torch.zeros(4, requires_grad=True))
    own, weights = X.clone(), torch.ones(1, 4)
    with refused("into: it shares memory"):
        ops.glu_score(own, X, X, into=own[5])
    with refused("into: it shares memory"):
        ops.glu_score(X, X, own, into=own[0])
    with refused("into: it shares memory"):
        ops.glu_score(X, X, X, weights=weights, into=weights[0])
    ops.glu_score(own[:5], X[:5], X[:5], into=own[5])  # neighbours in one storage
    assert ops.glu_score(*[torch.ones(3, 0)] * 3, into=torch.zeros(0)).scores.shape == (0,)
    assert ops.glu_score(*[torch.ones(3, 0)] * 3, split=True, into=torch.zeros(2, 0)).scores.shape == (2, 0)


HIDDEN, CHOICES, RIGHT = torch.randn(3, 4), torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.tensor([0, 1, 1])
OWN = torch.randn(2, 2, 3, 4)
CALLS: dict[str, Callable[..., object]] = {
    "glu_score": lambda **given: ops.glu_score(X, X, X, **given),
    "score_gemm": lambda **given: ops.score_gemm(X, torch.eye(4), X, **given),
    "contrastive_ce": lambda **given: ops.contrastive_ce(HIDDEN, X, CHOICES, RIGHT, **given),
    "branch_attention": lambda **given: ops.branch_attention(OWN, OWN, OWN, **given),
}
ODD: dict[str, tuple[list[str], list[object]]] = {
    "backend": (list(CALLS), [None, 3, ["torch"], X]),
    "act": (["glu_score", "score_gemm"], [["silu"], None, X]),
    "split": (["glu_score"], ["x", None]),
    "gradients": (["glu_score"], ["x", None]),
    "each": (["score_gemm"], ["x", None]),
    "objective": (["contrastive_ce"], [["margin"], None]),
    "scale": (["contrastive_ce", "branch_attention"], ["x", X, float("nan"), float("inf"), 10**400, 1j]),
    "softcap": (["contrastive_ce", "branch_attention"], ["x", X, 10**400]),
    "window": (["branch_attention"], [2**63, "x", X]),
}


@pytest.mark.parametrize("argument", ODD)
def test_arguments_that_an_operator_cannot_take_are_refused(argument: str) -> None:
    names, values = ODD[argument]
    for name in names:
        CALLS[name]()
        for value in values:
            with refused(f"{argument}="):
                CALLS[name](**{argument: value})
    with refused("scale=None"):
        CALLS["contrastive_ce"](scale=None)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64, torch.bool])
def test_weights_that_are_no_real_numbers_are_refused(kind: torch.dtype) -> None:
    for name in ("glu_score", "score_gemm"):
        with refused("weights: give float16", str(kind)):
            CALLS[name](weights=torch.ones(1, dtype=kind))


def test_positions_that_a_window_cannot_compare_are_refused() -> None:
    zero = torch.zeros(2, dtype=torch.int64)
    level = ops.Pieces(OWN, OWN, zero, zero + 3, zero)
    far = zero + 2**40
    with refused("positions: with a window"):
        ops.branch_attention(OWN, OWN, OWN, [level], positions=far, window=3)
    with refused("prefix[0].starts: with a window"):
        ops.branch_attention(OWN, OWN, OWN, [level._replace(starts=-far)], window=3)
    plain = ops.branch_attention(OWN, OWN, OWN, [level])
    assert torch.equal(ops.branch_attention(OWN, OWN, OWN, [level], positions=far), plain)
    assert torch.equal(ops.branch_attention(OWN, OWN, OWN, [level], window=2**62), plain)


def test_inputs_of_no_size() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    group = OWN.clone().requires_grad_()
    out = ops.branch_attention(OWN[:, :0], group, group)
    assert out.shape == (2, 0, 3, 4)
    out.sum().backward()
    assert group.grad is not None and not group.grad.any()
    with refused("groups that divide the heads"):
        ops.branch_attention(OWN, OWN[:, :0], OWN[:, :0])
    with refused("width of 1 or more"):
        ops.branch_attention(OWN[..., :0], OWN[..., :0], OWN)
    assert ops.branch_attention(OWN, OWN, OWN[..., :0]).shape == (2, 2, 3, 0)
    nothing = ops.Pieces(OWN[:0], OWN[:0], torch.zeros(2, dtype=torch.int64), none, none)
    with refused("prefix[0]: it has no pieces"):
        ops.branch_attention(OWN, OWN, OWN, [nothing])
    alone = nothing._replace(piece=none)
    assert ops.branch_attention(OWN[:0], OWN[:0], OWN[:0], [alone]).shape == (0, 2, 3, 4)
    with refused("the vocabulary is empty"):
        ops.contrastive_ce(HIDDEN, X[:0], CHOICES - 9, RIGHT, objective="logp_vocab")


def test_a_row_without_any_token_is_refused_or_takes_no_part() -> None:
    options = torch.tensor([[0, 1], [-1, -3], [4, -1]])
    with refused("options: row 1 has no token at all"):
        ops.contrastive_ce(HIDDEN, X, options, RIGHT)
    value, _, grad = contrastive_ce(HIDDEN, X, options[..., None], RIGHT, None, "p_options", 1.0, None)
    assert value[1] == 0 and not grad[1].any() and grad[0].any()


def test_infinite_sinks_take_all_the_weight() -> None:
    rows = OWN.clone().requires_grad_()
    out = ops.branch_attention(rows, rows, rows, sinks=torch.tensor([float("inf"), 0.0]))
    assert not out[:, 0].any() and bool(out[:, 1].all())
    out.sum().backward()
    assert rows.grad is not None and not rows.grad[:, 0].any() and not rows.grad.isnan().any()
