"""The judge against hand-made edits, finite differences and the identities of integrated gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from neuronllm.engine.borrowed import answer_logits
from neuronllm.engine.head import objective_value
from neuronllm.engine.objectives import OBJECTIVES
from neuronllm.engine.quadrature import QUADRATURES, quadrature
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.model.anatomy import Anatomy
from tests.tiny import DENSE, POST_NORMED, random_prompts, tiny

PATTERNS_OUT_OF_REACH = {"gptj", "bloom", "falcon"}  # they do not attend through transformers' interface


def judge(model) -> ReferenceEngine:
    return ReferenceEngine(model, dtype=torch.float64)


def value_by_hand(model, prompt, objective, down=None, change=None) -> torch.Tensor:
    """F of a prompt with `change(h)` applied to the last token in front of one module, without any of our hooks."""

    def hook(module, args):
        h = args[0].clone()
        h[..., -1, :] = change(h[..., -1, :])  # the last row also where batch and tokens are flattened
        return (h,)

    handle = model.get_submodule(down).register_forward_pre_hook(hook) if down else None
    with torch.no_grad():
        logits = answer_logits(model, torch.tensor([prompt.input_ids]))
    if handle:
        handle.remove()
    return objective_value(objective, logits, prompt)[0]


def clean_h(model, prompt, down) -> torch.Tensor:
    seen = []
    value_by_hand(model, prompt, "logp_options", down, lambda h: seen.append(h.reshape(-1).clone()) or h)
    return seen[0]


@pytest.mark.parametrize("name", DENSE)
def test_exact_effects_equal_editing_by_hand(name):
    model, (prompt,) = tiny(name), random_prompts(1)
    anatomy = Anatomy.of(model)
    ids = torch.tensor([0, 5, anatomy.n_neurons - 1])
    with judge(model) as engine:
        effects = engine.effects([prompt], "logp_options", ids=ids)[0]
        clean = value_by_hand(model, prompt, "logp_options")
        for neuron, effect in zip(ids, effects, strict=True):
            site = anatomy.sites[int(anatomy.site_of(neuron))]
            index = int(neuron - anatomy.offsets[site.layer])
            silence = torch.ones(site.width, dtype=torch.float64).index_fill(0, torch.tensor([index]), 0)
            edited = value_by_hand(model, prompt, "logp_options", site.down, lambda h, s=silence: h * s)
            assert effect.item() == pytest.approx((clean - edited).item(), abs=1e-9)
        assert effects.abs().max() > 1e-6


@pytest.mark.parametrize("name", DENSE)
def test_gradient_equals_central_differences(name):
    """h dF/dh is the slope of F along a neuron's factor."""
    model, prompts, step = tiny(name), random_prompts(2), 1e-4
    with judge(model) as engine:
        score = engine.gradients(prompts, "logp_options")
        up = engine.effects(prompts, "logp_options", factor=1 - step)
        down = engine.effects(prompts, "logp_options", factor=1 + step)
    assert torch.allclose(score, (up - down) / (2 * step), rtol=1e-5, atol=1e-7)
    assert score.abs().max() > 1e-4


def test_gradient_at_all_positions_is_the_slope_of_an_edit_at_all_positions():
    from neuronllm.model.edit import edit

    model, (prompt,), step = tiny("llama"), random_prompts(1), 1e-5
    with judge(model) as engine:
        score = engine.gradients([prompt], "margin", positions="all")[0]
        for neuron in (3, 40):
            values = []
            for factor in (1 + step, 1 - step):
                with edit(model, [neuron], factor):
                    values.append(value_by_hand(model, prompt, "margin"))
            assert score[neuron].item() == pytest.approx(((values[0] - values[1]) / (2 * step)).item(), rel=1e-5)


SMOOTH = [n for n in DENSE if n not in POST_NORMED | {"opt", "nemotron"}]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", SMOOTH)
def test_integrated_gradients_are_complete(name, objective):
    check_completeness(tiny(name), objective, *quadrature("gauss", 16))


