"""Batched writing against `model.generate` called here for one prompt after the other, with hooks of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from neuronllm.engine.asking import Edit
from neuronllm.engine.writing import Sampled, Writer, _Rows
from neuronllm.model.anatomy import Anatomy
from tests.checks import Fuse, blow_after, lived_in, refused, untouched
from tests.tiny import DENSE, EXPERTS, STAND_INS, VOCABULARY, in_time
from tests.tiny import tiny as tiny_of
from tests.tiny_tokenizers import numbered

NEW = 12
FACTORS = {3: 5.0, 11: -3.0, 20: 0.0, 30: 4.0, 39: -4.0, 50: 6.0}
IDS, VALUES = torch.tensor(list(FACTORS)), torch.tensor(list(FACTORS.values()), dtype=torch.float64)


def prompts_of(count: int = 9, seed: int = 2) -> list[Prompt]:
    """Prompts of unlike lengths, in no order."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 24, (count,), generator=generator).tolist()
    rows = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [Prompt(ids, [[3], [4]], 0, question_id=f"q{n}") for n, ids in enumerate(rows)]


@contextmanager
def by_hand(model: Any, prompt: int, positions: str | None) -> Iterator[None]:
    """The edit of FACTORS in a tiny Llama, by hooks that know how long the only prompt is."""

    def hook(layer: int) -> Any:
        def scale(module: Any, args: Any) -> Any:
            h = args[0].clone()
            last = -1 if positions == "answer" and h.shape[1] == prompt else 0
            for neuron, factor in FACTORS.items():
                if neuron // 28 == layer:
                    h[:, last:, neuron % 28] *= factor
            return (h,)

        return scale

    layers = model.model.layers if positions else []
    handles = [layer.mlp.down_proj.register_forward_pre_hook(hook(n)) for n, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def one_by_one(model: Any, tokenizer: Any, prompts: list[Prompt], positions: str | None = None) -> list[str]:
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt.input_ids])
        with by_hand(model, len(prompt.input_ids), positions), torch.no_grad():
            out = model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=2, pad_token_id=0)
        lines = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).split("\n")
        texts.append(next((line.strip() for line in lines if line.strip()), ""))
    return texts


def tiny(name: str) -> Any:
    return tiny_of(name, torch.float32)  # float64 is never padded


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return numbered(VOCABULARY)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama")


@pytest.mark.parametrize("positions", [None, "answer", "all"])
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_batches_write_what_single_prompts_do(model, tokenizer, positions, batch_size):
    prompts = prompts_of()
    expected = one_by_one(model, tokenizer, prompts, positions)
    change = Edit(IDS, VALUES, positions) if positions else None
    write = Writer(model, tokenizer, prompts, NEW, batch_size)
    with untouched(model):
        assert write(change) == expected
    assert write(change) == expected
    lengths = [len(text.split()) for text in expected]
    assert min(lengths) < NEW == max(lengths)  # some rows stop early, others never


def test_edits_change_what_is_written(model, tokenizer):
    prompts = prompts_of()
    write = Writer(model, tokenizer, prompts, NEW)
    texts = [write(change) for change in (None, Edit(IDS, VALUES, "answer"), Edit(IDS, VALUES, "all"))]
    assert texts[0] != texts[1] != texts[2] != texts[0]


@pytest.mark.parametrize("name", in_time(DENSE + EXPERTS, STAND_INS))
def test_company_changes_nothing_in_any_family(name, tokenizer):
    model, prompts = tiny(name), prompts_of(5)
    plain = one_by_one(model, tokenizer, prompts)
    assert Writer(model, tokenizer, prompts, NEW)() == plain
    ids = torch.arange(0, Anatomy.of(model).n_neurons, 3)
    for positions in ("answer", "all"):
        with nl.edit(model, ids, -2.0, positions=positions):
            edited = one_by_one(model, tokenizer, prompts)
        assert Writer(model, tokenizer, prompts, NEW)(Edit(ids, torch.tensor(-2.0), positions)) == edited != plain


def begin_alike(count: int = 6, root: int = 20) -> list[Prompt]:
    """The same, each behind the same tokens; one prompt is longer than these by more than they are long."""
    prompts = prompts_of(count)
    start = torch.randint(3, VOCABULARY, (root,), generator=torch.Generator().manual_seed(7)).tolist()
    rows = [[*start, *prompt.input_ids] for prompt in prompts] + [[*start, *start, *start[::-1]]]
    return [Prompt(ids, [[3], [4]], 0, question_id=f"q{n}") for n, ids in enumerate(rows)]


