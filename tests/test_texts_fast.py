"""The fast engine against the judge on answers of several tokens: every family, verb and company."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from neuronllm.data.prompts import Prompt
from neuronllm.engine.asking import Asker, Edit
from neuronllm.engine.batching import Plan
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.objectives import OBJECTIVES
from neuronllm.engine.quadrature import quadrature
from neuronllm.engine.reference import ReferenceEngine
from tests import plain_texts
from tests.checks import quiz, untouched
from tests.test_batches import family
from tests.test_fast import CALLS, EXPLAINED, OUT_OF_REACH, REACHED, differences, median_error
from tests.texts import (
    corrected,
    few_prompts,
    in_words,
    mixed_prompts,
    open_prompts,
    random_tokens,
    text_prompts,
    with_texts,
)
from tests.tiny import EXPERTS, in_time, random_prompts, tiny

QUICK = ["llama", "gemma2", "mixtral"]
# Every attention, block and router of a kind; all families are in the first tests.
KINDS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "mistral", "qwen2_moe", "gpt_oss"))]
FAMILIES = in_time(REACHED, ("llama", "mixtral"))
WINDOWED = [
    "mistral",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "gemma3_text", "gpt_oss")),
]  # their window is of 8 tokens
FIRST_ORDER, EXACT = 1e-5, 1e-4  # what company may change in float32
LIMITS = {
    "integrate": FIRST_ORDER,
    "integrate to a tolerance": FIRST_ORDER,
    "gradient": FIRST_ORDER,
    "gradient everywhere": FIRST_ORDER,
    "relp everywhere": FIRST_ORDER,
    "options": FIRST_ORDER,
    "activations": FIRST_ORDER,
    "effects": EXACT,
}


# ---- every family ----


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_judge_in_float64(name):
    check_equality(tiny(name), few_prompts())


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_mixed_batch_equals_the_judge(name):
    check_equality(tiny(name), mixed_prompts())


def check_equality(model: Any, prompts: list[Prompt]) -> None:
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        for label, call in CALLS.items():
            assert differences(call(fast, prompts), call(judge, prompts)) <= 1e-9, label


@pytest.mark.parametrize("name", in_time(REACHED))
def test_equals_the_judge_in_float32(name):
    model, prompts = tiny(name, torch.float32), few_prompts()
    with FastEngine(model) as fast, ReferenceEngine(model) as judge:
        assert fast.unusable(prompts) is None
        for label in ("integrate", "gradient", "gradient everywhere", "effects"):
            assert differences(CALLS[label](fast, prompts), CALLS[label](judge, prompts)) <= 1e-4, label


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_equals_the_judge_for_every_objective(name):
    """`CALLS` has every objective once; here every verb has all of them."""
    model, prompts = tiny(name), few_prompts()[1:]
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        for objective in OBJECTIVES:
            for label, call in EXPLAINED.items():
                distance = differences(call(fast, prompts, objective), call(judge, prompts, objective))
                assert distance <= 1e-9, (label, objective)


@pytest.mark.parametrize("name", in_time(["llama", "gemma2", "phi", "olmoe"], stand_ins=["llama", "olmoe"]))
def test_is_no_worse_than_the_judge_in_bfloat16(name):
    """The error budget of letters (`tests/test_fast.py`), of the median of more prompts.

    Whether an h near 0, a gate or a tie of the router turns over is chance, and a text has several tokens for it.
    """
    model = tiny(name, torch.bfloat16)
    prompts = [p for n in range(6) for p in text_prompts((5 + n, 6, 7, 14 + n)) if p.question_id in ("t0", "t3")]
    prompts = [replace(p, input_ids=random_tokens(len(p.input_ids), n)) for n, p in enumerate(prompts)]
    calls = {label: call for label, call in CALLS.items() if "effects" not in label}
    with ReferenceEngine(model, dtype=torch.float64) as truth:
        true = {label: call(truth, prompts) for label, call in calls.items()}
    with ReferenceEngine(model) as judge:
        budget = {label: 2 * median_error(call(judge, prompts), true[label]) + 2e-3 for label, call in calls.items()}
    with FastEngine(model) as fast:
        assert fast.unusable(prompts) is None
        for label, call in calls.items():
            assert median_error(call(fast, prompts), true[label]) <= budget[label], label


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2"])
def test_exact_effects_of_a_16_bit_model_are_those_of_its_weights_in_float32(name, dtype):
    model, prompts = tiny(name, dtype), text_prompts((6, 14))
    with FastEngine(model, dtype=torch.float32) as engine:
        assert engine.unusable(prompts) is None
        truth = engine.effects(prompts, "logp_options")
    with untouched(model), FastEngine(model) as engine:
        assert engine.unusable(prompts) is None
        assert differences(engine.effects(prompts, "logp_options"), truth) <= 1e-3
        assert 0 < engine.plan.noise < 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_a_right_answer_alone_equals_the_judge(name):
    model, prompts = tiny(name), open_prompts()
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        for label, call in EXPLAINED.items():
            for objective in ("logp_vocab", "p_vocab"):
                distance = differences(call(fast, prompts, objective), call(judge, prompts, objective))
                assert distance <= 1e-9, (label, objective)


@pytest.mark.parametrize("name", ["llama", pytest.param("mixtral", marks=pytest.mark.slow)])
@pytest.mark.parametrize("label", CALLS)
def test_one_prompt_alone_equals_the_judge(name, label):
    model = tiny(name)
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        for prompt in (text_prompts((9, 12))[1], corrected(text_prompts((6,))[0])):
            assert fast.unusable([prompt]) is None
            assert differences(CALLS[label](fast, [prompt]), CALLS[label](judge, [prompt])) <= 1e-9


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_shorter_than_the_prompt_and_inside_an_answer(name):
    """Prompts end before, at and behind the window of 8, so that it slides while an answer is read."""
    model, prompts = tiny(name), [corrected(p) if n % 2 else p for n, p in enumerate(text_prompts((20, 9, 7, 8)))]
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        for label in ("integrate", "gradient", "gradient everywhere", "effects", "activations everywhere"):
            assert differences(CALLS[label](fast, prompts), CALLS[label](judge, prompts)) <= 1e-9, label


# ---- company ----


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_does_not_depend_on_its_batch(name):
    """Alone, in a ragged batch without sharing, and with root and stems shared."""
    model, prompts = tiny(name, torch.float32), with_texts(family())
    order = list(range(0, 7, 2)) + list(range(1, 7, 2))
    backwards = [prompts[n] for n in order]  # no two variants of a question beside each other
    with FastEngine(model) as shared, FastEngine(model, batch_size=1) as alone, FastEngine(model) as ragged:
        assert shared.unusable(prompts) is None
        for label, limit in LIMITS.items():
            together = CALLS[label](shared, prompts)
            apart = [CALLS[label](alone, [prompt]) for prompt in prompts]
            mixed = torch.empty_like(together).index_copy_(0, torch.tensor(order), CALLS[label](ragged, backwards))
            for n, single in enumerate(apart):  # options of the batch that the prompt does not have are 0
                width = single.shape[1]
                assert differences(together[n : n + 1, :width], single) <= limit, label
                assert differences(mixed[n : n + 1, :width], single) <= limit, label
                assert not together[n, width:].any()


def test_prompts_that_share_how_they_begin_equal_the_judge():
    check_equality(tiny("llama"), with_texts(family())[1:6:2])


def test_prompts_that_are_parts_of_each_other_equal_the_judge():
    """A prompt that begins another one, and one that goes on as an option of another one does."""
    model, (short, other) = tiny("llama"), text_prompts((9, 9))
    begun = [
        short,
        Prompt(short.input_ids + [10, 11, 30], other.option_ids, 0),
        Prompt(short.input_ids[:6], short.option_ids, 2),
    ]
    check_equality(model, begun)


@pytest.mark.parametrize("size", [1, 2])
def test_batch_size_changes_nothing_beyond_rounding(size):
    model, prompts = tiny("mistral"), mixed_prompts()
    with FastEngine(model, batch_size=size) as small, FastEngine(model) as large:
        assert small.unusable(prompts) is None and large.unusable(prompts) is None
        for label in LIMITS:
            assert differences(CALLS[label](small, prompts), CALLS[label](large, prompts)) <= 1e-12, label


@pytest.mark.parametrize("name", ["llama", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_many_rows_are_cut_into_passes(name):
    """Passes of few answer tokens: the cuts fall inside sites, between spans and across them."""
    model, prompts = tiny(name), mixed_prompts()[:3]
    with FastEngine(model, dtype=torch.float64) as engine:
        assert engine.unusable(prompts) is None
        whole = {label: CALLS[label](engine, prompts) for label in LIMITS}
    for tokens in (1, 20):
        plan = Plan(prompts=2, answer_tokens=tokens, window=2)
        with FastEngine(model, dtype=torch.float64, plan=plan) as small:
            for label, expected in whole.items():
                assert differences(CALLS[label](small, prompts), expected) <= 1e-12, (label, tokens)


# ---- letters ----


def test_one_token_in_words_is_a_letter_to_the_bit():
    for name in ("llama", "mixtral"):
        model, letters = tiny(name, torch.float32), quiz(4)
        words = [in_words(prompt) for prompt in letters]
        with FastEngine(model) as fast, FastEngine(model) as again:
            assert fast.unusable(letters) is None and again.unusable(words) is None
            for label, call in CALLS.items():
                assert torch.equal(call(again, words), call(fast, letters)), label
        assert torch.equal(Asker(model, words).logprobs(), Asker(model, letters).logprobs())


def test_letters_beside_texts_keep_their_scores():
    model, letters, words = tiny("llama"), random_prompts(2), text_prompts()
    with FastEngine(model) as fast:
        assert fast.unusable(letters + words) is None
        for label, call in CALLS.items():
            if label != "options":  # raw scores of letters: their shape is that of the batch
                found = call(fast, [words[0], letters[0], *words[1:], letters[1]])[[1, 5]]
                assert differences(found, call(fast, letters)) <= 1e-12, label


# ---- how the model answers ----


@pytest.mark.parametrize("name", KINDS)
def test_answers_do_not_depend_on_the_batch(name):
    model, prompts = tiny(name, torch.float32), [*with_texts(family()), *mixed_prompts(), *open_prompts()]
    ids = torch.arange(0, 56, 5)
    for change in (None, *(Edit(ids, torch.full((len(ids),), 2.0), where) for where in ("answer", "all"))):
        together = Asker(model, prompts).logprobs(change)
        for n, prompt in enumerate(prompts):
            alone = Asker(model, [prompt], batch_size=1).logprobs(change)[0]
            assert torch.allclose(together[n, : len(alone)], alone, atol=1e-4)
            assert together[n, len(alone) :].eq(float("-inf")).all()


def test_answers_through_the_tree_are_those_of_whole_forwards():
    for name in ("llama", "gemma2", "mixtral"):
        model, prompts = tiny(name), with_texts(family())
        edits = [Edit(torch.arange(0, 56, 3), torch.full((19,), 0.0), where) for where in ("answer", "all")]
        for change in (None, *edits):
            ask, plain = Asker(model, prompts), Asker(model, prompts)
            plain.worth_sharing = False
            assert ask.worth_sharing
            assert torch.allclose(ask.logprobs(change), plain.logprobs(change), atol=1e-5)


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_answers_of_models_that_are_asked_in_whole_forwards(name):
    model, prompts = tiny(name, torch.float32), [*with_texts(family()), *mixed_prompts()]
    for some in (prompts, prompts[:1]):
        found = Asker(model, some).logprobs()
        for n, prompt in enumerate(some):
            with torch.no_grad():
                expected = plain_texts.read(prompt, [logits_alone(model, one.ids) for one in plain_texts.asked(prompt)])
            assert torch.allclose(found[n, : len(expected)], expected.log_softmax(0), atol=1e-4)


def logits_alone(model: Any, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def test_the_model_is_left_as_it_was():
    for name in ("llama", *EXPERTS[:1]):
        model, prompts = tiny(name, torch.float32), mixed_prompts()
        with untouched(model), FastEngine(model) as fast:
            assert fast.unusable(prompts) is None
        with untouched(model):
            with FastEngine(model) as fast:
                for call in CALLS.values():
                    call(fast, prompts)
            Asker(model, prompts).logprobs(Edit(torch.tensor([3]), torch.tensor([0.0]), "answer"))


def test_integrals_with_points_at_the_ends_equal_the_judge():
    model, prompts = tiny("llama"), mixed_prompts()
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        for rule in ("endpoints", "right"):
            call = lambda e, rule=rule: e.integrate(prompts, "p_vocab", *quadrature(rule, 3))  # noqa: E731
            assert differences(call(fast), call(judge)) <= 1e-9
