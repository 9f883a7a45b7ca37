"""The fast engine against the judge: same scores on every family, or a reason why the judge does the work."""

from __future__ import annotations

import logging

import pytest
import torch

from neuronllm import engine as engines
from neuronllm.attribution.driver import attribute
from neuronllm.data.prompts import Prompt
from neuronllm.engine import integrals
from neuronllm.engine.batching import Plan
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.objectives import OBJECTIVES
from neuronllm.engine.quadrature import quadrature
from neuronllm.engine.reference import ReferenceEngine
from tests.checks import untouched
from tests.tiny import DENSE, EXPERTS, HYBRIDS, OWN_ATTENTION, STAND_INS, in_time, random_prompts, tiny

OUT_OF_REACH = {"openai-gpt": "attend in a way of their own"}  # it has no cache
# The others have a test of their own (test_mixers.py).
REACHED = [name for name in DENSE + EXPERTS if name not in HYBRIDS + OWN_ATTENTION]
# Of tests that take seconds a family: a plain one, one with biases, post norms, experts, experts with sinks.
QUICK = ("llama", "gpt2", "gemma2", "mixtral", "gpt_oss")
SLOWLY = in_time(REACHED, QUICK)

CALLS = {
    "integrate": lambda e, p: e.integrate(p, "logp_options", *quadrature("midpoint", 4)),
    "integrate to a tolerance": lambda e, p: e.integrate_to(p, "logp_options", 1e-2),
    "gradient": lambda e, p: e.gradients(p, "p_vocab"),
    "sign": lambda e, p: e.gradients(p, "margin", weight="sign"),
    "gradient everywhere": lambda e, p: e.gradients(p, "logp_vocab", positions="all"),
    "relp": lambda e, p: e.gradients(p, "logp_options", rules="relp"),
    "relp detached": lambda e, p: e.gradients(p, "logp_options", rules="relp-detached"),
    "relp everywhere": lambda e, p: e.gradients(p, "logp_options", positions="all", rules="relp-detached"),
    "effects": lambda e, p: e.effects(p, "logp_options"),
    "some effects": lambda e, p: e.effects(p, "p_options", ids=torch.arange(55, 0, -3), factor=2.0),
    "options": lambda e, p: e.option_gradients(p).flatten(1),
    "direct": lambda e, p: e.direct(p, "logp_options"),
    "activations": lambda e, p: e.activations(p),
    "activations everywhere": lambda e, p: e.activations(p, "all"),
    "gates everywhere": lambda e, p: e.activations(p, "all", "frequency"),
}


def ragged() -> list[Prompt]:
    """Prompts on both sides of the sliding window of 8 that the windowed families have, and of different lengths."""
    return [*random_prompts(2, length=5), *random_prompts(2, length=14)]


def differences(fast: torch.Tensor, judged: torch.Tensor) -> float:
    return float(((fast.double() - judged.double()).norm(dim=1) / judged.double().norm(dim=1)).max())


@pytest.mark.parametrize("name", REACHED)
def test_equals_the_judge_in_float64(name):
    model, prompts = tiny(name), ragged()
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        for label, call in CALLS.items():
            assert differences(call(fast, prompts), call(judge, prompts)) <= 1e-9, label


EXPLAINED = {
    "integrate": lambda e, p, f: e.integrate(p, f, *quadrature("gauss", 3)),
    "gradient": lambda e, p, f: e.gradients(p, f),
    "gradient everywhere": lambda e, p, f: e.gradients(p, f, positions="all"),
    "sign": lambda e, p, f: e.gradients(p, f, weight="sign"),
    "relp": lambda e, p, f: e.gradients(p, f, rules="relp"),
    "relp everywhere": lambda e, p, f: e.gradients(p, f, positions="all", rules="relp"),
    "effects": lambda e, p, f: e.effects(p, f),
    "direct": lambda e, p, f: e.direct(p, f),
}


@pytest.mark.parametrize("name", SLOWLY)
def test_equals_the_judge_for_every_objective(name):
    model, prompts = tiny(name), [random_prompts(1, length=5)[0], random_prompts(2, length=13)[1]]
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        for objective in OBJECTIVES:
            for label, call in EXPLAINED.items():
                distance = differences(call(fast, prompts, objective), call(judge, prompts, objective))
                assert distance <= 1e-9, (label, objective)


