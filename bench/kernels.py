"""Suite `kernels`: every op of neuronllm.ops against eager PyTorch and torch.compile, at the shapes of real models.

All sides of a benchmark are quoted per megabyte that the op has to move at least, so that a copy of as many bytes
shows how far from the memory's own speed each of them is. A run repeats the call, so that the clock's own time does not
count. On a CPU the op is its PyTorch version: good for trying the benchmark out (--shape toy), not for figures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from neuronllm import ops

from .fixture import GPU
from .harness import Bar, Benchmark, Case, Check, Comparison, Setup, Side, relative
from .shapes import SHAPES, Shape

Tensors = tuple[Any, ...]


@dataclass
class Work:
    """One op at one size: how inputs are made, what is timed on them, and how many bytes must move."""

    inputs: Callable[[], Tensors]
    ours: Callable[..., Sequence[Tensor]]
    eager: Callable[..., Sequence[Tensor]]
    moved: int
    bars: dict[str, Bar] = field(default_factory=dict)  # "copy", "eager", "compiled", "memory"
    settings: dict[str, Any] = field(default_factory=dict)


def case(setup: Setup, work: Work) -> Case:
    gpu = setup.device.startswith("cuda")
    repeat, units = (20 if gpu else 1), work.moved / 1e6

    @cache
    def inputs(turn: int) -> Tensors:
        torch.manual_seed(setup.seed + turn)
        with torch.device(setup.device):
            return work.inputs()

    def again(call: Callable[..., Any]) -> Callable[..., None]:
        def run(*given: Any) -> None:
            for _ in range(repeat):
                call(*given)

        return run

    half = torch.empty(max(1, work.moved // 2), dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(half)
    sides = [
        Side("copy", lambda turn: (), again(lambda: target.copy_(half)), units * repeat),
        Side("eager", lambda turn: inputs(turn % 2), again(work.eager), units * repeat),
        Side("kernel", lambda turn: inputs(turn % 2), again(work.ours), units * repeat),
    ]
    views = [
        Comparison(
            "share of the speed of a copy", "a copy of as many bytes", "copy", "kernel", bar=work.bars.get("copy")
        ),
        Comparison("the kernel", "eager PyTorch", "eager", "kernel", bar=work.bars.get("eager")),
        Comparison(
            "the kernel, peak memory", "eager PyTorch", "eager", "kernel", of="peak", bar=work.bars.get("memory")
        ),
    ]
    if gpu:
        fused = torch.compile(work.eager, dynamic=False)
        sides.append(Side("compiled", lambda turn: inputs(turn % 2), again(fused), units * repeat))
        against = Comparison("the kernel", "torch.compile", "compiled", "kernel", bar=work.bars.get("compiled"))
        views.append(against)
    result = Case(sides=[*sides], check=lambda: checks(inputs(0), work), views=[*views], unit="megabyte moved at least")
    result.peaks = ["eager", "kernel"]
    sizes = ", ".join(f"{name} {value}" for name, value in work.settings.items() if isinstance(value, int))
    result.settings = {"model": f"sizes of {SHAPES[setup.shape]}: {sizes}", "bytes": work.moved, "repeat": repeat}
    result.settings |= work.settings
    return result


def checks(given: Tensors, work: Work) -> list[Check]:
    """The op and eager PyTorch against float64, and the op against itself, bit for bit."""
    found, again, plain = (list(call(*given)) for call in (work.ours, work.ours, work.eager))
    same = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    rows = [Check("runs that differ in a bit", float(not same), 0.0)]
    doubled = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given]
    for n, (x, y, z) in enumerate(zip(found, plain, work.eager(*doubled), strict=True)):
        x, y, z = (t.reshape(1, -1) for t in (x, y, z))  # whole: a row of padding has no length to compare with
        limit = 2 * relative(y, z) + 1e-5 if x.dtype == torch.float32 else max(2 * relative(y, z), 0.01)
        rows.append(Check(f"result {n}: relative difference from float64", relative(x, z), limit))
    return rows


def backend(setup: Setup) -> str:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return "triton" if setup.device.startswith("cuda") or interpreted else "torch"


def width_of(shape: Shape) -> tuple[int, int]:
    """Width of the residual stream and of the FFN, an expert's in a mixture."""
    return shape.config["hidden_size"], shape.config.get("moe_intermediate_size") or shape.config["intermediate_size"]


def _rows(setup: Setup) -> tuple[int, int]:
    """Questions and tokens a question."""
    return (3, 5) if setup.shape == "toy" else (8, 512)


