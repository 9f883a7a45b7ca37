"""The driver: what it hands on, what it chooses, what it refuses, and the model as it was before."""

from __future__ import annotations

import copy
import math
import os
import warnings

import pytest
import torch

import neuronllm as nl
from neuronllm.attribution.request import Request
from neuronllm.data.prompts import Prompt
from neuronllm.methods import METHODS, get_method
from tests.checks import Fuse, blow_after, lived_in, refused, untouched
from tests.tiny import random_prompts, tiny
from tests.tiny_tokenizers import byte_level

SHORT = {"ace": {"steps": 3}, "qrnca": {"steps": 3}, "knowledge": {"steps": 3}}
QUESTIONS = [
    nl.Question("Which is a colour?", ("red", "seven", "door"), answer=0, id="a"),
    nl.Question("Which is a number?", ("red", "seven"), answer=1, id="b"),
    nl.Question("Which one opens?", ("red", "seven", "door", "sky"), answer=2, id="c"),
]


def attribute(model, prompts, method="gradient", **keywords):
    keywords = {"positions": "answer", "progress": False, **SHORT.get(method, {}), **keywords}
    return nl.attribute(model, None, prompts, method, **keywords)


def logits(model, prompt) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([prompt.input_ids])).logits[0, -1].double()


def answered(model, prompt) -> int:
    scores = [torch.logsumexp(logits(model, prompt)[ids], 0) for ids in prompt.first_tokens]
    return int(torch.stack(scores).argmax())


def both_kinds(model, count: int = 6) -> list[Prompt]:
    """Prompts of which the model answers every second one right."""
    prompts = random_prompts(count)
    right = [answered(model, prompt) for prompt in prompts]
    answers = [at if n % 2 else (at + 1) % 3 for n, at in enumerate(right)]
    return [
        Prompt(p.input_ids, p.option_ids, answer, question_id=p.question_id)
        for p, answer in zip(prompts, answers, strict=True)
    ]


# ---- what comes out ----


@pytest.mark.parametrize("method", METHODS)
def test_keeping_every_prompt_changes_no_value(method):
    model = tiny("llama")
    prompts = both_kinds(model, 4)
    mean, all_ = (attribute(model, prompts, method, keep=keep) for keep in ("mean", "all"))
    for name in ("values", "stderr", "sign_consistency"):
        assert torch.equal(getattr(mean, name).nan_to_num(-7), getattr(all_, name).nan_to_num(-7))
    assert mean.per_prompt is None
    assert all_.per_prompt.shape == (4, 56) and all_.per_prompt.dtype == torch.float32
    assert mean.values.dtype == torch.float32 and mean.values.isfinite().all() and mean.values.abs().max() > 0
    for n, prompt in enumerate(prompts):  # every row is the prompt's own, in the order given
        if method != "contrast":
            alone = attribute(model, [prompt], method, keep="all").per_prompt[0]
            assert torch.equal(alone, all_.per_prompt[n])


def test_gradient_scores_equal_their_formula_written_out():
    """Mean over a question's variants first, then over questions; standard error and signs over questions."""
    model = tiny("llama")
    first, second, third = random_prompts(3)
    prompts = [
        Prompt(first.input_ids, first.option_ids, 0, question_id="x", order=(0, 1, 2)),
        Prompt(second.input_ids, second.option_ids, 2, question_id="x", order=(1, 2, 0)),
        Prompt(third.input_ids, third.option_ids, 1, question_id="y"),
    ]
    raw = []
    for prompt in prompts:
        seen = []

        def keep(module, args, seen=seen):
            h = args[0].detach().requires_grad_(True)
            seen.append(h)
            return (h,)

        # The first layer's h must stay in the graph of the second's, so each layer has a pass of its own.
        row = []
        for layer in model.model.layers:
            handle = layer.mlp.down_proj.register_forward_pre_hook(keep)
            options = model(torch.tensor([prompt.input_ids])).logits[0, -1]
            scores = torch.stack([options[ids].logsumexp(0) for ids in prompt.first_tokens])
            value = scores.log_softmax(0)[prompt.answer]
            (gradient,) = torch.autograd.grad(value, seen[-1])
            row.append((seen[-1] * gradient)[0, -1].detach())
            handle.remove()
        raw.append(torch.cat(row))
    by_question = torch.stack([(raw[0] + raw[1]) / 2, raw[2]])
    scores = attribute(model, prompts, dtype=torch.float64, keep="all")
    assert torch.allclose(scores.per_prompt.double(), torch.stack(raw), rtol=1e-5, atol=1e-7)
    assert torch.allclose(scores.values.double(), by_question.mean(0), rtol=1e-5, atol=1e-7)
    assert torch.allclose(scores.stderr.double(), by_question.std(0) / math.sqrt(2), rtol=1e-5, atol=1e-7)
    agree = (by_question.sign() == by_question.mean(0).sign()).double().mean(0)
    assert torch.allclose(scores.sign_consistency.double(), agree)


