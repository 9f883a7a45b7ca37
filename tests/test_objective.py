"""Objectives: each against its formula written out, and the contrast in the gradient of the default one."""

from __future__ import annotations

import math

import pytest
import torch

import neuronllm as nl
from neuronllm.common.errors import InputError
from neuronllm.data.prompts import Prompt
from neuronllm.engine.head import objective_value, option_scores
from neuronllm.engine.objectives import NEVER, OBJECTIVES, Objective, Readout, get_objective
from neuronllm.engine.reference import ReferenceEngine
from tests import plain
from tests.tiny import tiny

LOGITS = [0.3, -1.2, 2.0, 0.7, 1.1, -0.4, 0.0, 3.1]
PROMPT = Prompt(input_ids=[1], option_ids=[[[2], [5]], [4], [[7], [1]]], answer=0)


def formulas(logits: list[float]) -> dict[str, float]:
    """Every objective of PROMPT in plain arithmetic on exponentials."""
    e = [math.exp(logit) for logit in logits]
    right, others = e[2] + e[5], e[4] + e[7] + e[1]
    return {
        "logp_options": math.log(right / (right + others)),
        "p_options": right / (right + others),
        "margin": math.log(right) - math.log(others),
        "mean_margin": math.log(right) - (math.log(e[4]) + math.log(e[7] + e[1])) / 2,
        "logp_vocab": math.log(right / sum(e)),
        "p_vocab": right / sum(e),
        "p_vocab_bare": e[2] / sum(e),
    }


