"""The judge on mixtures of experts: every score against experts written out by hand, in float64."""

from __future__ import annotations

import pytest
import torch

import neuronllm as nl
from neuronllm.engine.borrowed import answer_logits
from neuronllm.engine.head import objective_value
from neuronllm.engine.quadrature import quadrature
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.methods import METHODS
from neuronllm.model.anatomy import Anatomy
from tests.checks import quiz, untouched
from tests.experts_by_hand import experts_by_hand, gated, relp_gate, seen_by_hand
from tests.tiny import EXPERTS, random_prompts, tiny

OBJECTIVE = "logp_options"
EVERY = {"mixtral": {}, "qwen2_moe": {}, "gpt_oss": {}, "deepseek_v3": {"n_group": 1}}  # can route to all experts


def judge(model) -> ReferenceEngine:
    return ReferenceEngine(model, dtype=torch.float64)


def value_by_hand(model, prompt, change, **how) -> torch.Tensor:
    with experts_by_hand(model, change, **how):
        return objective_value(OBJECTIVE, answer_logits(model, torch.tensor([prompt.input_ids])), prompt)[0]


def unchanged(layer, expert, token, h):
    return h


def at(prompt, address, edit):
    """The change that runs `edit(h)` at the answer position of (layer, expert)."""

    def change(layer, expert, token, h):
        return edit(h) if (layer, expert) == address and token == len(prompt.input_ids) - 1 else h

    return change


def addressed(anatomy: Anatomy, scores: torch.Tensor) -> dict[tuple[int, int, int], float]:
    columns = anatomy.locate(torch.arange(anatomy.n_neurons))
    return dict(zip(zip(*(column.tolist() for column in columns), strict=True), scores.tolist(), strict=True))


def active(model, prompt) -> dict[tuple[int, int], torch.Tensor]:
    """h by (layer, expert) at the answer position."""
    last = len(prompt.input_ids) - 1
    seen = seen_by_hand(model, prompt.input_ids)
    return {(layer, expert): h for (layer, expert, token), h in seen.items() if token == last}


@pytest.mark.parametrize("name", EXPERTS)
def test_exact_effects_equal_editing_by_hand(name):
    model, (prompt,) = tiny(name), random_prompts(1)
    with judge(model) as engine, torch.no_grad():
        effects = addressed(engine.anatomy, engine.effects([prompt], OBJECTIVE, factor=0.5)[0])
        some = engine.effects([prompt], OBJECTIVE, ids=torch.tensor([60, 3, 21]), factor=0.5)[0]
        clean, places = value_by_hand(model, prompt, unchanged), active(model, prompt)
        for (layer, expert, i), effect in effects.items():
            if (layer, expert) not in places:
                assert effect == 0
                continue
            half = lambda h, i=i: h.index_fill(0, torch.tensor([i]), 0.5 * float(h[i]))  # noqa: E731
            edited = value_by_hand(model, prompt, at(prompt, (layer, expert), half))
            assert effect == pytest.approx((clean - edited).item(), abs=1e-9)
    every = torch.tensor(list(effects.values()), dtype=torch.float64)
    assert torch.allclose(some, every[[60, 3, 21]], atol=1e-12)
    assert max(map(abs, effects.values())) > 1e-4


def leaves(model, prompt, **how):
    """F by hand on leaves added to h, at all tokens; {(layer, expert, token): (h, dF/dh)}."""
    added, values = {}, {}

    def add(layer, expert, token, h):
        key = layer, expert, token
        values[key], added[key] = h.detach(), torch.zeros_like(h).requires_grad_(True)
        return h + added[key]

    value = value_by_hand(model, prompt, add, **how)
    grads = torch.autograd.grad(value, list(added.values()))
    return {key: (values[key], grad) for key, grad in zip(added, grads, strict=True)}


@pytest.mark.parametrize("positions", ["answer", "all"])
@pytest.mark.parametrize("name", EXPERTS)
def test_gradients_equal_autograd_by_hand(name, positions):
    model, (prompt,) = tiny(name), random_prompts(1)
    with judge(model) as engine:
        scores = addressed(engine.anatomy, engine.gradients([prompt], OBJECTIVE, positions=positions)[0])
        signed = addressed(engine.anatomy, engine.gradients([prompt], OBJECTIVE, positions=positions, weight="sign")[0])
        last, by_hand, sign_by_hand = len(prompt.input_ids) - 1, dict.fromkeys(scores, 0.0), dict.fromkeys(scores, 0.0)
        for (layer, expert, token), (h, grad) in leaves(model, prompt).items():
            for i in range(len(h)) if positions == "all" or token == last else ():
                by_hand[layer, expert, i] += float(h[i] * grad[i])
                sign_by_hand[layer, expert, i] += float(h[i].sign() * grad[i])
    assert list(scores.values()) == pytest.approx(list(by_hand.values()), abs=1e-9)
    assert list(signed.values()) == pytest.approx(list(sign_by_hand.values()), abs=1e-9)
    assert max(map(abs, scores.values())) > 1e-4