def test_a_type_may_be_named():
    model, prompts = tiny("llama", torch.bfloat16), random_prompts(2)
    given = {"progress": False, "backend": "reference"}
    kept = [
        nl.attribute(model, None, prompts, keep="all", dtype=dtype, keep_dtype=keep_dtype, **given)
        for dtype, keep_dtype in (("float64", "bfloat16"), (torch.float64, torch.bfloat16))
    ]
    for part in ("values", "per_prompt"):
        named, right = (getattr(scores, part) for scores in kept)
        assert named.dtype == right.dtype and torch.equal(named, right)
    assert kept[0].per_prompt.dtype == torch.bfloat16 and kept[0].provenance == kept[1].provenance
    for call in (nl.pushes, nl.letter_neurons, nl.activations):
        named, right = (call(model, None, prompts, dtype=dtype, **given) for dtype in ("float64", torch.float64))
        if call is nl.letter_neurons:
            named, right = named.push, right.push
        assert torch.equal(named, right)
    assert Request.of(dtype="float64").checked().dtype == torch.float64


@pytest.mark.parametrize("items", ["wrong", "right"])
def test_items_are_those_of_a_plain_computation(items):
    model = tiny("llama")
    prompts = both_kinds(model)
    chosen = [p for p in prompts if (answered(model, p) == p.answer) == (items == "right")]
    assert len(chosen) == 3
    scores = attribute(model, prompts, items=items, keep="all")
    assert torch.equal(scores.values, attribute(model, chosen).values)
    assert len(scores.per_prompt) == 3
    assert scores.provenance["items"] == items and scores.provenance["questions"] == 3


def test_items_judge_a_question_over_its_variants():
    """The mean probability of each CHOICE over the orders decides, not the letters and not one lucky variant."""
    model = tiny("llama")
    prompts, orders = random_prompts(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    mean = torch.zeros(3, dtype=torch.float64)
    for prompt, order in zip(prompts, orders, strict=True):
        seen = logits(model, prompt)
        options = torch.stack([seen[ids].logsumexp(0) for ids in prompt.first_tokens]).softmax(0)
        for shown, choice in enumerate(order):
            mean[choice] += options[shown] / 3
    best = int(mean.argmax())
    for answer in range(3):
        variants = [
            Prompt(p.input_ids, p.option_ids, order.index(answer), question_id="q", order=order)
            for p, order in zip(prompts, orders, strict=True)
        ]
        right = "right" if answer == best else "wrong"
        assert attribute(model, variants, items=right).provenance["prompts"] == 3
        with refused(f'items="{"wrong" if right == "right" else "right"}"', "none of the 1 questions"):
            attribute(model, variants, items="wrong" if right == "right" else "right")


def test_float64_is_asked_of_a_copy():
    model = tiny("llama", torch.float32)
    prompts = random_prompts(2)
    with untouched(model):
        wide = attribute(model, prompts, "exact", dtype=torch.float64, keep="all")
    reference = attribute(copy.deepcopy(model).double(), prompts, "exact", dtype=torch.float64, keep="all")
    narrow = attribute(model, prompts, "exact", keep="all")
    assert torch.equal(wide.per_prompt, reference.per_prompt)
    assert not torch.equal(wide.per_prompt, narrow.per_prompt)
    assert torch.allclose(wide.per_prompt, narrow.per_prompt, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_bfloat16_model_runs(method):
    model = tiny("llama", torch.bfloat16)
    with untouched(model):
        scores = attribute(model, both_kinds(model, 4), method)
    assert scores.values.dtype == torch.float32 and scores.values.isfinite().all()
    assert scores.provenance["dtype"] == "bfloat16"


def test_questions_are_rendered_by_the_methods_defaults(tmp_path):
    tokenizer = byte_level()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=512)
    tokenizer.padding_side, tokenizer.pad_token = "left", "<eos>"
    kept = (tokenizer.padding_side, len(tokenizer), tokenizer.backend_tokenizer.to_str())
    scores = nl.attribute(model, tokenizer, QUESTIONS, "gradient", positions="answer", progress=False, keep="all")
    assert (tokenizer.padding_side, len(tokenizer), tokenizer.backend_tokenizer.to_str()) == kept
    by_hand = nl.render(tokenizer, QUESTIONS, orders="rotate", template="default")
    assert len(scores.per_prompt) == 3 + 2 + 4 == len(by_hand)
    assert torch.equal(scores.per_prompt, attribute(model, by_hand, keep="all").per_prompt)
    assert scores.provenance["orders"] == "rotate" and scores.provenance["questions"] == 3
    assert len(scores.provenance["template_hash"]) == len(scores.provenance["question_fingerprint"]) == 64
    single = nl.attribute(
        model,
        tokenizer,
        QUESTIONS,
        "gradient",
        positions="answer",
        orders="none",
        template="plain",
        progress=False,
        keep="all",
    )
    assert len(single.per_prompt) == 3
    assert attribute(model, by_hand).provenance["orders"] is None  # nothing was rendered here
    three = nl.attribute(model, tokenizer, QUESTIONS[:2], "qrnca", steps=1, progress=False, keep="all")
    assert len(three.per_prompt) == 2 * 3  # three templates, one order


def test_output_is_a_folder_to_load(tmp_path):
    model = tiny("llama")
    with untouched(model):
        scores = attribute(model, random_prompts(2), output=tmp_path / "new" / "scores")
    again = nl.Scores.load(tmp_path / "new" / "scores")
    assert torch.equal(again.values, scores.values) and again.provenance == scores.provenance
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    blow_after(model, 0)  # the refusal comes before any work
    with refused("full", "not empty"):
        attribute(model, random_prompts(2), output=tmp_path / "full")
    assert os.listdir(tmp_path / "full") == ["mine.txt"]


def test_nothing_is_written_when_scoring_fails(tmp_path):
    model = tiny("llama")
    blow_after(model, 1)
    with pytest.raises(Fuse):
        attribute(model, random_prompts(2), output=tmp_path / "scores")
    assert os.listdir(tmp_path) == []


# ---- the model as it was ----


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_use_is_left_as_it_was(method):
    model = lived_in(tiny("llama"))
    prompts = both_kinds(copy.deepcopy(model).eval(), 2)
    with untouched(model):
        attribute(model, prompts, method, items="all")
    with untouched(model):
        attribute(model, prompts, method, items="right") if method != "contrast" else None
    plain = tiny("llama")
    plain.set_attn_implementation("eager")
    assert torch.equal(attribute(plain, prompts, method).values, attribute(model, prompts, method).values)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "random"])
