"""The judge on answers of several tokens: every verb against plain forwards, one a sequence, in float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from neuronllm.data.prompts import Prompt
from neuronllm.engine.asking import Asker, Edit
from neuronllm.engine.borrowed import DoublePrecision
from neuronllm.engine.quadrature import quadrature
from neuronllm.engine.reference import ReferenceEngine
from tests import plain, plain_texts
from tests.checks import untouched
from tests.plain_texts import OBJECTIVES
from tests.texts import corrected, few_prompts, in_words, mixed_prompts, open_prompts, random_tokens, text_prompts
from tests.tiny import random_prompts, tiny

OTHERS = ("gpt2", "gemma2", "qwen3", "mixtral", "gpt_oss", "qwen2_moe")
FAMILIES = ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
RULES = ("relp", "relp-detached")
# Every objective, position and weight occurs; Llama has all of the combinations.
GRADIENTS = [
    ("logp_options", "answer", "activation"),
    ("margin", "all", "activation"),
    ("p_options", "answer", "sign"),
    ("logp_vocab", "all", "sign"),
    ("p_vocab", "all", "activation"),
]
INTEGRALS = [
    ("llama", "logp_options"),
    *(pytest.param("llama", objective, marks=pytest.mark.slow) for objective in list(OBJECTIVES)[1:]),
    *(pytest.param(name, "p_vocab", marks=pytest.mark.slow) for name in OTHERS),
]
EVERY_GRADIENT = list(product(OBJECTIVES, ("answer", "all"), ("activation", "sign")))


def judge(model: Any) -> ReferenceEngine:
    return ReferenceEngine(model, dtype=torch.float64)


def equal(found: Tensor, expected: Tensor, within: float = 1e-10) -> None:
    """Within rounding, and about something."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= within * max(1.0, float(expected.abs().max()))
    assert float(expected.abs().max()) > 1e-6


def each(prompts: list[Prompt], by_hand: Callable[[Prompt], Tensor]) -> Tensor:
    return torch.stack([by_hand(prompt) for prompt in prompts])


# ---- the loops themselves ----


@pytest.mark.parametrize("name", ["llama", pytest.param("mixtral", marks=pytest.mark.slow)])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_by_hand_a_gradient_is_the_slope_of_effects(name, objective):
    model, step, ids = tiny(name), 1e-4, list(range(0, 56, 11))
    for prompt in (text_prompts((6, 9))[1], corrected(text_prompts((6,))[0])):
        slope = plain_texts.gradients(model, prompt, objective)[ids]
        up, down = (plain_texts.effects(model, prompt, objective, ids, 1 + sign * step) for sign in (1, -1))
        assert torch.allclose(slope, (down - up) / (2 * step), rtol=1e-5, atol=1e-7)
        assert slope.abs().max() > 1e-4


def test_by_hand_a_gradient_at_all_positions_is_the_slope_of_an_edit_at_all_positions():
    model, prompt, step = tiny("gpt2"), corrected(text_prompts()[1]), 1e-5
    slope = plain_texts.gradients(model, prompt, "logp_options", "all")
    for neuron in (3, 40):
        up, down = (plain_texts.answers(model, prompt, [neuron], 1 + sign * step)[prompt.answer] for sign in (1, -1))
        assert slope[neuron].item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_by_hand_integrated_gradients_are_complete(objective):
    """A layer's scores sum to F(full) - F(the layer's h zeroed at every position of the spans)."""
    model, prompt = tiny("llama"), corrected(text_prompts()[0])
    alphas, weights = quadrature("gauss", 16)
    scores = plain_texts.integrate(model, prompt, objective, alphas.tolist(), weights.tolist()).split(28)
    value_of = plain_texts.objective_of(prompt, objective)
    full = value_of(plain_texts.option_scores(model, prompt))
    for layer, score in enumerate(scores):
        change = plain_texts.multiplied(model, prompt, range(28 * layer, 28 * layer + 28), 0.0)
        assert abs(score.sum() - (full - value_of(plain_texts.option_scores(model, prompt, change)))) <= 1e-4
        assert abs(score.sum()) > 1e-6


def test_by_hand_letters_are_the_letters_of_the_other_loops():
    """One token an answer: the same numbers as one forward of the prompt alone gives."""
    model, (prompt,) = tiny("llama"), random_prompts(1)
    alphas, weights = quadrature("midpoint", 3)
    value = plain.logp_options
    points, grads = plain.slopes(model, prompt, value)
    everywhere = torch.cat([(h * grad).sum(0) for h, grad in zip(points, grads, strict=True)])
    equal(plain_texts.gradients(model, prompt, "logp_options", "all"), everywhere)
    equal(plain_texts.effects(model, prompt, "logp_options"), plain.effects(model, prompt, value, 0.0))
    equal(
        plain_texts.integrate(model, prompt, "logp_options", alphas.tolist(), weights.tolist()),
        plain.integrated(model, prompt, value, alphas.tolist()),
    )
    at_last = torch.cat([h[-1] for h in plain.activity(model, prompt).values()])
    equal(plain_texts.activations(model, prompt), at_last)