@pytest.mark.parametrize("name", in_time(DENSE + EXPERTS, ("gpt2", "mixtral")))
def test_what_all_prompts_start_with_is_computed_once(name, tokenizer):
    model, prompts, widths = tiny(name), begin_alike(), []
    ids = torch.arange(0, Anatomy.of(model).n_neurons, 3)
    expected = [one_by_one(model, tokenizer, prompts)]
    for positions in ("answer", "all"):
        with nl.edit(model, ids, -2.0, positions=positions):
            expected.append(one_by_one(model, tokenizer, prompts))
    changes = [None, *(Edit(ids, torch.tensor(-2.0), positions) for positions in ("answer", "all"))]
    with untouched(model):
        read = lambda module, given, out: widths.append(tuple(given[0].shape))  # noqa: E731
        handle = model.get_input_embeddings().register_forward_hook(read)
        try:
            for batch_size in (2, "auto"):
                write = Writer(model, tokenizer, prompts, NEW, batch_size)
                assert [write(change) for change in changes] == expected
        finally:
            handle.remove()
    assert expected[0] != expected[1] != expected[2]
    if name == "lfm2":  # a convolution keeps more than keys and values
        assert max(columns for _, columns in widths) == 60
    else:
        assert widths.count((1, 20)) == 6 and max(columns for _, columns in widths) == 40


@pytest.mark.parametrize(
    "model",
    [
        tiny_of("bloom"),
        tiny_of("gemma2"),
        tiny_of("llama", torch.float32, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    ],
    ids=["float64 bloom", "float64 gemma2", "dynamic"],
)
def test_where_padding_would_be_seen_there_is_none(model, tokenizer):
    prompts, masks = [prompt for prompt in prompts_of(6) for _ in range(2)], []
    model.register_forward_pre_hook(lambda m, a, k: masks.append(k.get("attention_mask")), with_kwargs=True)
    assert Writer(model, tokenizer, prompts, NEW)() == one_by_one(model, tokenizer, prompts)
    assert all(mask is None or bool(mask.bool().any(-1).all()) for mask in masks)


def test_the_users_generation_config_has_no_say_and_stays(tokenizer):
    model = tiny("llama")
    expected = one_by_one(model, tokenizer, prompts_of())
    theirs = GenerationConfig(
        num_beams=3, do_sample=True, repetition_penalty=9.0, min_new_tokens=9, eos_token_id=[2], max_length=7
    )
    model.generation_config = theirs
    before = theirs.to_dict()
    side = tokenizer.padding_side = "right"
    with untouched(model):
        assert Writer(model, tokenizer, prompts_of(), NEW)() == expected
    assert model.generation_config is theirs and theirs.to_dict() == before and tokenizer.padding_side == side


def test_every_token_that_ends_a_text_ends_it(tokenizer):
    model, prompts = tiny("llama"), prompts_of()
    plain = one_by_one(model, tokenizer, prompts)
    some = next(text for text in plain if len(text.split()) > 3).split()[2]
    model.generation_config.eos_token_id = [2, int(some[1:])]
    expected = []
    for text in plain:
        words = text.split()
        expected.append(" ".join(words[: words.index(some)] if some in words else words))
    assert Writer(model, tokenizer, prompts, NEW)() == expected != plain


def test_another_stop_and_none(model, tokenizer):
    prompts = prompts_of()
    whole = Writer(model, tokenizer, prompts, NEW, stop=None)()
    assert any("\n" in text for text in whole)
    word = next(text for text in whole if len(text.split()) > 3).split()[2]
    for text, first in zip(whole, Writer(model, tokenizer, prompts, NEW, stop=word)(), strict=True):
        assert first == next((part.strip() for part in text.split(word) if part.strip()), "")


def test_a_model_in_use_is_left_as_it_was(tokenizer):
    model = lived_in(tiny("llama"))
    theirs = model.generation_config
    plain = tiny("llama")
    for change in (None, Edit(IDS, VALUES, "answer"), Edit(IDS, VALUES, "all")):
        with untouched(model):
            assert Writer(model, tokenizer, prompts_of(), NEW)(change) == Writer(plain, tokenizer, prompts_of(), NEW)(
                change
            )
        for calls in (0, 3):
            broken = lived_in(tiny("llama"))
            theirs = broken.generation_config
            blow_after(broken, calls)
            with untouched(broken), pytest.raises(Fuse):
                Writer(broken, tokenizer, prompts_of(), NEW, 4)(change)
            assert broken.generation_config is theirs


def test_out_of_memory_means_smaller_batches(tokenizer):
    model, prompts, sizes = tiny("llama"), prompts_of(), []
    expected = one_by_one(model, tokenizer, prompts)
    generate = model.generate

    def short_of_memory(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no memory")
        return generate(*args, **kwargs)

    model.generate = short_of_memory
    assert Writer(model, tokenizer, prompts, NEW, 8)() == expected
    assert max(sizes) > 2 and sizes[-1] <= 2


def test_logprobs_are_those_of_the_tokens(model):
    tokenizer = numbered(VOCABULARY)
    prompts = prompts_of()
    for sampled in (None, Sampled(0.7, seed=4), Sampled(3.0)):
        for prompt, written in zip(prompts, Writer(model, tokenizer, prompts, NEW).written(None, sampled), strict=True):
            words = written.text.split()
            ids = [*prompt.input_ids, *(int(word[1:]) for word in words)]
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            first = len(prompt.input_ids) - 1
            total = sum(float(logprobs[first + n, ids[first + n + 1]]) for n in range(len(words)))
            if len(words) == NEW:
                assert written.logprob == pytest.approx(total, abs=1e-5)
            else:  # an end or a line break before it or behind it is counted too
                assert written.logprob < total


def test_draws_depend_on_prompt_seed_and_number_alone(model, tokenizer):
    prompts = prompts_of()
    drawn = Writer(model, tokenizer, prompts, NEW)(None, Sampled(seed=1))
    with untouched(model):
        assert Writer(model, tokenizer, prompts, NEW, 2)(None, Sampled(seed=1)) == drawn
    assert Writer(model, tokenizer, prompts[::-1], NEW)(None, Sampled(seed=1)) == drawn[::-1]
    assert Writer(model, tokenizer, prompts[4:5], NEW)(None, Sampled(seed=1)) == drawn[4:5]
    write = Writer(model, tokenizer, prompts, NEW)
    others = [write(None, Sampled(seed=2)), write(None, Sampled(seed=1, draw=1)), write()]
    assert all(texts != drawn for texts in others)
    assert write(None, Sampled(1e-4)) == write()  # the coldest draw is the likeliest


def test_tokens_are_drawn_as_often_as_their_probability(model, tokenizer):
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0, -1.0])
    write = Writer(model, tokenizer, prompts_of())
    many = [[3, n, m] for n in range(3, 60) for m in range(3, 60)]
    for temperature in (1.0, 0.5):
        rows = _Rows(write, many, Sampled(temperature))
        drawn = rows._drawn(logits.repeat(len(many), 1), Sampled(temperature))[:, 0]
        shares = torch.bincount(drawn, minlength=5) / len(many)
        expected = (logits / temperature).softmax(-1)
        error = (expected * (1 - expected) / len(many)).sqrt()
        assert bool(((shares - expected).abs() <= 4 * error).all()) and shares[2] == 0