@pytest.mark.parametrize("name", in_time(REACHED, STAND_INS))
def test_equals_the_judge_in_float32(name):
    model, prompts = tiny(name, torch.float32), ragged()
    with FastEngine(model) as fast, ReferenceEngine(model) as judge:
        assert fast.unusable(prompts) is None
        for label in ("integrate", "gradient", "gradient everywhere", "effects"):
            assert differences(CALLS[label](fast, prompts), CALLS[label](judge, prompts)) <= 1e-4, label


@pytest.mark.parametrize("name", in_time(REACHED, ("llama", "gpt2", "mixtral"), ("gemma2", "deepseek_v3")))
def test_is_no_worse_than_the_judge_in_bfloat16(name):
    """An error budget: both are compared with the truth, the judge of the same weights in float64.

    The median prompt counts: rounding flips the sign of an h near 0 or a tie between experts in some prompts of either.
    Exact effects are computed in float32, see below.
    """
    model, prompts = tiny(name, torch.bfloat16), [*random_prompts(4, length=5), *random_prompts(4, length=14)]
    calls = {label: call for label, call in CALLS.items() if "effects" not in label}
    with ReferenceEngine(model, dtype=torch.float64) as truth:
        true = {label: call(truth, prompts) for label, call in calls.items()}
    with ReferenceEngine(model) as judge:
        budget = {label: 2 * median_error(call(judge, prompts), true[label]) + 2e-3 for label, call in calls.items()}
    with FastEngine(model) as fast:
        assert fast.unusable(prompts) is None
        for label, call in calls.items():
            assert median_error(call(fast, prompts), true[label]) <= budget[label], label


def median_error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float(((found.double() - true).norm(dim=1) / true.norm(dim=1)).median())


@pytest.mark.parametrize("name", ["llama", "mixtral", "opt"])
@pytest.mark.parametrize("label", CALLS)
def test_one_prompt_alone_equals_the_judge_in_float64(name, label):
    model, prompts = tiny(name), random_prompts(1)
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        assert differences(CALLS[label](fast, prompts), CALLS[label](judge, prompts)) <= 1e-9


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_a_model_out_of_reach_is_left_to_the_judge_with_a_reason(name, caplog):
    model, prompts = tiny(name), random_prompts(2)
    engines._told.clear()
    with caplog.at_level(logging.INFO, "neuronllm"):
        for _ in range(2):
            scores = attribute(model, None, prompts, "gradient", positions="answer", keep="all", progress=False)
    told = [record.getMessage() for record in caplog.records if "fast -> reference" in record.getMessage()]
    assert len(told) == 1 and OUT_OF_REACH[name] in told[0]
    judged = attribute(
        model, None, prompts, "gradient", positions="answer", keep="all", backend="reference", progress=False
    )
    assert torch.equal(scores.per_prompt, judged.per_prompt)


def test_a_model_whose_branches_are_not_its_answers_is_left_to_the_judge():
    """A layer that looks at its position among the rows gives itself away in the self-check."""
    model = tiny("llama")
    model.model.layers[1].register_forward_hook(lambda m, a, out: out + 0.1 * torch.arange(out.shape[1])[None, :, None])
    with FastEngine(model) as fast:
        assert "differs from the clean answer" in (fast.unusable(random_prompts(1)) or "")


@pytest.mark.parametrize("everywhere", [True, False])
def test_an_error_of_a_users_hook_is_no_reason_for_the_slow_path(everywhere, caplog):
    """Unless it comes only where the engine runs the model in a way of its own."""
    model, prompts = tiny("llama"), random_prompts(2)
    lengths = {len(p.input_ids) for p in prompts}
    engines._told.clear()

    def mine(module, args, output):
        if everywhere or output.shape[1] not in lengths:
            raise RuntimeError("my hook is not finished")

    model.model.layers[1].mlp.register_forward_hook(mine)
    with caplog.at_level(logging.INFO, "neuronllm"):
        if everywhere:
            with untouched(model), pytest.raises(RuntimeError, match="^my hook is not finished$"):
                attribute(model, None, prompts, "gradient", positions="answer", progress=False)
            assert not caplog.records
        else:
            assert (
                attribute(model, None, prompts, "gradient", positions="answer", progress=False).provenance["engine"]
                == "reference"
            )
            assert "RuntimeError: my hook is not finished" in caplog.text