def glu_score(setup: Setup) -> Work:
    """Scores and gradients of 8 questions of 512 tokens."""
    shape, (questions, tokens) = SHAPES[setup.shape], _rows(setup)
    (_, width), rows = width_of(shape), questions * tokens
    lengths = torch.full((questions,), tokens)

    def ours(gate: Tensor, up: Tensor, grad: Tensor) -> Sequence[Tensor]:
        return ops.glu_score(gate, up, grad, lengths, backend=backend(setup))  # type: ignore[return-value]

    def inputs() -> Tensors:
        return tuple(torch.randn(rows, width, dtype=shape.dtype) for _ in range(3))

    size = rows * width * shape.dtype.itemsize
    bars = {"copy": Bar(">=", 0.85), "eager": Bar(">=", 1.0), "compiled": Bar(">=", 1.0)}
    settings = {"questions": questions, "tokens": tokens, "neurons": width}

    def eager(gate: Tensor, up: Tensor, grad: Tensor) -> Sequence[Tensor]:
        scores, dgate, dup = _plain_glu(*(x.unflatten(0, (questions, tokens)) for x in (gate, up, grad)), None)
        return scores, dgate.flatten(0, 1), dup.flatten(0, 1)

    return Work(inputs, ours, eager, 5 * size + 4 * questions * width, bars, settings)


