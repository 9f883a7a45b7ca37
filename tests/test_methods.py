"""Every method's scores against plain computations: hooks and loops of the tests' own, in float64, on tiny models."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.common.errors import InputError
from tests import plain
from tests.tiny import tiny


def attributed(model, prompts, method: str, **options) -> nl.Scores:
    options = {"positions": "answer", **options}
    return nl.attribute(
        model, None, prompts, method, keep="all", dtype=torch.float64, backend="reference", progress=False, **options
    )


def same(scores: torch.Tensor, expected, rtol: float = 1e-6, atol: float = 1e-10) -> bool:
    """Equal up to the float32 in which scores are kept."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert expected.abs().max() > 100 * atol, "the expected scores must be large enough to tell anything"
    return torch.allclose(scores.double(), expected, rtol=rtol, atol=atol)


def question_means(prompts, per_prompt: list[torch.Tensor]) -> torch.Tensor:
    """(questions, neurons): each question's mean over its prompts."""
    names = [prompt.question_id for prompt in prompts]
    means = []
    for name in dict.fromkeys(names):
        mine = [score for score, own in zip(per_prompt, names, strict=True) if own == name]
        means.append(sum(mine) / len(mine))
    return torch.stack(means)


# ---- qrnca -----------------------------------------------------------------------------------------------------------


def released_code(model, prompts, steps: int, digits: int = 6) -> tuple[list[float], list[dict[int, float]]]:
    """QRNCA's public code in its own style: dictionaries of neurons that survive a prompt's threshold."""
    alphas = [k / (steps - 1) for k in range(steps)]
    clusters = []
    for group in plain.by_question(prompts):
        cluster: dict[int, float] = {}
        for prompt in group:
            scores = plain.integrated(model, prompt, plain.p_bare_letter, alphas).tolist()
            top = max(scores)
            for neuron, score in enumerate(scores):
                if score > 0.2 * top:
                    cluster[neuron] = cluster.get(neuron, 0.0) + round(score, digits)
        total = sum(cluster.values())
        clusters.append({neuron: score / total if total > 0 else 0.0 for neuron, score in cluster.items()})
    occurrences = Counter(neuron for cluster in clusters for neuron in cluster)
    naica = [0.0] * len(scores)
    for cluster in clusters:
        for neuron, na in cluster.items():
            naica[neuron] += na * math.log(len(clusters) / (occurrences[neuron] + 1)) / len(clusters)
    return naica, clusters


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_qrnca_follows_the_released_code(name):
    model, prompts, steps = tiny(name), plain.questions(3, 3, 2, 1), 5
    expected, clusters = released_code(model, prompts, steps)
    scores = attributed(model, prompts, "qrnca", compat="released-code", steps=steps)
    assert same(scores.values, expected)
    # What sets the code apart must show in the numbers, or the comparison says nothing.
    counts = Counter(neuron for cluster in clusters for neuron in cluster)
    common = [neuron for neuron, count in counts.items() if count == 2]  # of four: more than 30 %
    assert common and all(scores.values[neuron] != 0 for neuron in common), "common neurons stay"
    unrounded, _ = released_code(model, prompts, steps, digits=16)
    assert not same(scores.values, unrounded)
    assert not same(scores.values, attributed(model, prompts, "qrnca", quadrature="endpoints", steps=steps).values)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_qrnca_follows_the_paper(name):
    model, prompts, steps = tiny(name), plain.questions(3, 3, 2, 3, 1), 4
    alphas = [(k + 1) / steps for k in range(steps)]
    shares, clusters = [], []
    for group in plain.by_question(prompts):
        scores = sum(plain.integrated(model, prompt, plain.p_vocab, alphas) for prompt in group).tolist()
        z = sum(scores)
        shares.append([score / z if z > 0 else 0.0 for score in scores])
        clusters.append({neuron for neuron, score in enumerate(scores) if score > 0.2 * max(scores)})
    expected = []
    for neuron, na in enumerate(zip(*shares, strict=True)):
        count = sum(neuron in cluster for cluster in clusters)
        common = count > 0.3 * len(clusters)
        expected.append(0.0 if common else sum(na) / len(na) * math.log(len(clusters) / (count + 1)))
    scores = attributed(model, prompts, "qrnca", steps=steps)
    assert same(scores.values, expected)
    counts = Counter(neuron for cluster in clusters for neuron in cluster)
    assert {1, 2} <= set(counts.values()), "neurons on both sides of the 30 % are needed"
    assert any(map(any, shares)) and not all(map(any, shares)), "a question whose scores sum below zero is needed"


# ---- the other integrated gradients ----------------------------------------------------------------------------------