def test_a_prompt_of_one_token_is_left_to_the_judge():
    model = tiny("llama")
    prompts = [Prompt(input_ids=[5], option_ids=[[3], [4]], answer=0), *random_prompts(1)]
    with FastEngine(model) as fast:
        assert "one token" in (fast.unusable(prompts) or "")
    assert attribute(model, None, prompts, "ace", progress=False).values.isfinite().all()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_changes_nothing_beyond_rounding(batch_size):
    model, prompts = tiny("mistral"), ragged()
    with FastEngine(model, batch_size=batch_size) as small, FastEngine(model) as large:
        for label in ("integrate", "gradient", "gradient everywhere", "effects"):
            assert differences(CALLS[label](small, prompts), CALLS[label](large, prompts)) <= 1e-12, label


def test_many_rows_are_cut_into_passes():
    """56 neurons in passes of at most 10 rows: the cuts fall inside sites and across them."""
    model, prompts = tiny("llama"), ragged()[:2]
    with FastEngine(model) as engine, FastEngine(model, plan=Plan(prompts=2, answer_tokens=20, window=2)) as small:
        for label in ("effects", "integrate"):
            assert differences(CALLS[label](small, prompts), CALLS[label](engine, prompts)) <= 1e-12, label


@pytest.mark.parametrize("tokens, passes", [(2048, 1), (60, 2), (20, 8), (1, 16)])
def test_an_integral_is_cut_into_passes_of_as_many_alphas_as_they_may_hold(tokens, passes, monkeypatch):
    model, prompts = tiny("llama"), ragged()[:1]
    seen, plainly = [], integrals._slopes

    def counted(batch, alphas):
        seen.append(max(len(points) for points in alphas.values()))
        return plainly(batch, alphas)

    monkeypatch.setattr(integrals, "_slopes", counted)
    with FastEngine(model, plan=Plan(prompts=1, answer_tokens=tokens, window=1)) as engine:
        engine.integrate(prompts, "logp_options", *quadrature("midpoint", 16))
    assert len(seen) == passes and sum(seen) == 16 and max(seen) - min(seen) <= 1


def test_the_attention_implementation_is_given_back_also_after_an_error():
    model, prompts = tiny("llama"), random_prompts(1)
    with FastEngine(model) as fast:
        handle = model.lm_head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("stop")))
        with pytest.raises(KeyError):
            fast.gradients(prompts, "logp_options")
        handle.remove()
        assert model.config._attn_implementation == "sdpa"
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_an_edit_at_one_position_around_it_is_left_to_the_judge():
    """Positions count the tokens of a pass, and passes of answer tokens have others than the prompt."""
    from neuronllm.model.edit import edit

    model, prompts = tiny("llama"), random_prompts(2)
    for where in (5, -1):
        with edit(model, [3, 40], 2.0, positions=where):
            fast, judged = (
                attribute(model, None, prompts, "exact", backend=backend, progress=False).values
                for backend in ("fast", "reference")
            )
        assert torch.equal(fast, judged)


def test_the_head_of_a_model_that_mixes_its_logits_is_left_whole():
    """Logits less their mean over the vocabulary cannot be had from a few rows of the head."""
    model, prompts = tiny("llama"), ragged()
    model.lm_head.register_forward_hook(lambda module, args, logits: logits - logits.mean(-1, keepdim=True))
    with FastEngine(model) as fast, ReferenceEngine(model) as judge:
        assert fast.unusable(prompts) is None and not fast.options_head
        assert differences(CALLS["gradient"](fast, prompts), CALLS["gradient"](judge, prompts)) <= 1e-9
    with FastEngine(tiny("llama")) as fast:
        assert fast.unusable(prompts) is None and fast.options_head


def test_blocks_that_only_add_are_told_from_others():
    """Rows join behind a block only where it adds W h to the stream as it is."""
    for name, count in {"llama": 2, "gpt2": 2, "opt": 2, "phi": 2, "gemma2": 0, "granite": 0, "mixtral": 0}.items():
        with FastEngine(tiny(name)) as fast:
            assert fast.unusable(ragged()) is None
            assert len(fast._blocks.plain) == count, name
    with FastEngine(tiny("deepseek_v3")) as fast:
        assert fast.unusable(ragged()) is None
        assert fast._blocks.plain == {"model.layers.0"}  # the dense one