def test_by_hand_the_model_is_left_as_it_was():
    for name in ("llama", "mixtral"):
        model, prompt = tiny(name), text_prompts()[0]
        with untouched(model):
            plain_texts.gradients(model, prompt, "margin", rules="relp-detached")


# ---- the judge equals them ----


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients(name):
    check_gradients(tiny(name), few_prompts(), GRADIENTS)


@pytest.mark.slow
def test_gradients_of_every_kind():
    check_gradients(tiny("llama"), few_prompts(), EVERY_GRADIENT)


def check_gradients(model: Any, prompts: list[Prompt], kinds: list[tuple[str, str, str]]) -> None:
    with judge(model) as engine:
        for objective, positions, weight in kinds:
            found = engine.gradients(prompts, objective, positions=positions, weight=weight)
            equal(found, each(prompts, lambda p: plain_texts.gradients(model, p, objective, positions, weight)))  # noqa: B023


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", FAMILIES)
def test_relp(name, rules):
    model, prompts = tiny(name), few_prompts()
    with judge(model) as engine:
        for positions in ("answer", "all"):
            found = engine.gradients(prompts, "logp_options", positions=positions, rules=rules)
            by_hand = lambda p: plain_texts.gradients(model, p, "logp_options", positions, rules=rules)  # noqa: B023, E731
            equal(found, each(prompts, by_hand))
            without = engine.gradients(prompts, "logp_options", positions=positions)
            assert (found - without).norm() > 0.01 * without.norm()


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_every_option(name):
    model, prompts = tiny(name), few_prompts()
    with judge(model) as engine:
        found = engine.option_gradients(prompts)
    most = max(len(prompt.option_ids) for prompt in prompts)
    for prompt, rows in zip(prompts, found, strict=True):
        expected = plain_texts.option_gradients(model, prompt)
        equal(rows[: len(expected)], expected)
        assert rows.shape[0] == most and not rows[len(expected) :].any()


@pytest.mark.parametrize(("name", "objective"), INTEGRALS)
def test_integrated_gradients(name, objective):
    model, prompts = tiny(name), few_prompts()
    alphas, weights = quadrature("gauss", 2)
    with judge(model) as engine:
        found = engine.integrate(prompts, objective, alphas, weights)
    by_hand = lambda p: plain_texts.integrate(model, p, objective, alphas.tolist(), weights.tolist())  # noqa: E731
    equal(found, each(prompts, by_hand))


@pytest.mark.parametrize("name", FAMILIES)
def test_effects(name):
    model, prompts = tiny(name), few_prompts()[1:]
    ids = list(range(55, 0, -9))
    with judge(model) as engine:
        for objective, factor in (("logp_options", 0.0), ("p_vocab", 2.0)):
            found = engine.effects(prompts, objective, ids=torch.tensor(ids), factor=factor)
            equal(found, each(prompts, lambda p: plain_texts.effects(model, p, objective, ids, factor)))  # noqa: B023
        whole = engine.effects(prompts[:1], "margin")
    equal(whole[:, ids], plain_texts.effects(model, prompts[0], "margin", ids)[None])


@pytest.mark.parametrize("name", FAMILIES)
def test_activations(name):
    model, prompts = tiny(name), few_prompts()
    with judge(model) as engine:
        for positions in ("answer", "all"):
            found = engine.activations(prompts, positions)
            equal(found, each(prompts, lambda p: plain_texts.activations(model, p, positions)))  # noqa: B023


@pytest.mark.parametrize("name", FAMILIES[:4])
def test_frequencies(name):
    model, prompts = tiny(name), few_prompts()
    with judge(model) as engine:
        for positions in ("answer", "all"):
            found = engine.activations(prompts, positions, "frequency")
            equal(found, each(prompts, lambda p: plain_texts.frequencies(model, p, positions)))  # noqa: B023


@pytest.mark.parametrize("name", FAMILIES)
def test_direct_pushes_are_on_the_first_answer_token(name):
    model, prompts = tiny(name), [text_prompts((6, 9))[1], corrected(text_prompts((7,))[0])]
    with judge(model) as engine:
        for objective in ("logp_options", "logp_vocab"):
            equal(
                engine.direct(prompts, objective),
                each(prompts, lambda p: plain_texts.direct(model, p, objective)),  # noqa: B023
                1e-9,
            )
    (letters,) = random_prompts(1)
    with judge(model) as engine:
        equal(engine.direct([letters], "margin")[0], plain_texts.direct(model, letters, "margin"), 1e-9)