@pytest.mark.parametrize("calls", [0, 1])
def test_a_model_that_fails_in_the_middle_is_left_as_it_was(method, calls):
    model = lived_in(tiny("llama"))
    blow_after(model, calls)
    options = {"attention": "detached"} if method == "relp" else {}
    with untouched(model), pytest.raises(Fuse):
        attribute(model, random_prompts(3), method, **options)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_callers_gradient_mode_does_not_matter(mode):
    model, prompts = tiny("llama"), random_prompts(2)
    expected = attribute(model, prompts).values
    with mode(), untouched(model):
        assert torch.equal(attribute(model, prompts).values, expected)


def test_an_edit_around_it_is_part_of_the_model():
    """What is silenced already has no effect left, and the other scores are those of the edited model."""
    model, prompts = tiny("llama"), random_prompts(2)
    with nl.edit(model, [3, 40], [0.0, 2.0]):
        inside = attribute(model, prompts, "exact").values
    assert inside[3].abs() < 1e-12
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 3] = 0
        model.model.layers[1].mlp.down_proj.weight[:, 12] *= 2
    assert torch.allclose(inside, attribute(model, prompts, "exact").values, atol=1e-9)


# ---- refusals ----

BAD = [
    ({"method": "magic"}, ["method='magic'", "ace", "qrnca", "random"]),
    ({"method": "ace", "stepz": 3}, ["'stepz'", "steps, quadrature, mask, tau, z"]),
    ({"method": "gradient", "steps": 3}, ["'steps'", "it has no options"]),
    ({"method": "ace", "steps": 0}, ["steps=0"]),
    ({"method": "ace", "tau": 2}, ["tau=2"]),
    ({"method": "ace", "mask": "all"}, ["mask='all'", "consistent, ambiguous, none"]),
    ({"method": "ace", "positions": "all"}, ["positions='all'", "'ace'", "'answer'"]),
    ({"method": "exact", "positions": "last"}, ["positions='last'", "'exact'", "'answer' or 'all'"]),
    ({"positions": "last"}, ["positions='last'", "'answer' or 'all'"]),
    ({"method": "activation", "objective": "p_vocab"}, ["objective='p_vocab'", "no objective"]),
    ({"objective": "loss"}, ["objective='loss'", "logp_options, p_options, margin"]),
    ({"items": "hard"}, ["items='hard'", "all, wrong, right"]),
    ({"keep": "none"}, ["keep='none'", "mean, topk, all"]),
    ({"backend": "cuda"}, ["backend='cuda'", "fast, reference"]),
    *(({"batch_size": size}, ["batch_size=", "positive whole number"]) for size in (0, -1, 1.5, "big", True, None)),
    ({"questions": []}, ["list is empty"]),
    ({"questions": iter(QUESTIONS)}, ["questions", "give a list"]),
    ({"questions": random_prompts(1)[0]}, ["questions", "give a list", "Prompt"]),
    ({"dtype": "float65"}, ["dtype='float65'", '"float64"']),
    ({"dtype": "Tensor"}, ["dtype='Tensor'", '"float64"']),
    ({"dtype": torch.int8}, ["dtype=torch.int8"]),
    ({"keep_dtype": "float64"}, ["keep_dtype=torch.float64", "float32 or bfloat16"]),
    ({"questions": [QUESTIONS[0], *random_prompts(1)]}, ["mixture"]),
    ({"questions": ["What?"]}, ["Question"]),
    ({"questions": QUESTIONS}, ["tokenizer=None"]),
    ({"questions": random_prompts(1, length=97)}, ["'q0'", "97 tokens", "context of 96"]),
    ({"questions": [Prompt([3, 60], [[1], [2]], 0)]}, ["token id 60", "vocabulary of 60"]),
    ({"questions": [Prompt([3], [[1], [75]], 0, question_id="x")]}, ["'x'", "token id 75"]),
]


