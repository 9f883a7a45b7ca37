"""The objective under factors on neurons, and its gradient at them: fast against the judge, and by differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuronllm.data.prompts import Prompt
from neuronllm.engine.asking import Asker, Edit
from neuronllm.engine.base import Engine
from neuronllm.engine.borrowed import DoublePrecision
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.kept_prefixes import KeptPrefixes
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.model.anatomy import Anatomy
from tests.checks import lived_in, quiz, untouched
from tests.test_fast import REACHED, differences
from tests.texts import few_prompts, text_prompts
from tests.tiny import in_time, random_prompts, tiny

FAMILIES = in_time(REACHED, ("llama", "mixtral"))
POSITIONS = ["answer", "all"]


def some_neurons(model: Any, count: int = 9) -> tuple[Tensor, Tensor]:
    """Neurons of every layer with factors on both sides of 1, one of them silent."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randperm(Anatomy.of(model).n_neurons, generator=generator)[:count]
    factors = torch.rand(count, generator=generator, dtype=torch.float64) * 2.5
    factors[0] = 0
    return ids, factors


def rows(engine: Engine, prompts: list[Prompt], ids: Tensor, factors: Tensor, positions: str, objective: str) -> Tensor:
    values, gradients = engine.factor_gradients(prompts, objective, ids, factors, positions=positions)
    return torch.cat([values[:, None], gradients], 1)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_judge_in_float64(name, positions):
    model = tiny(name)
    ids, factors = some_neurons(model)
    prompts = [*few_prompts(), *random_prompts(2)]
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        for objective in ("logp_options", "margin"):
            found, right = (rows(engine, prompts, ids, factors, positions, objective) for engine in (fast, judge))
            assert right[:, 1:].abs().max() > 1e-3
            assert differences(found, right) <= 1e-9


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_gradient_at_no_edit_is_the_score(positions):
    model, prompts = tiny("qwen2_moe"), few_prompts()
    every = torch.arange(Anatomy.of(model).n_neurons)
    for engine in (FastEngine(model), ReferenceEngine(model)):
        with engine:
            found = engine.factor_gradients(prompts, "margin", every, torch.ones(len(every)), positions=positions)
            assert differences(found.gradients, engine.gradients(prompts, "margin", positions=positions)) <= 1e-9


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_gradient_is_that_of_the_edited_answers(positions):
    """Central differences of what the edited model answers, which knows nothing of gradients."""
    model, prompts = tiny("llama"), text_prompts()
    ids, factors = some_neurons(model, 5)
    ask, step = Asker(model, prompts), 1e-5

    def logp(moved: Tensor) -> Tensor:
        right = torch.tensor([[prompt.answer] for prompt in prompts])
        with DoublePrecision():  # norms in float32 have no differences at such a step
            return ask.scores(Edit(ids, moved, positions)).log_softmax(-1).gather(1, right)[:, 0]

    with FastEngine(model, dtype=torch.float64) as engine:
        found = engine.factor_gradients(prompts, "logp_options", ids, factors, positions=positions)
    assert torch.allclose(found.values, logp(factors), rtol=1e-9)
    for n, push in enumerate(torch.eye(5, dtype=torch.float64) * step):
        slope = (logp(factors + push) - logp(factors - push)) / (2 * step)
        assert torch.allclose(found.gradients[:, n], slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_kept_prefixes_change_nothing(share):
    """None, some or all prompts are kept; those that start alike, of several lengths, letters beside texts."""
    model = tiny("mistral")
    start = list(range(3, 40))
    prompts = [Prompt([*start, *p.input_ids], p.option_ids, p.answer) for p in [*text_prompts(), *quiz(3)]]
    ids, factors = some_neurons(model)
    with FastEngine(model, dtype=torch.float64) as engine:
        assert engine.unusable(prompts) is None
        plain = rows(engine, prompts, ids, factors, "answer", "logp_options")
        width = max(len(p.input_ids) for p in prompts) - len(start) - 1  # behind what all start with
        size = len(prompts) * width * 2 * 2 * 2 * 4 * 8  # layers, keys and values, heads, their size, bytes
        kept = len(engine.keep_prefixes(prompts, int(size * share)))
        assert (kept == 0, kept == len(prompts)) == (share == 0.0, share == 1.0)
        for some in (prompts, prompts[::-1], prompts[2:5], prompts[:1]):
            numbers = [prompts.index(prompt) for prompt in some]
            found = rows(engine, some, ids, factors, "answer", "logp_options")
            assert differences(found, plain[numbers]) <= 1e-9


def test_kept_prefixes_are_computed_once(monkeypatch):
    model, prompts = tiny("llama"), text_prompts()
    ids, factors = some_neurons(model)
    with FastEngine(model) as engine:
        engine.keep_prefixes(prompts, 2**30)
        monkeypatch.setattr("neuronllm.engine.checked.prefill", lambda *_: pytest.fail("a prefix was computed again"))
        for _ in range(3):
            assert rows(engine, prompts, ids, factors, "answer", "margin").isfinite().all()


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
def test_asking_behind_kept_prefixes(name, monkeypatch):
    model = tiny(name)
    prompts = [Prompt([*range(3, 40), *p.input_ids], p.option_ids, p.answer) for p in [*text_prompts(), *quiz(3)]]
    change = Edit(*some_neurons(model))
    with FastEngine(model) as engine:
        ask = Asker(model, prompts)
        plain = [ask.scores(None), ask.scores(change), ask.scores(change._replace(positions="all"))]
        ask = Asker(model, prompts, kept=engine.keep_prefixes(prompts, 2**30))
        found = [ask.scores(None), ask.scores(change), ask.scores(change._replace(positions="all"))]
        for mine, theirs in zip(found, plain, strict=True):
            real = theirs > float("-inf")
            assert torch.equal(real, mine > float("-inf")) and torch.allclose(mine[real], theirs[real], rtol=1e-9)
        monkeypatch.setattr("neuronllm.engine.asking.prefill_root", lambda *_: pytest.fail("computed again"))
        ask.scores(change)


def test_how_many_prefixes_fit_goes_by_the_budget_alone():
    model, prompts = tiny("llama"), quiz(4)
    with FastEngine(model):
        sizes = [len(KeptPrefixes(model, prompts, None, 4, budget)) for budget in (0, 2**12, 2**14, 2**30)]
        assert sizes == [len(KeptPrefixes(model, prompts, None, 1, budget)) for budget in (0, 2**12, 2**14, 2**30)]
    assert sizes[0] == 0 and sizes[-1] == len({tuple(p.input_ids) for p in prompts})
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_do_not_matter(positions, batch_size):
    model, prompts = tiny("llama", torch.float32), [*text_prompts(), *quiz(3)]
    ids, factors = some_neurons(model)
    with FastEngine(model) as one, FastEngine(model, batch_size=batch_size) as other:
        found = [rows(engine, prompts, ids, factors, positions, "logp_options") for engine in (one, other)]
    assert differences(*found) <= 1e-5


@pytest.mark.parametrize("positions", POSITIONS)
def test_sixteen_bits(positions):
    model, prompts = tiny("llama", torch.float32), text_prompts()
    ids, factors = some_neurons(model)
    with FastEngine(model) as engine:
        right = rows(engine, prompts, ids, factors, positions, "logp_options")
    with FastEngine(model.to(torch.bfloat16)) as engine:
        found = rows(engine, prompts, ids, factors, positions, "logp_options")
    assert found.dtype == torch.float32 and differences(found, right) < 0.1


def test_the_model_is_left_as_it_was():
    model = lived_in(tiny("llama", torch.float32))
    ids, factors = some_neurons(model)
    with untouched(model), FastEngine(model) as engine:
        engine.keep_prefixes(text_prompts(), 2**20)
        for positions in POSITIONS:
            rows(engine, text_prompts(), ids, factors, positions, "margin")