@pytest.mark.parametrize("name", ["opt", "nemotron"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_integrated_gradients_are_complete_through_kinks(name, objective):
    """ReLU's kinks along the path cost any rule accuracy: 16 points do at usual weights, many at our large ones."""
    check_completeness(tiny(name, std=0.02), objective, *quadrature("gauss", 16), least=1e-9)
    check_completeness(tiny(name), objective, *quadrature("midpoint", 2000))


def check_completeness(model, objective, alphas, weights, least: float = 1e-6) -> None:
    """The scores of a layer sum to F(full) - F(the layer's h zeroed at the answer position)."""
    (prompt,) = random_prompts(1)
    with judge(model) as engine:
        scores = engine.anatomy.split(engine.integrate([prompt], objective, alphas, weights)[0])
        full = value_by_hand(engine.model, prompt, objective)
        for site, score in zip(engine.anatomy.sites, scores, strict=True):
            change = full - value_by_hand(engine.model, prompt, objective, site.down, torch.zeros_like)
            assert abs(score.sum() - change) <= 1e-3 * max(abs(change), 0.1)
            assert abs(change) > least


@pytest.mark.parametrize("name", DENSE)
def test_post_norms_are_noticed(name):
    model, (prompt,) = tiny(name), random_prompts(1)
    with judge(model) as engine:
        assert engine.post_normed(prompt) == (name in POST_NORMED)


@pytest.mark.parametrize("rule", QUADRATURES)
def test_quadrature_weights_sum_to_one(rule):
    alphas, weights = quadrature(rule, 7)
    assert weights.sum() == pytest.approx(1)
    assert alphas.min() >= 0 and alphas.max() <= 1 and len(alphas) == 7
    expected = {"right": 4 / 7, "midpoint": 0.5, "endpoints": 0.5, "gauss": 0.5}[rule]
    assert (alphas * weights).sum() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_direct_score_is_the_neurons_own_push(name):
    """Against the formula written out for a pre-norm block: unembed(r + h_i v_i) - unembed(r)."""
    model, (prompt,) = tiny(name), random_prompts(1)
    with judge(model) as engine:
        scores = engine.direct([prompt], "logp_options")[0]
    site = engine.anatomy.sites[0]
    down = model.get_submodule(site.down)
    columns = down.weight if site.transposed else down.weight.T
    out = []
    handle = model.get_submodule(site.block).register_forward_hook(
        lambda m, a, o: out.append(o[0] if isinstance(o, tuple) else o)
    )
    h = clean_h(model, prompt, site.down)
    handle.remove()
    residual = out[0].reshape(-1, out[0].shape[-1])[-1] - h @ columns  # the bias, where there is one, stays
    norm = model.model.norm if name == "llama" else model.transformer.ln_f
    with torch.no_grad():
        rows = torch.cat([residual + h[:, None] * columns, residual[None]])
        with judge(model):
            value = objective_value("logp_options", model.lm_head(norm(rows)), prompt)
    assert torch.allclose(scores[: site.width], value[:-1] - value[-1], atol=1e-9)
    assert scores.abs().max() > 1e-3


def relp_by_hand(model, prompt) -> torch.Tensor:
    """RelP written as module code for Llama: constant norm scales, act(x)/x constant, the gate product halved."""

    class Norm(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.norm.variance_epsilon).detach()
            return self.norm.weight * x * scale

    class Mlp(torch.nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.mlp = mlp

        def forward(self, x):
            gate, up = self.mlp.gate_proj(x), self.mlp.up_proj(x)
            gated = gate * (torch.nn.functional.silu(gate) / gate).detach()
            product = gated * up
            self.h = 0.5 * product + 0.5 * product.detach()
            self.h.retain_grad()
            return self.mlp.down_proj(self.h)

    model = copy.deepcopy(model)
    model.model.norm = Norm(model.model.norm)
    for layer in model.model.layers:
        layer.mlp = Mlp(layer.mlp)
        layer.input_layernorm, layer.post_attention_layernorm = (
            Norm(layer.input_layernorm),
            Norm(layer.post_attention_layernorm),
        )
    objective_value("logp_options", answer_logits(model, torch.tensor([prompt.input_ids])), prompt).sum().backward()
    return torch.cat([(layer.mlp.h * layer.mlp.h.grad)[0, -1] for layer in model.model.layers]).detach()


def test_relp_equals_its_rules_written_as_modules():
    model, (prompt,) = tiny("llama"), random_prompts(1)
    with judge(model) as engine:
        scores = engine.gradients([prompt], "logp_options", rules="relp")[0]
        plain = engine.gradients([prompt], "logp_options")[0]
    assert torch.allclose(scores, relp_by_hand(model, prompt), atol=1e-9)
    assert (scores - plain).norm() > 0.01 * plain.norm()


@pytest.mark.parametrize("name", [n for n in DENSE if n not in PATTERNS_OUT_OF_REACH])
def test_relp_keeps_the_forward_values(name):
    """Rules change gradients only: the objective under the rules is the objective."""
    from neuronllm.engine.relp import relp_rules

    model, (prompt,) = tiny(name), random_prompts(1)
    with judge(model) as engine:
        before = answer_logits(model, torch.tensor([prompt.input_ids]))
        attention = model.config._attn_implementation
        with relp_rules(model, engine.anatomy, detach_attention=True):
            under = answer_logits(model, torch.tensor([prompt.input_ids]))
        assert torch.allclose(before, under, atol=1e-12)
        assert model.config._attn_implementation == attention
        live = engine.gradients([prompt], "logp_options", rules="relp")
        detached = engine.gradients([prompt], "logp_options", rules="relp-detached")
    # The last layer's neurons meet no attention on their way out; the first layer's do.
    sizes = engine.anatomy.sizes
    assert torch.allclose(live[:, sizes[0] :], detached[:, sizes[0] :], atol=1e-9)
    assert not torch.allclose(live[:, : sizes[0]], detached[:, : sizes[0]], atol=1e-9)


def test_scores_of_a_prompt_do_not_depend_on_its_company():
    model, prompts = tiny("qwen2"), random_prompts(3)
    with judge(model) as engine:
        together = engine.integrate(prompts, "logp_options", *quadrature("midpoint", 4))
        alone = engine.integrate(prompts[2:], "logp_options", *quadrature("midpoint", 4))
    assert torch.equal(together[2:], alone)


def test_batch_size_changes_no_effect():
    model, prompts = tiny("llama"), random_prompts(1)
    with ReferenceEngine(model, dtype=torch.float64, batch_size=3) as small, judge(model) as large:
        assert torch.allclose(small.effects(prompts, "p_options"), large.effects(prompts, "p_options"), atol=1e-12)


def test_frequency_is_the_sign_of_the_gate():
    model, prompts = tiny("llama"), random_prompts(1)
    with judge(model) as engine:
        share = engine.activations(prompts, "all", "frequency")[0]
        seen = []
        gate = model.model.layers[0].mlp.gate_proj
        handle = gate.register_forward_hook(lambda m, a, o: seen.append(o[0]))
        answer_logits(model, torch.tensor([prompts[0].input_ids]))
        handle.remove()
    assert torch.allclose(share[:28], (seen[0] > 0).double().mean(0))