@pytest.mark.parametrize(("arguments", "parts"), BAD)
def test_bad_input_is_one_line_and_changes_nothing(arguments, parts, tmp_path):
    model = tiny("llama")
    prompts = arguments.get("questions", random_prompts(2))
    keywords = {key: value for key, value in arguments.items() if key != "questions"}
    keywords = {"method": "gradient", **keywords}
    with untouched(model), refused(*parts):
        nl.attribute(model, None, prompts, progress=False, output=tmp_path / "out", **keywords)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("method", [m for m in METHODS if m != "random"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_weights_are_named(method, value):
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = value
    with untouched(model), refused("model.layers.1.mlp.up_proj.weight", "NaN or infinite"):
        attribute(model, random_prompts(2), method)


def test_contrast_needs_both_kinds_of_answers():
    model = tiny("llama")
    prompts = [p for p in both_kinds(model) if answered(model, p) == p.answer]
    with untouched(model), refused("contrast", "answered right"):
        attribute(model, prompts, "contrast")


def test_qrnca_warns_where_no_question_counts():
    """Every question's scores sum to less than nothing, so none adds to the score of a neuron."""
    collector = get_method("qrnca").collector(4)
    for _ in range(3):
        collector.add(torch.tensor([[1.0, -2.0, 0.5, -1.0]]))
    with pytest.warns(UserWarning, match="qrnca scores nothing.*give more questions"):
        assert not collector.values().any()
    collector.add(torch.tensor([[3.0, -2.0, 0.5, -1.0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert collector.values().any()


def test_qrnca_of_one_question_is_warned_of(recwarn):
    """Its only cluster is shared by all questions there are."""
    model, prompts = tiny("llama"), random_prompts(2)
    with pytest.warns(UserWarning, match="qrnca of one question scores nothing.*give more") as caught:
        scores = nl.attribute(model, None, prompts[:1], "qrnca", steps=2, progress=False)
    assert caught[0].filename == __file__ and not scores.values.any() and "\n" not in str(caught[0].message)
    recwarn.clear()
    attribute(model, prompts, "qrnca")
    attribute(model, prompts[:1], "qrnca", compat="released-code")
    assert not list(recwarn)


@pytest.mark.parametrize("method", METHODS)
def test_positions_left_alone_are_the_methods_own(method):
    model, prompts = tiny("llama"), both_kinds(tiny("llama"), 4)
    own = nl.attribute(model, None, prompts, method, progress=False, **SHORT.get(method, {}))
    everywhere = "all" in METHODS[method].positions and method != "exact"  # which takes many times as long there
    positions = "all" if everywhere else "answer"
    assert own.provenance["positions"] == positions
    assert torch.equal(own.values, attribute(model, prompts, method, positions=positions).values)


def test_left_alone_it_is_the_gradient_at_all_positions():
    model, prompts = tiny("llama"), random_prompts(2)
    scores = nl.attribute(model, None, prompts, progress=False)
    assert scores.provenance["method"] == "gradient" and scores.provenance["positions"] == "all"
    assert torch.equal(scores.values, attribute(model, prompts, "gradient", positions="all").values)
    assert nl.dry_run(model, None, prompts) == nl.dry_run(model, None, prompts, "gradient", positions="all")


def test_post_norms_are_warned_of():
    with pytest.warns(UserWarning, match="Gemma2ForCausalLM normalises .*gradient") as caught:
        attribute(tiny("gemma2"), random_prompts(1), "ace")
    assert caught[0].filename == __file__
