"""Hybrid models and attention of a family's own on the fast path: what their mixers carry is computed once a prefix."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neuronllm.data.prompts import Prompt
from neuronllm.engine.base import Engine
from neuronllm.engine.caches import tensors
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.reference import ReferenceEngine
from tests import tiny as families
from tests.checks import untouched
from tests.test_fast import CALLS, differences, ragged
from tests.texts import random_tokens, text_prompts
from tests.tiny import HYBRIDS, OWN_ATTENTION, in_time, random_prompts

FAMILIES = [*HYBRIDS, *OWN_ATTENTION]
QUICK = ("lfm2", "gptj")
SLOWLY = in_time(FAMILIES, QUICK)
TYPES = {"xglm": torch.float32}  # its masks take no float64
LIMITS = {"xglm": 1e-4, "minimax": 1e-6}  # MiniMax keeps its decays in float32
PATTERNS_OUT_OF_REACH = ("gptj", "bloom", "falcon", "codegen", "xglm", "mpt", "megatron-bert", "rembert", "trocr")
SOME = torch.arange(39, 0, -7)
MORE = CALLS | {
    "some effects": lambda e, p: e.effects(p, "p_options", ids=SOME, factor=2.0),
    "effects everywhere": lambda e, p: e.effects(p, "logp_options", ids=SOME, positions="all"),
    "factors": lambda e, p: torch.cat([part.reshape(len(p), -1) for part in factors(e, p, "answer")], 1),
    "factors everywhere": lambda e, p: torch.cat([part.reshape(len(p), -1) for part in factors(e, p, "all")], 1),
}


def tiny(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A gradient is to pass the mixer: it comes behind a layer with neurons."""
    more = {"layer_types": ["full_attention", "conv"]} if name == "lfm2" else {}
    return families.tiny(name, dtype, **more)


def factors(engine: Engine, prompts: list[Prompt], positions: str) -> tuple[torch.Tensor, ...]:
    return engine.factor_gradients(prompts, "margin", SOME, torch.linspace(0.5, 1.5, len(SOME)), positions=positions)


def calls_of(name: str) -> dict:
    return {
        label: call
        for label, call in MORE.items()
        if name not in PATTERNS_OUT_OF_REACH or label not in ("relp detached", "relp everywhere")
    }


def family() -> list[Prompt]:
    """Two questions of two variants behind one start, and two prompts of which one has hardly anything of its own."""
    start, letters = random_tokens(34, 1), [[[3 + 2 * k], [4 + 2 * k]] for k in range(3)]
    stems = [random_tokens(10 + n, 2 + n) for n in range(2)]
    tails = [random_tokens(3 + n, 4 + n) for n in range(2)]
    ids = [start + stem + tail for stem in stems for tail in tails]
    ids += [start + random_tokens(9, 6), start + random_tokens(1, 7)]
    return [Prompt(tokens, letters, n % 3, question_id=f"q{n // 2}") for n, tokens in enumerate(ids)]


def agrees(name: str, prompts: list[Prompt]) -> FastEngine:
    dtype = TYPES.get(name, torch.float64)
    model = tiny(name, dtype)
    with FastEngine(model, dtype=dtype) as fast, ReferenceEngine(model, dtype=dtype) as judge:
        assert fast.unusable(prompts) is None
        for label, call in calls_of(name).items():
            assert differences(call(fast, prompts), call(judge, prompts)) <= LIMITS.get(name, 1e-9), label
    return fast


@pytest.mark.parametrize("name", SLOWLY)
def test_equals_the_judge(name):
    agrees(name, ragged())


@pytest.mark.parametrize("name", in_time(FAMILIES))
def test_equals_the_judge_where_prompts_share_what_they_begin_with(name):
    fast = agrees(name, family())
    assert fast.plan.root == 34


@pytest.mark.parametrize("name", in_time(FAMILIES))
def test_equals_the_judge_for_answers_in_words(name):
    agrees(name, text_prompts((5, 9, 6)))


@pytest.mark.parametrize("name", SLOWLY)
def test_a_prompt_does_not_depend_on_its_batch(name):
    """Alone, in a ragged batch without sharing, and with root and stems shared: no state leaks into another row."""
    does_not_depend_on_its_batch(name)


