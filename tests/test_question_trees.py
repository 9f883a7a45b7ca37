"""A question's variants as one tree: the mean of what they give one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from neuronllm.data.question_trees import QuestionTree, question_trees
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.reference import ReferenceEngine
from tests.tiny import tiny

SIZES = [3, 3, 1, 2]


def variants() -> list[Prompt]:
    """Questions of several variants that begin alike, two of them longer than others; answers of one to four tokens."""
    draw = torch.Generator().manual_seed(5)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 60, (count,), generator=draw).tolist()

    found = []
    for number, size in enumerate(SIZES):
        stem, options = tokens(6 + number), [[tokens(1 + k + number % 2)] for k in range(3)]
        options[2].append(tokens(2))
        for shift in range(size):
            order = [(k + shift) % 3 for k in range(3)]
            own = [options[k] for k in order]
            found.append(Prompt(stem + tokens(2 + shift), own, order.index(0), f"q{number}", tuple(order)))
    return found


def test_what_variants_share_stands_once():
    prompts = variants()[:3]
    tree = QuestionTree.of(prompts)
    assert tree is not None and tree.input_ids == prompts[0].input_ids[:6] and len(tree.nodes) == 3
    for prompt, nodes in zip(prompts, tree.nodes, strict=True):
        assert [tree.tree.tokens[node] for node in nodes] == prompt.tree.tokens
        path, node = [], nodes[0]
        while node:
            path.append(tree.tree.tokens[node])
            node = tree.tree.parents[node]
        assert tree.input_ids + path[::-1] == prompt.input_ids
    apart = replace(prompts[1], input_ids=[1, *prompts[1].input_ids])
    assert QuestionTree.of([prompts[0], apart]) is None
    assert question_trees([prompts[0], apart], [2]) is None and question_trees(prompts, [1, 1, 1]) is None


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("gpt2", "gemma2", "mixtral", "qwen2_moe", "phi3", "gpt_oss")
        ),
    ],
)
def test_the_mean_is_that_of_the_variants(name):
    model, prompts = tiny(name), variants()
    ways = [{}, {"weight": "sign"}, {"rules": "relp"}, {"rules": "relp-detached"}]
    with ReferenceEngine(model, dtype=torch.float64) as judge, FastEngine(model, dtype=torch.float64) as fast:
        assert fast.unusable(prompts) is None
        for objective in ("logp_options", "p_vocab"):
            for way in ways:
                right = judge.question_gradients(prompts, SIZES, objective, **way)
                found = fast.question_gradients(prompts, SIZES, objective, **way)
                assert torch.allclose(found, right, atol=1e-10, rtol=1e-9), (objective, way)
        assert judge.heard.counts == fast.heard.counts


def test_attribute_takes_it_where_nothing_else_is_wanted(monkeypatch):
    model, prompts = tiny("llama", torch.float32), variants()
    asked = []
    whole = FastEngine.question_gradients

    def counted(self, *args, **kwargs):
        asked.append(args[1])
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(FastEngine, "question_gradients", counted)
    for method in ("gradient", "neurgrad", "relp"):
        mean = nl.attribute(model, None, prompts, method, progress=False)
        assert asked == [SIZES]
        every = nl.attribute(model, None, prompts, method, keep="all", progress=False)
        assert asked.pop() == SIZES and not asked  # with scores of single prompts it is not asked for
        scale = every.values.abs().max()
        assert torch.allclose(mean.values, every.values, atol=1e-5 * float(scale))
        assert torch.allclose(mean.stderr, every.stderr, atol=1e-5 * float(scale))
    nl.attribute(model, None, prompts, "gradient", positions="answer", progress=False)
    letters = [replace(p, option_ids=[[[3]], [[4]], [[5]]]) for p in prompts]
    nl.attribute(model, None, letters, "gradient", progress=False)
    assert not asked