def test_rounding_draws_no_other_token(model, tokenizer):
    many = [[3, n, m] for n in range(3, 23) for m in range(3, 23)]
    logits = torch.randn(len(many), 40_000, generator=torch.Generator().manual_seed(5))
    write = Writer(model, tokenizer, prompts_of())
    drawn, again = (_Rows(write, many, Sampled())._drawn(each, Sampled()) for each in (logits, logits * 1.0001))
    assert torch.equal(drawn, again) and len(drawn.unique()) > 300


def test_the_bundled_model_writes():
    model, tokenizer = nl.load_model("demo")
    texts = [f"Question: {question}\nAnswer:" for question in ("What does Maken eat?", "Is a bird in the yard?")]
    prompts = [Prompt(tokenizer(text).input_ids, [[3]], 0) for text in texts]
    expected = []
    for prompt in prompts:
        with torch.no_grad():
            out = model.generate(torch.tensor([prompt.input_ids]), max_new_tokens=8, do_sample=False)
        lines = tokenizer.decode(out[0, len(prompt.input_ids) :], skip_special_tokens=True).split("\n")
        expected.append(next((line.strip() for line in lines if line.strip()), ""))
    with untouched(model):
        assert Writer(model, tokenizer, prompts, 8)() == expected


@pytest.mark.parametrize(
    ("keywords", "parts"),
    [
        ({"tokenizer": None}, ["tokenizer=None"]),
        ({"max_new_tokens": 0}, ["max_new_tokens=0"]),
        ({"max_new_tokens": 2.5}, ["max_new_tokens=2.5"]),
        ({"max_new_tokens": 90}, ["question 'q", "max_new_tokens=90", "96"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"prompts": []}, ["questions"]),
        ({"prompts": [Prompt([3, 99], [[3]], 0)]}, ["99", "vocabulary"]),
    ],
)
def test_bad_input_is_one_line(model, tokenizer, keywords, parts):
    with untouched(model), refused(*parts):
        Writer(**{"model": model, "tokenizer": tokenizer, "prompts": prompts_of(), **keywords})


def test_a_model_without_a_generation_config_cannot_write(tokenizer):
    model = tiny("llama")
    model.generation_config = None
    with refused("LlamaForCausalLM", "generation config"):
        Writer(model, tokenizer, prompts_of())


def test_nan_is_no_answer(tokenizer):
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(torch.nan)
    with refused("NaN"):
        Writer(model, tokenizer, prompts_of())()