def test_knowledge_keeps_what_most_prompts_share():
    model, prompts, steps = tiny("llama"), plain.questions(3, 2, 1), 5
    alphas = [k / (steps - 1) for k in range(steps)]
    expected = torch.zeros(56, dtype=torch.float64)
    dropped = 0
    for group in plain.by_question(prompts):
        per_prompt = [plain.integrated(model, prompt, plain.p_vocab, alphas) for prompt in group]
        for neuron in range(56):
            votes = sum(bool(scores[neuron] > 0.3 * scores.max()) for scores in per_prompt)
            if votes > 0.5 * len(group):
                expected[neuron] += sum(scores[neuron] for scores in per_prompt) / len(group) / 3
            dropped += 0 < votes <= 0.5 * len(group)
    assert same(attributed(model, prompts, "knowledge", steps=steps).values, expected)
    assert dropped, "a neuron that too few prompts share is needed"


@pytest.fixture(scope="module")
def ace_case():
    """A model, prompts, and the plain integrated gradients of each prompt (4 midpoints)."""
    model, prompts = tiny("llama"), plain.questions(3, 2, 3, 1)
    alphas = [0.125, 0.375, 0.625, 0.875]
    return model, prompts, [plain.integrated(model, prompt, plain.logp_options, alphas) for prompt in prompts]


def test_ace_without_a_mask_is_the_mean_of_question_means(ace_case):
    model, prompts, per_prompt = ace_case
    scores = attributed(model, prompts, "ace", mask="none", steps=4)
    assert same(scores.per_prompt, torch.stack(per_prompt))
    means = question_means(prompts, per_prompt)
    assert same(scores.values, means.mean(0))
    assert same(scores.stderr, means.numpy().std(0, ddof=1) / 2)
    assert same(scores.sign_consistency, (means.sign() == means.mean(0).sign()).double().mean(0))
    assert not same(scores.values, torch.stack(per_prompt).mean(0)), "variants must differ in number for this test"


@pytest.mark.parametrize("tau", [0.6, 0.8])
def test_ace_consistent_drops_neurons_that_change_sign(ace_case, tau):
    model, prompts, per_prompt = ace_case
    means = question_means(prompts, per_prompt).numpy()
    agree = np.mean(np.sign(means) == np.sign(means.mean(0)), axis=0)
    expected = np.where(agree >= tau, means.mean(0), 0)
    assert same(attributed(model, prompts, "ace", tau=tau, steps=4).values, expected)
    assert 0 < np.count_nonzero(expected) < expected.size


@pytest.mark.parametrize("z, count", [(5, 5), (0.1, 6)])
def test_ace_ambiguous_drops_neurons_seen_on_both_sides(ace_case, z, count):
    model, prompts, per_prompt = ace_case
    means = question_means(prompts, per_prompt).tolist()
    expected, good, bad = [0.0] * 56, set(), set()
    for score in means:
        ranked = sorted(range(56), key=score.__getitem__)
        bad |= set(ranked[:count])
        good |= set(ranked[-count:])
        for neuron in {*ranked[:count], *ranked[-count:]}:
            expected[neuron] += score[neuron] / len(means)
    assert good & bad, "an ambiguous neuron is needed"
    expected = [0.0 if neuron in good & bad else score for neuron, score in enumerate(expected)]
    assert same(attributed(model, prompts, "ace", mask="ambiguous", z=z, steps=4).values, expected)


# ---- gradients, effects, direct pushes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("positions", ["answer", "all"])
def test_gradient_and_neurgrad(name, positions):
    model, prompts = tiny(name), plain.questions(2, 1)
    for method, objective in (("gradient", plain.logp_options), ("neurgrad", plain.p_vocab)):
        per_prompt = []
        for prompt in prompts:
            layers = []
            for h, slope in zip(*plain.slopes(model, prompt, objective), strict=True):
                product = (h if method == "gradient" else h.sign()) * slope
                layers.append(product[-1] if positions == "answer" else product.sum(0))
            per_prompt.append(torch.cat(layers))
        scores = attributed(model, prompts, method, positions=positions)
        assert same(scores.per_prompt, torch.stack(per_prompt))
        assert same(scores.values, question_means(prompts, per_prompt).mean(0))