def does_not_depend_on_its_batch(name: str) -> None:
    model, prompts = tiny(name, torch.float32), family()
    limits = {"integrate": 1e-5, "gradient": 1e-5, "gradient everywhere": 1e-5, "effects": 1e-4}
    with FastEngine(model) as shared, FastEngine(model, batch_size=1) as alone, FastEngine(model) as ragged:
        order = [4, 0, 2, 5, 1, 3]
        backwards = [prompts[n] for n in order]
        for engine, some in ((shared, prompts), (alone, prompts[:1]), (ragged, backwards)):
            assert engine.unusable(some) is None
        for label, limit in limits.items():
            together = CALLS[label](shared, prompts)
            apart = torch.cat([CALLS[label](alone, [prompt]) for prompt in prompts])
            mixed = torch.empty_like(together).index_copy_(0, torch.tensor(order), CALLS[label](ragged, backwards))
            assert differences(together, apart) <= limit, label
            assert differences(mixed, apart) <= limit, label


@pytest.mark.parametrize("name", ["jamba", "bamba"])
def test_states_are_shared_where_the_model_goes_on_from_them(name):
    """Jamba's scan begins anew wherever more than one token follows, so that there every prompt is run as a whole."""
    model, prompts = tiny(name), family()
    with FastEngine(model, dtype=torch.float64) as fast:
        assert fast.unusable(prompts) is None
        assert len(fast._prefill(prompts).levels) == (1 if name == "jamba" else 2)


def test_branches_share_the_states_of_their_prefix(monkeypatch):
    """What a module reads of the prefix is one row for all branches of a prompt, and is left as it was."""
    model, prompts = tiny("falcon_h1"), random_prompts(1)
    mixer, shares = model.model.layers[1].mamba, []
    own = mixer.forward

    def watched(*args, **kwargs):
        held = tensors(kwargs["cache_params"], 1) if kwargs["cache_params"] is not None else []
        shares.append((len(kwargs["hidden_states"]), [part.stride(0) for part in held]))
        return own(*args, **kwargs)

    with FastEngine(model, dtype=torch.float64) as fast:
        assert fast.unusable(prompts) is None
        prefix = fast._prefill(prompts)
        before = [part.clone() for part in tensors(prefix.ends[0].ended.cache)]
        fast._ready = {False: (prompts, prefix)}
        monkeypatch.setattr(mixer, "forward", watched)
        fast.effects(prompts, "logp_options")
    branches, strides = max(shares)
    assert branches > 28 and strides == [0, 0]
    after = tensors(prefix.ends[0].ended.cache)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_few_branches_at_a_time_give_the_same(monkeypatch):
    prompts = [*random_prompts(2), *text_prompts((5,))]
    with FastEngine(tiny("bamba"), dtype=torch.float64) as whole:
        assert whole.unusable(prompts) is None
        expected = {label: CALLS[label](whole, prompts) for label in ("integrate", "gradient", "effects")}
    monkeypatch.setattr("neuronllm.engine.rows.NUMBERS", 3000)
    with FastEngine(tiny("bamba"), dtype=torch.float64) as few:
        assert few.unusable(prompts) is None
        for label, found in expected.items():
            assert differences(CALLS[label](few, prompts), found) <= 1e-12, label


def test_a_mixer_without_a_gradient_is_left_to_the_judge():
    """As kernels for one token have none."""
    model, prompts = tiny("lfm2"), random_prompts(2)
    mixer = model.model.layers[1].conv
    own = mixer.forward

    def forward(hidden_states, past_key_values=None, **more):
        out = own(hidden_states, past_key_values=past_key_values, **more)
        return out if past_key_values is None else out.detach()

    mixer.forward = forward
    with FastEngine(model) as fast:
        assert "gradient" in (fast.unusable(prompts) or "")


@pytest.mark.parametrize("name", QUICK)
def test_the_model_is_left_as_it_was(name):
    model, prompts = tiny(name, torch.float32), family()
    with untouched(model), FastEngine(model) as fast:
        assert fast.unusable(prompts) is None
        for label in ("integrate", "gradient everywhere", "options"):
            CALLS[label](fast, prompts)