def test_every_objective_has_a_formula_here():
    assert set(formulas(LOGITS)) == set(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_equal_their_formulas(name):
    other = [-value for value in LOGITS]
    logits = torch.tensor([LOGITS, other], dtype=torch.float64)
    expected = [formulas(LOGITS)[name], formulas(other)[name]]
    assert objective_value(name, logits, PROMPT).tolist() == pytest.approx(expected, rel=1e-12)
    assert objective_value(name, logits[0], PROMPT).item() == pytest.approx(expected[0], rel=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_of_low_precision_and_of_large_logits(name):
    low = torch.tensor(LOGITS, dtype=torch.bfloat16)
    value = objective_value(name, low, PROMPT)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(formulas(low.tolist())[name], rel=1e-5)
    shifted = objective_value(name, torch.tensor(LOGITS, dtype=torch.float64) + 5000, PROMPT)
    assert shifted.item() == pytest.approx(formulas(LOGITS)[name], rel=1e-9)  # a common shift means nothing


def test_option_scores_merge_forms_of_a_letter():
    scores = option_scores(torch.tensor(LOGITS, dtype=torch.float64), [[2, 5], [4]])
    assert scores.tolist() == pytest.approx([math.log(math.exp(2.0) + math.exp(-0.4)), 1.1])


def test_unknown_objectives_are_refused():
    assert get_objective("margin") is get_objective(get_objective("margin"))
    with pytest.raises(InputError, match="objective='loss': known objectives are logp_options"):
        get_objective("loss")


@pytest.mark.parametrize("options", [2, 4])
def test_gradient_of_logp_options_is_the_right_one_minus_the_expected_one(options):
    """d logp / dh = d s_right / dh - sum over options c of P(c) * d s_c / dh."""
    model, (prompt,) = tiny("llama"), plain.questions(1, options=options)
    with torch.no_grad():
        p = plain.option_scores(plain.logits(model, prompt), prompt).softmax(-1)
    layers, per_option = [], []
    for n in range(options):
        h, slopes = plain.slopes(model, prompt, lambda logits, prompt, n=n: plain.option_scores(logits, prompt)[n])
        layers = [x[-1] for x in h]
        per_option.append(torch.cat([slope[-1] for slope in slopes]))
    contrast = per_option[prompt.answer] - sum(share * slope for share, slope in zip(p, per_option, strict=True))
    with ReferenceEngine(model, dtype=torch.float64) as engine:
        scores = engine.gradients([prompt], "logp_options")[0]
        assert torch.allclose(scores, torch.cat(layers) * contrast, rtol=1e-9, atol=1e-12)
        assert scores.abs().max() > 1e-3
        # P scales it, and the margin has it too: log P = -log(1 + exp(-margin)).
        p_right, margin = (engine.gradients([prompt], name)[0] for name in ("p_options", "margin"))
    right = p[prompt.answer]
    assert torch.allclose(p_right, right * scores, rtol=1e-9, atol=1e-12)
    assert torch.allclose((1 - right) * margin, scores, rtol=1e-9, atol=1e-12)


# ---- objectives of one's own ----


def above_mean(read: Readout) -> torch.Tensor:
    return read.of_right(read.options) - read.options.mean(-1)


def shifted(read: Readout) -> torch.Tensor:
    return read.logp_vocab - read.options.mean(-1)


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("objective", [Objective("above_mean", above_mean), Objective("shifted", shifted, True, 1)])
def test_an_objective_of_ones_own(objective, backend):
    """Against the gradient by hand; unregistered, given as it is. One reads the vocabulary and bare letters only."""
    model, prompts = tiny("llama"), plain.questions(1, options=3)

    def by_hand(logits, prompt):
        forms = [list(ids)[: objective.forms] for ids in prompt.first_tokens]
        scores = torch.stack([logits[..., ids].logsumexp(-1) for ids in forms], -1)
        log_z = logits.logsumexp(-1) if objective.vocabulary else 0.0
        return scores[..., prompt.answer] - log_z - scores.mean(-1)

    scores = nl.attribute(
        model, None, prompts, "gradient", objective=objective, positions="answer", keep="all", backend=backend,
        progress=False,
    )  # fmt: skip
    assert scores.provenance["objective"] == objective.name
    for prompt, found in zip(prompts, scores.per_prompt, strict=True):
        h, slopes = plain.slopes(model, prompt, by_hand)
        right = torch.cat([x[-1] * slope[-1] for x, slope in zip(h, slopes, strict=True)])
        assert torch.allclose(found.double(), right, rtol=1e-5, atol=1e-7)


def test_objectives_that_break_their_word_are_refused():
    model, prompts = tiny("llama"), plain.questions(1, options=3)
    for objective, words in (
        (Objective("greedy", lambda read: read.logp_vocab), "without asking for it"),
        (Objective("flat", lambda read: read.options), "'flat': its value must be one number a branch"),
        ("flat", "known objectives are logp_options"),
        (7, "objective=7: known objectives are"),
    ):
        with pytest.raises(InputError, match=words):
            nl.attribute(model, None, prompts, "gradient", objective=objective, progress=False)
    with pytest.raises(InputError, match="register an Objective, not function"):
        nl.objectives.register(above_mean)
    with pytest.raises(InputError, match="objective='above_mean': method 'random' explains no objective"):
        nl.attribute(model, None, prompts, "random", objective=Objective("above_mean", above_mean))


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("options", [2, 3, 5])
def test_what_is_done_to_a_letter_whatever_is_asked_cancels_under_mean_margin(options, backend):
    """Prompts that differ in nothing but which letter is right: all that any neuron does is done to letters."""
    model, (prompt, *_) = tiny("llama"), plain.questions(1, options=options)
    turned = [Prompt(prompt.input_ids, prompt.option_ids, n, question_id="q") for n in range(options)]
    scores = {
        name: nl.attribute(
            model, None, turned, "gradient", positions="answer", objective=name, keep="all", backend=backend,
            progress=False,
        )
        for name in ("mean_margin", "logp_options")
    }  # fmt: skip
    single = scores["mean_margin"].per_prompt.abs().max()
    assert single > 1e-3 and scores["mean_margin"].values.abs().max() < 1e-6 * single
    if options > 2:
        assert scores["logp_options"].values.abs().max() > 1e-3 * single


def test_mean_margin_leaves_out_the_options_that_a_prompt_lacks():
    options = torch.tensor([[2.0, 5.0, 1.0], [2.0, 5.0, NEVER]], dtype=torch.float64, requires_grad=True)
    value = get_objective("mean_margin").value(Readout(options, torch.tensor([[1], [1]])))
    assert value.tolist() == [5.0 - 1.5, 5.0 - 2.0]
    value.sum().backward()
    assert options.grad.tolist() == [[-0.5, 1.0, -0.5], [-1.0, 1.0, 0.0]]


@pytest.mark.parametrize("name", ["logp_options", "p_options", "margin", "mean_margin"])
def test_objectives_over_options_need_two(name):
    model, alone = tiny("llama"), Prompt([5, 9, 2], [[[11], [31]]], 0)
    with pytest.raises(
        InputError, match=f"objective='{name}': question 1 has only one option.*nl.distractors.*logp_vo"
    ):
        nl.attribute(model, None, [*plain.questions(1), alone], "gradient", objective=name, progress=False)
    with pytest.raises(InputError, match=f"objective='{name}': question 0 has only one option"):
        nl.attribute(model, None, [alone], "gradient", objective=name, progress=False)


@pytest.mark.parametrize("method", ["gradient", "ace", "exact", "relp", "qrnca"])
def test_where_every_prompt_has_one_option_it_is_explained_alone(method):
    model = tiny("llama")
    alone = [Prompt(p.input_ids, p.option_ids[p.answer : p.answer + 1], 0) for p in plain.questions(1, 1)]
    scores = nl.attribute(model, None, alone, method, keep="all", progress=False)
    name = {"qrnca": "p_vocab"}.get(method, "logp_vocab")
    assert scores.provenance["objective"] == name
    assert scores.provenance["options_compared"] == "none, every prompt has one"
    asked = nl.attribute(model, None, alone, method, objective=name, keep="all", progress=False)
    assert torch.equal(scores.per_prompt, asked.per_prompt) and scores.per_prompt.abs().max() > 1e-6
    two = nl.attribute(model, None, plain.questions(1, 1), method, progress=False)
    assert "options_compared" not in two.provenance