@pytest.mark.parametrize("name", ["llama", "olmo2"])
@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, -1.0])
def test_exact_with_any_factor(name, factor):
    model, prompts = tiny(name), plain.questions(1)
    expected = plain.effects(model, prompts[0], plain.logp_options, factor)
    assert same(attributed(model, prompts, "exact", factor=factor).values, expected)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_logprob_is_a_neurons_own_push_on_the_options(name):
    """F(unembed(r + h_i v_i)) - F(unembed(r)); where the model norms its FFNs' outputs, the push passes that norm."""
    model, prompts = tiny(name), plain.questions(1)
    (prompt,) = prompts
    residuals, expected = [], []

    def unembed(residual: torch.Tensor) -> torch.Tensor:
        logits = model.lm_head(model.model.norm(residual))
        cap = getattr(model.config, "final_logit_softcapping", None)
        return logits if cap is None else (logits / cap).tanh() * cap

    with torch.no_grad(), plain.DoublePrecision():
        for layer, (name_of_down, h) in zip(model.model.layers, plain.activity(model, prompt).items(), strict=True):
            before = layer.post_attention_layernorm if name == "llama" else layer.pre_feedforward_layernorm
            handle = before.register_forward_pre_hook(lambda m, args: residuals.append(args[0][0, -1]))
            plain.logits(model, prompt)
            handle.remove()
            columns = model.get_submodule(name_of_down).weight.T
            after = layer.post_feedforward_layernorm if name == "gemma2" else (lambda x: x)
            base = plain.logp_options(unembed(residuals[-1]), prompt)
            for value, column in zip(h[-1], columns, strict=True):
                pushed = unembed(residuals[-1] + after(value * column))
                expected.append(plain.logp_options(pushed, prompt) - base)
    assert same(attributed(model, prompts, "logprob").values, torch.stack(expected))


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_relp_keeps_or_stops_attention_patterns(positions):
    """Its numbers are tested with the engine; here that the option reaches the engine."""
    model, prompts = tiny("llama"), plain.questions(1)
    live, detached = (
        attributed(model, prompts, "relp", attention=attention, positions=positions).values
        for attention in ("live", "detached")
    )
    assert torch.allclose(live[28:], detached[28:])  # behind the last layer is no attention
    assert not torch.allclose(live[:28], detached[:28])


# ---- activity --------------------------------------------------------------------------------------------------------

GATES = {
    "llama": "model.layers.{}.mlp.gate_proj",
    "phi3": "model.layers.{}.mlp.gate_up_proj",  # its first half is the gate
    "gpt2": "transformer.h.{}.mlp.c_fc",
}


def gates_of(model, prompt) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    names = [GATES[model.config.model_type].format(layer) for layer in range(2)]
    hook = lambda module, args, output: seen.append(output[0])  # noqa: E731
    handles = [model.get_submodule(name).register_forward_hook(hook) for name in names]
    plain.logits(model, prompt)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("positions", ["answer", "all"])
def test_activation_is_h_or_how_often_the_gate_is_open(name, positions):
    model, prompts = tiny(name), plain.questions(2, 1)
    values, frequencies = [], []
    for prompt in prompts:
        h = list(plain.activity(model, prompt).values())
        cut = slice(-1, None) if positions == "answer" else slice(None)
        values.append(torch.cat([x[cut].mean(0) for x in h]))
        shares = [(g[cut, : x.shape[1]] > 0).double() for g, x in zip(gates_of(model, prompt), h, strict=True)]
        frequencies.append(torch.cat([share.mean(0) for share in shares]))
    for statistic, per_prompt in (("value", values), ("frequency", frequencies)):
        scores = attributed(model, prompts, "activation", statistic=statistic, positions=positions)
        assert same(scores.per_prompt, torch.stack(per_prompt))
        assert same(scores.values, question_means(prompts, per_prompt).mean(0))


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_contrast_is_right_minus_wrong(positions):
    model, prompts = tiny("llama"), plain.questions(3, 2, 3, 2)
    sides: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for prompt in prompts:
        right = int(plain.option_scores(plain.logits(model, prompt), prompt).argmax()) == prompt.answer
        h = plain.activity(model, prompt).values()
        sides[right].append(torch.cat([x[-1] if positions == "answer" else x.mean(0) for x in h]))
    right, wrong = (torch.stack(sides[side]).numpy() for side in (True, False))
    scores = attributed(model, prompts, "contrast", positions=positions)
    assert same(scores.values, right.mean(0) - wrong.mean(0))
    variance = sum(side.var(0, ddof=1) / len(side) for side in (right, wrong))
    assert same(scores.stderr, np.sqrt(variance))
    assert scores.sign_consistency.isnan().all()


@pytest.mark.parametrize("side", [True, False])
def test_contrast_needs_prompts_of_both_kinds(side):
    model, prompts = tiny("llama"), plain.questions(3, 2, 3, 2)
    answers = [int(plain.option_scores(plain.logits(model, prompt), prompt).argmax()) for prompt in prompts]
    chosen = [prompt for prompt, answer in zip(prompts, answers, strict=True) if (answer == prompt.answer) == side]
    word = "right" if side else "wrong"
    with pytest.raises(InputError, match=f'"contrast": all {len(chosen)} prompts were answered {word}'):
        attributed(model, chosen, "contrast")


def test_random_is_seeded_and_the_same_for_every_prompt():
    model, prompts = tiny("llama"), plain.questions(2, 1)
    first, again, other = (attributed(model, prompts, "random", seed=seed) for seed in (3, 3, 4))
    assert (first.per_prompt == first.per_prompt[0]).all()
    assert torch.equal(first.values, first.per_prompt[0]) and torch.equal(first.values, again.values)
    assert abs(torch.corrcoef(torch.stack([first.values, other.values]))[0, 1]) < 0.5
    assert 0.5 < first.values.std() < 1.5
