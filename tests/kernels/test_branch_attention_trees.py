"""branch_attention over trees: against softmax attention along every row's own path, written out in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from neuronllm.ops import branch_attention
from tests.checks import refused
from tests.kernels.lanes import DEVICE, FEWER, bits, only_interpreted, poisoned, same_bits, watched, within_budget
from tests.kernels.test_branch_attention import PROMPTS, SHARP, drawn, run

Parents = list[list[int]]  # of every prompt's tree, the node above each of its nodes: -1 where there is none


class Case(NamedTuple):
    heads: int
    groups: int
    branches: int
    width: int
    width_v: int
    levels: list[list[int]]  # lengths of the pieces of the prefix
    parents: Parents


# The prompts' trees differ in shape and in the number of nodes; those that are missing see themselves only.
BUSHY = [[-1, 0, 0, 1, 1, 3, 2], [-1, 0, 1, 2], [-1]]
CASES = {
    "two nodes": Case(2, 2, 3, 16, 16, [[20]], [[-1, 0], [-1, 0], [-1]]),
    "no prefix": Case(2, 1, 2, 16, 16, [], BUSHY),
    "over the edge of a tile": Case(6, 2, 3, 20, 12, [[35], [7, 18], [1, 4, 2]], BUSHY),
    "one head": Case(1, 1, 5, 24, 40, [[17], [5, 0, 40]], BUSHY),
    "children before parents": Case(4, 2, 2, 16, 16, [[9]], [[2, 0, -1], [1, -1, 0], [-1, -1, -1]]),
}
# As many nodes as the kernel takes: a chain, a tree of two below each, one node.
WIDEST = Case(1, 1, 1, 16, 16, [[3]], [[n - 1 for n in range(64)], [(n + 1) // 2 - 1 for n in range(64)], [-1]])


def path(parents: list[int], node: int) -> list[int]:
    """A node, the one above it, and so on; a node that is not there has nothing above it."""
    found = [node]
    while node < len(parents) and parents[node] >= 0:
        node = parents[node]
        found.append(node)
    return found


def nodes(case: Case) -> int:
    return max(map(len, case.parents))


def inputs(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    count = nodes(case)
    given = drawn((case.heads, case.groups, case.branches * count, *case[3:6]), dtype)
    seen = torch.zeros(PROMPTS, count, count, dtype=torch.bool)
    for b, parents in enumerate(case.parents):
        for node in range(count):
            seen[b, node, path(parents, node)] = True
    return given | {"seen": seen.to(DEVICE)}


def trees(given: dict[str, Any], options: dict[str, Any], backend: str) -> list[Tensor]:
    return run(given, options | {"seen": given["seen"]}, backend)


def judged(case: Case, given: dict[str, Any], options: dict[str, Any]) -> list[Tensor]:
    """Path by path in float64, and gradients by autograd."""
    q, k, v = (given[x].double().detach().requires_grad_() for x in ("query", "key", "value"))
    count = nodes(case)
    scale, cap, window = options.get("scale") or q.shape[3] ** -0.5, options.get("softcap"), options.get("window")
    rows = []
    for b in range(PROMPTS):
        cut = [(level, int(level.piece[b])) for level in given["prefix"]]
        cut = [(level, p, int(level.lengths[p])) for level, p in cut]
        places = [int(level.starts[p]) + t for level, p, n in cut for t in range(n)]
        for h in range(case.heads):
            g = h // (case.heads // case.groups)
            keys = torch.cat([level.keys[p, g, :n].double() for level, p, n in cut] or [k[b, g, :0]])
            values = torch.cat([level.values[p, g, :n].double() for level, p, n in cut] or [v[b, g, :0]])
            for row in range(q.shape[2]):
                up = path(case.parents[b], row % count)
                position = len(places) + len(up) - 1
                near = [t for t, place in enumerate(places) if window is None or place > position - window]
                own = [row // count * count + node for node in up[:window]]
                logits = q[b, h, row] @ torch.cat([keys[near], k[b, g, own]]).T * scale
                logits = logits if cap is None else cap * torch.tanh(logits / cap)
                if options.get("sinks") is not None:
                    logits = torch.cat([logits, options["sinks"][h].double()[None]])
                weights = logits.softmax(-1)[: len(near) + len(own)]
                rows.append(weights @ torch.cat([values[near], v[b, g, own]]))
    out = torch.stack(rows).unflatten(0, q.shape[:3])
    above = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), above)]


def options_of(what: str, heads: int, dtype: torch.dtype) -> dict[str, Any]:
    sinks = torch.linspace(-1, 2, heads).to(dtype).to(DEVICE)
    options: dict[str, dict[str, Any]] = {
        "window": {"window": 20},
        "window within the trees": {"window": 2},
        "narrow window": {"window": 1},
        "softcap": {"softcap": 1.5, "scale": 0.7},
        "sinks": {"sinks": sinks},
        "everything": {"window": 9, "softcap": 2.0, "sinks": sinks},
    }
    return options[what]


OPTIONS = ("window", "window within the trees", "narrow window", "softcap", "sinks", "everything")


def check(case: Case, dtype: torch.dtype, **options: Any) -> None:
    given = inputs(case, dtype)
    right = judged(case, given, options)
    with poisoned():
        found = trees(given, options, "triton")
    for x, y, z in zip(found, trees(given, options, "torch"), right, strict=True):
        within_budget(x, y, z, more=2.0)


@pytest.mark.parametrize("dtype", FEWER, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_trees(name: str, dtype: torch.dtype) -> None:
    check(CASES[name], dtype)


def test_widest_trees() -> None:
    check(WIDEST, SHARP, window=50)
    wider = torch.ones(PROMPTS, 65, 65, dtype=torch.bool, device=DEVICE)
    with refused("the kernel takes trees of at most 64 nodes"):
        run(drawn((1, 1, 65, 16, 16, []), SHARP), {"seen": wider}, "triton")
    assert branch_attention(**drawn((1, 1, 65, 16, 16, []), SHARP), seen=wider).shape == (PROMPTS, 1, 65, 16)


@pytest.mark.parametrize("what", OPTIONS)
def test_options(what: str) -> None:
    case = CASES["over the edge of a tile"]
    check(case, SHARP, **options_of(what, case.heads, SHARP))


@pytest.mark.parametrize("dtype", FEWER, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_all_options_together(name: str, dtype: torch.dtype) -> None:
    check(CASES[name], dtype, **options_of("everything", CASES[name].heads, dtype))


def test_reference_is_exact_in_float64() -> None:
    for case in (*CASES.values(), WIDEST):
        given = inputs(case, torch.float64)
        for options in ({}, *(options_of(what, case.heads, torch.float64) for what in OPTIONS)):
            for x, y in zip(trees(given, options, "torch"), judged(case, given, options), strict=True):
                torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def test_trees_of_one_node_are_rows_that_see_themselves() -> None:
    given = inputs(CASES["over the edge of a tile"], torch.bfloat16)
    alone = torch.ones(PROMPTS, 1, 1, dtype=torch.bool, device=DEVICE)
    for backend in ("triton", "torch"):
        plain, found = (run(given, {"window": 30, "seen": seen}, backend) for seen in (None, alone))
        assert all(torch.equal(x, y) for x, y in zip(bits(found), bits(plain), strict=True))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_node_sees_itself_whatever_is_said(backend: str) -> None:
    given = inputs(CASES["one head"], SHARP)
    found = []
    for seen in (given["seen"], given["seen"] & ~torch.eye(7, dtype=torch.bool, device=DEVICE)):
        found.append(bits(trees(given | {"seen": seen}, {"window": 3}, backend)))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_a_tree_alone_has_the_bits_it_has_in_a_batch() -> None:
    given = inputs(CASES["over the edge of a tile"], torch.bfloat16)
    together = trees(given, {"window": 30}, "triton")[0]
    for branch in range(3):
        rows = slice(7 * branch, 7 * branch + 7)
        one = {x: given[x][:, :, rows] for x in ("query", "key", "value")}
        alone = branch_attention(**one, prefix=given["prefix"], window=30, seen=given["seen"], backend="triton")
        assert torch.equal(alone, together[:, :, rows])


@pytest.mark.parametrize("odd", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_nan_stays_where_it_is_seen(where: str, odd: float) -> None:
    """A key's reaches those that see it, and a query's those that it sees."""
    given = inputs(CASES["no prefix"], SHARP)
    whole = trees(given, {}, "triton")
    node, b, branch = 3, 0, 1
    given[where] = given[where].clone()
    given[where][b, :, 7 * branch + node, 3] = odd
    found = trees(given, {}, "triton")
    touched = torch.zeros(PROMPTS, 14, dtype=torch.bool, device=DEVICE)
    # Node 5 stands below node 3, and 1 and 0 above it. What sees it lets its gradients spread to all that it sees.
    touched[b, [7 * branch + n for n in ((0, 1, 3) if where == "query" else (0, 1, 3, 5))]] = True
    for x, y in zip(found, whole, strict=True):
        same = (x == y).all(3).all(1)
        assert bool(same[~touched].all())
    below = [7 * branch + n for n in ((3,) if where == "query" else (3, 5))]
    if odd != odd or where != "key":  # a logit of minus infinity takes no weight
        assert not found[0][b, :, below].isfinite().all(2).any()
    assert torch.equal(found[0][b, :, [7 * branch, 7 * branch + 1]], whole[0][b, :, [7 * branch, 7 * branch + 1]])


def test_order_of_programs_changes_no_bit() -> None:
    given = inputs(CASES["one head"], torch.bfloat16)
    same_bits(lambda: trees(given, {"window": 30}, "triton"))


@only_interpreted
@pytest.mark.parametrize("name", CASES)
def test_one_writer_and_no_address_outside(name: str) -> None:
    sinks = torch.zeros(CASES[name].heads)
    with watched() as launches:
        trees(inputs(CASES[name], torch.bfloat16), {"window": 30, "softcap": 3.0, "sinks": sinks}, "triton")
    assert len(launches) == 2