@pytest.mark.parametrize("objective", ["logp_vocab", "p_vocab"])
@pytest.mark.parametrize("name", ["llama", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_a_right_answer_alone(name, objective):
    model, prompts, ids = tiny(name), open_prompts(), [0, 17, 55]
    alphas, weights = quadrature("midpoint", 2)
    with judge(model) as engine:
        for positions in ("answer", "all"):
            found = engine.gradients(prompts, objective, positions=positions)
            equal(found, each(prompts, lambda p: plain_texts.gradients(model, p, objective, positions)))  # noqa: B023
        equal(
            engine.integrate(prompts, objective, alphas, weights),
            each(prompts, lambda p: plain_texts.integrate(model, p, objective, alphas.tolist(), weights.tolist())),
        )
        equal(
            engine.effects(prompts, objective, ids=torch.tensor(ids)),
            each(prompts, lambda p: plain_texts.effects(model, p, objective, ids)),
        )


def test_an_answer_alone_leaves_nothing_to_tell_apart():
    with judge(tiny("llama")) as engine:
        assert not engine.gradients(open_prompts(), "logp_options").any()


# ---- how the model answers ----


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_with_and_without_an_edit(name):
    model, prompts, ids = tiny(name), [*few_prompts(), *open_prompts()], list(range(0, 56, 4))
    ask = Asker(model, prompts)
    with DoublePrecision():
        clean = ask.logprobs()
        edited = {
            positions: ask.logprobs(Edit(torch.tensor(ids), torch.full((14,), 3.0), positions))
            for positions in ("answer", "all")
        }
    for n, prompt in enumerate(prompts):
        options = len(prompt.option_ids)
        assert torch.allclose(clean[n, :options].double(), plain_texts.answers(model, prompt), atol=2e-6)
        assert clean[n, options:].eq(float("-inf")).all()
        for positions, found in edited.items():
            expected = plain_texts.answers(model, prompt, ids, 3.0, positions)
            assert torch.allclose(found[n, :options].double(), expected, atol=2e-6), positions
    several = slice(len(prompts) - len(open_prompts()))
    for one, other in ((clean, edited["answer"]), (edited["answer"], edited["all"])):
        assert not torch.allclose(one[several], other[several], atol=1e-2)


# ---- letters are texts of one token ----


def test_one_token_in_words_is_a_letter_to_the_bit():
    model, letters = tiny("llama"), random_prompts(2)
    words, quarter = [in_words(prompt) for prompt in letters], quadrature("midpoint", 2)
    assert [prompt.form for prompt in letters + words] == ["letters"] * 2 + ["texts"] * 2
    with judge(model) as engine:
        for call in (
            lambda p: engine.gradients(p, "logp_options"),
            lambda p: engine.gradients(p, "p_vocab", positions="all", weight="sign"),
            lambda p: engine.gradients(p, "margin", rules="relp-detached"),
            lambda p: engine.option_gradients(p),
            lambda p: engine.integrate(p, "logp_vocab", *quarter),
            lambda p: engine.effects(p, "logp_options"),
            lambda p: engine.direct(p, "logp_options"),
            lambda p: engine.activations(p, "all"),
        ):
            assert torch.equal(call(words), call(letters))
    assert torch.equal(Asker(model, words).logprobs(), Asker(model, letters).logprobs())


def test_a_length_of_one_and_no_offset_change_nothing():
    model, prompts = tiny("llama"), text_prompts((6, 9))
    said = [
        Prompt(p.input_ids, p.option_ids, p.answer, lengths=[[1.0] * len(o) for o in p.option_ids],
               offsets=[[0.0] * len(o) for o in p.option_ids])
        for p in prompts
    ]  # fmt: skip
    with judge(model) as engine:
        for objective in OBJECTIVES:
            equal(engine.gradients(said, objective), engine.gradients(prompts, objective), 1e-12)


def test_scores_of_a_prompt_do_not_depend_on_its_company():
    model, prompts = tiny("qwen2"), mixed_prompts()
    with judge(model) as engine:
        for call in (
            lambda p: engine.integrate(p, "logp_options", *quadrature("midpoint", 2)),
            lambda p: engine.effects(p, "logp_options", ids=torch.arange(0, 56, 5)),
        ):
            assert torch.equal(call(prompts)[2:3], call(prompts[2:3]))


def test_a_prompt_with_its_longest_answer_must_fit_into_the_context():
    from tests.checks import refused

    model = tiny("llama", max_position_embeddings=16)
    fits = Prompt(random_tokens(11, 1), [[[17, 18, 19, 20, 21, 22]], [[5]]], 0)
    beyond = Prompt(random_tokens(12, 1), fits.option_ids, 0, question_id="long")
    with judge(model) as engine:
        assert engine.gradients([fits], "logp_options").isfinite().all()
        with refused("'long'", "with its longest answer", "17 tokens", "16"):
            engine.gradients([beyond], "logp_options")