def ranks(values: torch.Tensor) -> torch.Tensor:
    return values.argsort().argsort().double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2"])
def test_exact_effects_of_a_16_bit_model_are_those_of_its_weights_in_float32(name, dtype):
    model, prompts = tiny(name, dtype, num_hidden_layers=4, n_layer=4), random_prompts(2, length=20)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with FastEngine(model, dtype=torch.float32) as engine:
        truth = engine.effects(prompts, "logp_options")
    with FastEngine(model) as engine:
        assert engine.unusable(prompts) is None
        found = engine.effects(prompts, "logp_options")
        assert 0 < engine.plan.noise < 1e-4
    for mine, true in zip(found, truth, strict=True):
        active = true != 0
        assert torch.corrcoef(torch.stack([ranks(mine[active]), ranks(true[active])]))[0, 1] >= 0.99
    assert differences(found, truth) <= 1e-3
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("objective", ["logp_options", "logp_vocab"])
@pytest.mark.parametrize("sure", [False, True])
def test_exact_effects_lose_nothing_to_the_subtraction(sure, objective):
    """Of log-probabilities that hardly differ, or hardly lie below 0: float32 logits say more than float32 of these."""
    model, (asked,) = tiny("llama", std=0.02), random_prompts(1)
    with torch.no_grad():
        if sure:
            model.lm_head.weight.mul_(1000.0)
        right, *others = model(torch.tensor([asked.input_ids])).logits[0, -1].argsort(descending=True)[[0, 1, 30]]
    prompt = Prompt(asked.input_ids, [[[int(token)]] for token in (right, *others)], 0)
    with ReferenceEngine(model, dtype=torch.float64) as judge:
        truth = judge.effects([prompt], objective)
    with FastEngine(model.float()) as fast, ReferenceEngine(model) as plainly:
        assert fast.unusable([prompt]) is None
        for engine in (fast, plainly):
            found = engine.effects([prompt], objective)
            assert found.dtype == torch.float32 and differences(found, truth) <= 2e-4


def test_noise_is_told_with_exact_effects():
    scores = attribute(tiny("llama", torch.float32), None, random_prompts(2), "exact", progress=False)
    assert 0 < scores.provenance["noise"] < 1e-4
    assert (
        "noise"
        not in attribute(
            tiny("llama"), None, random_prompts(2), "gradient", positions="answer", progress=False
        ).provenance
    )


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_the_judge_keeps_the_promises_of_exact_effects(name):
    """Also where the fast engine does not work: float32 in a model of 16 bits, and a noise floor."""
    model, prompts = tiny(name, torch.bfloat16), random_prompts(2)
    with ReferenceEngine(model, dtype=torch.float32) as judge:
        truth = judge.effects(prompts, "logp_options")
    scores = attribute(model, None, prompts, "exact", keep="all", backend="reference", progress=False)
    assert differences(scores.per_prompt, truth) <= 1e-3
    assert 0 < scores.provenance["noise"] < 1e-4


def test_effects_of_experts_that_nobody_is_routed_to_and_of_no_neurons():
    model, prompts = tiny("mixtral"), random_prompts(1)
    with FastEngine(model) as engine:
        every = engine.effects(prompts, "logp_options")
        silent = (every[0] == 0).nonzero()[:, 0]
        assert len(silent) and torch.equal(engine.effects(prompts, "logp_options", ids=silent), every[:, silent])
        assert engine.effects(prompts, "logp_options", ids=torch.tensor([], dtype=torch.int64)).shape == (1, 0)
        twice = torch.tensor([3, 1, 3])
        assert torch.allclose(engine.effects(prompts, "logp_options", ids=twice), every[:, twice])


def test_a_shared_start_is_computed_once_for_exact_effects_too(monkeypatch):
    from neuronllm.engine import checked as module

    calls, own = [], module.prefill_root
    monkeypatch.setattr(module, "prefill_root", lambda *args: calls.append(args) or own(*args))
    shared = list(range(3, 43))
    prompts = [Prompt(shared + [n, 5, 6], [[3], [4]], 0) for n in range(7, 15)]
    with FastEngine(tiny("llama", torch.bfloat16), batch_size=1) as engine:
        assert engine.unusable(prompts) is None
        before = len(calls)
        engine.effects(prompts, "logp_options", ids=torch.arange(4))
        assert len(calls) - before <= 1