@pytest.mark.parametrize("name", EXPERTS)
def test_gradients_are_slopes_of_effects(name):
    model, (prompt,), step = tiny(name), random_prompts(1), 1e-4
    with judge(model) as engine:
        score = engine.gradients([prompt], OBJECTIVE)
        up = engine.effects([prompt], OBJECTIVE, factor=1 - step)
        down = engine.effects([prompt], OBJECTIVE, factor=1 + step)
    assert torch.allclose(score, (up - down) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", EXPERTS)
def test_activations_are_means_over_tokens(name):
    model, (prompt,) = tiny(name), random_prompts(1)
    with judge(model) as engine:
        mean = addressed(engine.anatomy, engine.activations([prompt], "all")[0])
        answer = addressed(engine.anatomy, engine.activations([prompt])[0])
        seen, places = seen_by_hand(model, prompt.input_ids), active(model, prompt)
    by_hand = dict.fromkeys(mean, 0.0)
    for (layer, expert, _), h in seen.items():
        for i in range(len(h)):
            by_hand[layer, expert, i] += float(h[i]) / len(prompt.input_ids)
    assert list(mean.values()) == pytest.approx(list(by_hand.values()), abs=1e-9)
    for (layer, expert, i), value in answer.items():
        assert value == pytest.approx(float(places[layer, expert][i]) if (layer, expert) in places else 0.0, abs=1e-9)


@pytest.mark.parametrize("name", EXPERTS)
def test_frequency_counts_positive_gates(name):
    model, (prompt,) = tiny(name), random_prompts(1)
    counts = {}

    def gate(family, leading):
        one, other = gated(family, leading)
        calls.append(one > 0)  # act(gate) has the sign of the gate
        return one * other

    def count(layer, expert, token, h):
        if expert >= 0:
            counts[layer, expert] = counts.get((layer, expert), 0) + calls[-1].double()
        return h

    calls = []
    with judge(model) as engine:
        share = addressed(engine.anatomy, engine.activations([prompt], "all", "frequency")[0])
        value_by_hand(model, prompt, count, gate=gate)
    for (layer, expert, i), value in share.items():
        if expert >= 0:
            total = counts.get((layer, expert), torch.zeros(8))
            assert value == pytest.approx(float(total[i]) / len(prompt.input_ids))


@pytest.mark.parametrize("name", EXPERTS)
def test_integrated_gradients_equal_the_sum_by_hand(name):
    """alpha scales everything that a layer holds, the experts and the shared block, at the answer position."""
    model, (prompt,) = tiny(name), random_prompts(1)
    alphas, weights = quadrature("midpoint", 3)
    last = len(prompt.input_ids) - 1
    with judge(model) as engine:
        scores = addressed(engine.anatomy, engine.integrate([prompt], OBJECTIVE, alphas, weights)[0])
        places, by_hand = active(model, prompt), dict.fromkeys(scores, 0.0)
        for layer in range(2):
            for alpha, weight in zip(alphas.tolist(), weights.tolist(), strict=True):
                points = {key: (alpha * h).requires_grad_(True) for key, h in places.items() if key[0] == layer}

                def put(at_layer, expert, token, h, points=points):
                    return points[at_layer, expert] if token == last and (at_layer, expert) in points else h

                grads = torch.autograd.grad(value_by_hand(model, prompt, put), list(points.values()))
                for key, grad in zip(points, grads, strict=True):
                    for i in range(len(grad)):
                        by_hand[(*key, i)] += weight * float(grad[i] * places[key][i])
    assert list(scores.values()) == pytest.approx(list(by_hand.values()), abs=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_integrated_gradients_are_complete_where_routing_cannot_change(name):
    """With every expert routed to, F is smooth: a layer's scores sum to F(full) - F(the layer's h zeroed)."""
    model, (prompt,) = tiny(name, num_experts_per_tok=4, **EVERY[name]), random_prompts(1)
    last = len(prompt.input_ids) - 1
    with judge(model) as engine:
        scores = addressed(engine.anatomy, engine.integrate([prompt], OBJECTIVE, *quadrature("gauss", 16))[0])
        full = value_by_hand(model, prompt, unchanged)
        for layer in range(2):
            zeroed = lambda at_layer, e, t, h, layer=layer: h * float(at_layer != layer or t != last)  # noqa: E731
            change = float(full - value_by_hand(model, prompt, zeroed))
            total = sum(score for key, score in scores.items() if key[0] == layer)
            assert total == pytest.approx(change, rel=1e-3, abs=1e-5) and abs(change) > 1e-3


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_direct_scores_keep_one_neuron_of_the_layer(name):
    """unembed(r + h_i v_i) - unembed(r): nothing else of the layer is in r, neither experts nor the shared block."""
    model, (prompt,) = tiny(name), random_prompts(1)
    last, out = len(prompt.input_ids) - 1, []
    with judge(model) as engine, torch.no_grad():
        scores = addressed(engine.anatomy, engine.direct([prompt], OBJECTIVE)[0])
        places = active(model, prompt)

        def after(layer, expert, i):
            """The objective right behind a layer of which one neuron is left, or none."""

            def keep_one(at_layer, at_expert, token, h):
                if at_layer != layer or token != last:
                    return h
                return h * (torch.arange(len(h)) == i) if at_expert == expert else 0 * h

            handle = model.model.layers[layer].register_forward_hook(lambda m, a, o: out.append(o))
            value_by_hand(model, prompt, keep_one)
            handle.remove()
            residual = out.pop()
            row = (residual[0] if isinstance(residual, tuple) else residual)[0, -1]
            return float(objective_value(OBJECTIVE, model.lm_head(model.model.norm(row))[None], prompt)[0])

        for (layer, expert, i), score in scores.items():
            by_hand = after(layer, expert, i) - after(layer, None, 0) if (layer, expert) in places else 0.0
            assert score == pytest.approx(by_hand, abs=1e-9)
    assert max(map(abs, scores.values())) > 1e-3


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss"])
def test_relp_equals_its_rules_written_out(name):
    """Norm scales, act(x)/x and routing weights constant, gated products halved; by hand at the experts."""
    from neuronllm.engine.relp import _constant_scale

    model, (prompt,) = tiny(name), random_prompts(1)
    with judge(model) as engine:
        scores = addressed(engine.anatomy, engine.gradients([prompt], OBJECTIVE, rules="relp")[0])
        plain = engine.gradients([prompt], OBJECTIVE)[0]
        norms = [m for m in model.modules() if "norm" in type(m).__name__.lower()]
        handles = [norm.register_forward_hook(_constant_scale) for norm in norms]
        found = leaves(model, prompt, gate=relp_gate, weigh=torch.Tensor.detach)
        for handle in handles:
            handle.remove()
    last, by_hand = len(prompt.input_ids) - 1, dict.fromkeys(scores, 0.0)
    for (layer, expert, token), (h, grad) in found.items():
        if token == last:
            by_hand |= {(layer, expert, i): float(h[i] * grad[i]) for i in range(len(h))}
    assert list(scores.values()) == pytest.approx(list(by_hand.values()), abs=1e-9)
    assert (torch.tensor(list(by_hand.values())) - plain).norm() > 0.01 * plain.norm()


@pytest.mark.parametrize("rules", ["relp", "relp-detached"])
@pytest.mark.parametrize("name", EXPERTS)
def test_relp_keeps_the_forward_values(name, rules):
    from neuronllm.engine.relp import relp_rules

    model, (prompt,) = tiny(name), random_prompts(1)
    with judge(model) as engine:
        before = answer_logits(model, torch.tensor([prompt.input_ids]))
        with relp_rules(model, engine.anatomy, detach_attention=rules == "relp-detached"):
            assert torch.allclose(answer_logits(model, torch.tensor([prompt.input_ids])), before, atol=1e-12)


@pytest.mark.parametrize("name", EXPERTS)
def test_no_family_here_is_post_normed(name):
    with judge(tiny(name)) as engine:
        assert not engine.post_normed(random_prompts(1)[0])


def test_a_model_in_float32_is_judged_in_float64():
    """Its grouped products take no float64, so its copy runs the family's own code; the model keeps its own."""
    model, prompts = tiny("qwen2_moe", torch.float32), random_prompts(2)
    with untouched(model):
        with judge(model) as engine:
            scores = engine.effects(prompts, OBJECTIVE)
        assert model.config._experts_implementation == "grouped_mm"
        with ReferenceEngine(model) as engine:
            single = engine.effects(prompts, OBJECTIVE)
    assert scores.dtype == torch.float64 and torch.allclose(scores, single.double(), atol=1e-5)


def test_an_attribution_under_an_edit_sees_the_edit():
    from neuronllm.model.edit import edit

    model, (prompt,) = tiny("mixtral"), random_prompts(1)
    with judge(model) as engine, torch.no_grad():
        place = next(iter(active(model, prompt)))
        neuron = engine.anatomy.flat([place[0]], [place[1]], [2])
        with edit(model, neuron, 0.0):
            assert engine.effects([prompt], OBJECTIVE, ids=neuron)[0, 0].abs() < 1e-14
        assert engine.effects([prompt], OBJECTIVE, ids=neuron)[0, 0].abs() > 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EXPERTS)
def test_every_method_scores_a_mixture(name, method, tmp_path):
    model = tiny(name, torch.float32)
    with untouched(model):
        scores = nl.attribute(model, None, quiz(6), method, positions="answer", progress=False)
    assert scores.values.shape == (Anatomy.of(model).n_neurons,) and bool(scores.values.isfinite().all())
    scores.save(tmp_path / "scores")
    again = nl.Scores.load(tmp_path / "scores")
    assert torch.equal(again.values, scores.values) and again.anatomy.same_layout(scores.anatomy)