def _plain_glu(gate: Tensor, up: Tensor, grad: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    a = functional.silu(gate)
    kind = torch.promote_types(grad.dtype, torch.float32)
    products = (a * up).to(kind) * grad.to(kind)
    products = products if real is None else products * real
    s = torch.sigmoid(gate)
    return products.sum(1), grad * up * (s * (1 + gate * (1 - s))), grad * a


def glu_score_ragged(setup: Setup) -> Work:
    """The same for 16 questions of 40 to 700 tokens in a padded batch."""
    shape = SHAPES[setup.shape]
    _, width = width_of(shape)
    draw = torch.Generator().manual_seed(setup.seed)
    low, high, questions = (1, 6, 3) if setup.shape == "toy" else (40, 700, 16)
    lengths = torch.randint(low, high, (questions,), generator=draw)
    longest = int(lengths.max())
    starts = torch.arange(questions) * longest
    real = (torch.arange(longest) < lengths[:, None])[..., None].to(setup.device)

    def ours(gate: Tensor, up: Tensor, grad: Tensor) -> Sequence[Tensor]:
        flat = (x.flatten(0, 1) for x in (gate, up, grad))
        found = ops.glu_score(*flat, lengths, starts, backend=backend(setup))
        assert found.gate is not None and found.up is not None
        return found.scores, found.gate.view_as(gate), found.up.view_as(gate)

    def eager(gate: Tensor, up: Tensor, grad: Tensor) -> Sequence[Tensor]:
        return _plain_glu(gate, up, grad, real)

    def inputs() -> Tensors:
        gate, up, grad = (torch.randn(questions, longest, width, dtype=shape.dtype) for _ in range(3))
        return gate, up, grad * real  # behind the answer there is no gradient

    size = int(lengths.sum()) * width * shape.dtype.itemsize
    settings = {"lengths": lengths.tolist(), "neurons": width}
    bars = {"compiled": Bar(">=", 1.5)}
    return Work(inputs, ours, eager, 5 * size + 4 * questions * width, bars, settings)


def score_gemm(setup: Setup) -> Work:
    """Scores of 8 questions of 512 tokens from gradients behind the down projection."""
    shape, (questions, tokens) = SHAPES[setup.shape], _rows(setup)
    (width, neurons), rows = width_of(shape), questions * tokens
    lengths = torch.full((questions,), tokens)

    def ours(grad: Tensor, down: Tensor, gate: Tensor, up: Tensor) -> Sequence[Tensor]:
        return (ops.score_gemm(grad, down, gate, up, lengths, backend=backend(setup)),)

    def eager(grad: Tensor, down: Tensor, gate: Tensor, up: Tensor) -> Sequence[Tensor]:
        kind = torch.promote_types(grad.dtype, torch.float32)
        products = (functional.silu(gate) * up).to(kind) * (grad @ down).to(kind)
        return (products.unflatten(0, (questions, tokens)).sum(1),)

    def inputs() -> Tensors:
        gate, up = (torch.randn(rows, neurons, dtype=shape.dtype) for _ in range(2))
        return torch.randn(rows, width, dtype=shape.dtype), torch.randn(width, neurons, dtype=shape.dtype), gate, up

    size = (rows * width + width * neurons + 2 * rows * neurons) * shape.dtype.itemsize + 4 * questions * neurons
    bars = {"eager": Bar(">=", 1.0), "memory": Bar(">=", 3.0)}
    settings = {"rows": rows, "width": width, "neurons": neurons}
    return Work(inputs, ours, eager, size, bars, settings)


def _contrastive(setup: Setup, count: int) -> Work:
    shape, options = SHAPES[setup.shape], 4
    width, vocabulary = shape.config["hidden_size"], shape.config["vocab_size"]

    def ours(hidden: Tensor, head: Tensor, ids: Tensor, right: Tensor) -> Sequence[Tensor]:
        return ops.contrastive_ce(hidden, head, ids, right, backend=backend(setup))

    def eager(hidden: Tensor, head: Tensor, ids: Tensor, right: Tensor) -> Sequence[Tensor]:
        kind = torch.promote_types(hidden.dtype, torch.float32)
        rows = head[ids].to(kind)
        scores = torch.einsum("bd,bkd->bk", hidden.to(kind), rows)
        logp = scores.log_softmax(-1)
        slope = functional.one_hot(right, options).to(kind) - logp.exp()
        return logp.gather(1, right[:, None])[:, 0], scores, torch.einsum("bk,bkd->bd", slope, rows)

    def inputs() -> Tensors:
        ids = torch.randint(vocabulary, (1, options)).expand(count, -1).contiguous()  # the letters
        head = 0.02 * torch.randn(vocabulary, width, dtype=torch.float32)
        return torch.randn(count, width, dtype=shape.dtype), head.to(shape.dtype), ids, torch.randint(options, (count,))

    size = count * (width * (shape.dtype.itemsize + 4) + 4 * options) + options * width * shape.dtype.itemsize
    settings = {"questions": count, "width": width, "vocabulary": vocabulary, "options": options}
    bars = {"eager": Bar(">=", 1.0)}
    return Work(inputs, ours, eager, size, bars, settings)


def contrastive_one(setup: Setup) -> Work:
    """Cross-entropy over the options and its gradient, one question."""
    return _contrastive(setup, 1)


def contrastive_many(setup: Setup) -> Work:
    """Cross-entropy over the options and its gradient, 256 questions."""
    return _contrastive(setup, 256)


def _attention(setup: Setup, nodes: int) -> Work:
    """512 rows on a prefix of 1,024 tokens, in trees of two below each node."""
    shape = SHAPES[setup.shape]
    rows, tokens = (4 * nodes, 9) if setup.shape == "toy" else (512, 1024)
    heads, groups = shape.config["num_attention_heads"], shape.config["num_key_value_heads"]
    width = shape.config.get("head_dim") or shape.config["hidden_size"] // heads
    tree = torch.eye(nodes, dtype=torch.bool)
    for node in range(1, nodes):
        tree[node] |= tree[(node - 1) // 2]
    own = torch.block_diag(*[tree] * (rows // nodes))
    seen = torch.cat([torch.ones(rows, tokens, dtype=torch.bool), own], 1).to(setup.device)
    one = torch.zeros(1, dtype=torch.int64, device=setup.device)

    def through(attend: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
        def run(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, above: Tensor) -> Sequence[Tensor]:
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in (q, k, v)]
                out = attend(*leaves, keys, values)
                return out.detach(), *torch.autograd.grad(out, leaves, above)

        return run

    def ours(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        shared = ops.Pieces(keys, values, one, one + tokens, one)
        return ops.branch_attention(q, k, v, [shared], seen=tree[None], backend=backend(setup))

    def masked(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As transformers does it: with a mask, keys and values are repeated for the heads that share them."""
        whole, mixed = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        whole, mixed = (x.repeat_interleave(heads // groups, 1) for x in (whole, mixed))
        return functional.scaled_dot_product_attention(q, whole, mixed, attn_mask=seen)

    def inputs() -> Tensors:
        sizes = [(heads, rows), (groups, rows), (groups, rows), (groups, tokens), (groups, tokens), (heads, rows)]
        return tuple(torch.randn(1, n, t, width, dtype=shape.dtype) for n, t in sizes)

    size = shape.dtype.itemsize * width * (2 * groups * tokens * 2 + rows * (heads * 5 + groups * 6)) + 8 * heads * rows
    settings = {"branches": rows // nodes, "prefix": tokens, "heads": heads, "groups": groups, "width": width}
    settings |= {"nodes": nodes} if nodes > 1 else {}
    return Work(inputs, through(ours), through(masked), size, {"eager": Bar(">=", 2.0)}, settings)


def branch_attention(setup: Setup) -> Work:
    """512 branches on a prefix of 1,024 tokens, forward and backward."""
    return _attention(setup, 1)


def branch_attention_trees(setup: Setup) -> Work:
    """64 branches that are trees of 8 nodes on a prefix of 1,024 tokens, forward and backward."""
    return _attention(setup, 8)


# What every op is tuned and measured on; bench/tuning.py uses the same.
WORKS: dict[str, tuple[Callable[[Setup], Work], ...]] = {
    "glu_score": (glu_score, glu_score_ragged),
    "score_gemm": (score_gemm,),
    "contrastive_ce": (contrastive_one, contrastive_many),
    "branch_attention": (branch_attention, branch_attention_trees),
}


def _built(work: Callable[[Setup], Work], setup: Setup) -> Case:
    return case(setup, work(setup))


def _title(work: Callable[[Setup], Work]) -> str:
    return (work.__doc__ or "").split("\n")[0].rstrip(".")


BENCHMARKS = [
    Benchmark(
        f"kernels.{work.__name__}",
        f"{op}: {_title(work)}",
        partial(_built, work),
        {"cuda": GPU[:2] if op == "contrastive_ce" else GPU},  # a mixture's head is like the others
    )
    for op, works in WORKS.items()
    for work in works
]
